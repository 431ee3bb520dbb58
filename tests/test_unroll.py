"""`unroll`: every command reaches its package, and what is missing is said."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import unroll


@pytest.mark.parametrize("command", [*unroll.SERVICE, *unroll.TRAINING])
def test_every_command_has_a_help_that_calls_it_as_it_was_called(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/unroll", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        unroll.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: unroll {command} ")


def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_torch(name: str) -> SimpleNamespace:
        raise ModuleNotFoundError(f"No module named {name}", name="torch")

    monkeypatch.setattr(importlib, "import_module", without_torch)
    assert unroll.main(["learn", "names.txt"]) == 1
    error = capsys.readouterr().err
    assert "torch" in error
    assert "pip install '.[service,training]'" in error


def test_an_unknown_command_ends_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert unroll.main(["fly"]) == 2
    assert "learn" in capsys.readouterr().err
    assert unroll.main([]) == 0
    assert "learn" in capsys.readouterr().out


def test_the_list_needs_neither_package() -> None:
    code = "import sys, unroll; unroll.main([]); print({'torch', 'fastapi'} & set(sys.modules))"
    folder = Path(unroll.__file__).parent
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=folder)
    assert found.endswith("set()\n")
