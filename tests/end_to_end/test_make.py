"""`make learn` runs the right command, whatever the file is called; `make help` is complete."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAVE_MAKE = shutil.which("make") is not None


@pytest.mark.skipif(not HAVE_MAKE, reason="make is not here")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FILE": "it's my names.txt"}, ["--", "it's my names.txt"]),
        ({"FILE": 'a"b.txt'}, ["--", 'a"b.txt']),
        ({"FILE": "x.en x.de", "MINUTES": "2"}, ["--minutes", "2", "--", "x.en", "x.de"]),
        (
            {"FILE": "x.en", "NAME": "n", "MODELS": "my models"},
            ["--name", "n", "--models", "my models", "--", "x.en"],
        ),
    ],
)
def test_make_learn_hands_on_names_as_they_are(
    variables: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    files = ("it's my names.txt", 'a"b.txt', "x.en", "x.de")
    for name in files:
        (tmp_path / name).write_text("")
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "environment/.done").write_text("")
    command = ["make", "--silent", "learn", "TRAINING_ENV=environment"]
    words = [f"{name}={value}" for name, value in variables.items()]
    environment = {"PATH": os.environ["PATH"], "NAME": "a host's"}
    out = subprocess.check_output([*command, *words], cwd=tmp_path, text=True, env=environment)
    assert out.splitlines() == ["-m", "training", "learn", *expected]


@pytest.mark.skipif(not HAVE_MAKE, reason="make is not here")
def test_make_help_lists_every_target_that_has_a_description() -> None:
    described = re.findall(r"^(\S+):.* ## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    out = subprocess.check_output(["make", "--silent", "help"], cwd=ROOT, text=True)
    assert [tuple(line.split(maxsplit=1)) for line in out.splitlines()] == described
    assert "bench-g2p" in dict(described)


def test_every_folder_of_tests_is_run_by_a_target() -> None:
    """`make test` names the folders, in an order that keeps its workers busy to the end."""
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\btests/(\w+)(?=[ \n])", makefile))
    assert named == {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}


def test_make_test_fetches_every_program_without_which_tests_are_skipped() -> None:
    rules = (ROOT / "Makefile").read_text()
    fetched = re.findall(
        r"^(\w+):(?:(?!\n\n).)*could not be (?:fetched|installed)", rules, re.MULTILINE | re.DOTALL
    )
    (needed,) = re.findall(r"^test:(.*)##", rules, re.MULTILINE)
    assert sorted(fetched) == ["chromium", "kubectl", "nginx", "promtool"]
    assert set(fetched) <= set(needed.split())
