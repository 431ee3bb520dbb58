"""Prometheus takes its configuration, and its rules say what they should."""

import shutil
import subprocess

import pytest

from tests.end_to_end.server import ROOT

FOLDER = ROOT / "docker/prometheus"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (it is in Debian's package prometheus)",
)


@needs_promtool
@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("check config", ["prometheus.yml"]),
        ("check rules", ["recording.yml", "alerts.yml"]),
        ("test rules", ["rules_test.yml"]),
    ],
)
def test_promtool_finds_nothing_wrong(command: str, files: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *command.split(), *files],
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_alert_is_tested() -> None:
    alerts = [x.split()[-1] for x in lines("alerts.yml") if "- alert:" in x]
    tested = "\n".join(lines("rules_test.yml"))
    assert alerts
    assert [x for x in alerts if f"alertname: {x}" not in tested] == []


def lines(name: str) -> list[str]:
    return (FOLDER / name).read_text().splitlines()
