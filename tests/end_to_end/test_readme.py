"""What the README says is what a person sees."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.server import ROOT, Server, serve

README = (ROOT / "README.md").read_text()
# A curl command in a block of its own, and the answer in the JSON block that follows it.
EXAMPLES = re.findall(r"```\n(curl [^\n]+)\n```\n\n```json\n(.*?)\n```", README, re.DOTALL)


# Other commands, and Python, with what they print.
SHOWN = re.findall(r"```\n([^`\n]+)\n```\n\n```text\n(.*?)\n```", README, re.DOTALL)
SCRIPTS = re.findall(r"```python\n(.*?)\n```\n\n```text\n(.*?)\n```", README, re.DOTALL)
# What installs, trains or measures for minutes: that there is such a command is tested here, and
# what the commands do in tests/training.
LONG = ("make ", "python3 -m venv ", ".venv/training/bin/", ".venv/service/bin/pip ")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(ROOT / "models") as running:
        yield running


def rounded(value: Any) -> Any:
    """Numbers to five digits: processors differ in the last ones."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value


def test_there_is_an_example_for_every_task() -> None:
    paths = [re.findall(r"http://127\.0\.0\.1:8000(/\w+)", command)[0] for command, _ in EXAMPLES]
    assert paths == ["/generate", "/score", "/translate", "/score", "/generate"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands need curl")
@pytest.mark.parametrize(("command", "answer"), EXAMPLES)
def test_a_curl_command_of_the_readme_gives_the_answer_beside_it(
    server: Server, command: str, answer: str
) -> None:
    words = shlex.split(command.replace("http://127.0.0.1:8000", server.url))
    done = subprocess.run(words, capture_output=True, check=True)
    assert rounded(json.loads(done.stdout)) == rounded(json.loads(answer))


def test_every_command_of_the_readme_that_names_a_config_names_one_that_exists() -> None:
    named = set(re.findall(r"training/configs/[\w.-]+\.toml", README))
    assert named
    assert all((ROOT / path).exists() for path in named)


def digits(text: str) -> str:
    """Numbers to five digits."""
    return re.sub(r"-?\d+\.\d{5,}", lambda found: f"{float(found[0]):.5g}", text.rstrip("\n"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands need curl")
@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_a_command_of_the_readme_prints_what_stands_beside_it(
    server: Server, command: str, shown: str
) -> None:
    command = command.replace("http://127.0.0.1:8000", server.url)
    command = command.replace(".venv/service/bin/python", sys.executable)
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, check=True, text=True
    )
    # How much was known before depends on what was asked before.
    known = re.compile(r'"cached_tokens":\d+')
    assert known.sub("", digits(done.stdout)) == known.sub("", digits(shown))


@pytest.mark.parametrize(("script", "shown"), SCRIPTS)
def test_a_script_of_the_readme_prints_what_stands_beside_it(
    server: Server, script: str, shown: str
) -> None:
    script = script.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert digits(done.stdout) == digits(shown)


def test_every_command_of_the_readme_is_run_or_is_there_to_be_run() -> None:
    parts = re.split(r"^```(\w*)$", README, flags=re.MULTILINE)
    # Text, a fence's word, a block, the closing fence, and so on.
    blocks = [block for word, block in zip(parts[1::4], parts[2::4], strict=True) if not word]
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    run = {command for command, _ in [*EXAMPLES, *SHOWN]}
    assert len(run) >= 8
    assert SCRIPTS
    rest = [line.split("#")[0].strip() for line in lines if line not in run]
    assert all(line.startswith(LONG) for line in rest)
    for target in {line.split()[1] for line in rest if line.startswith("make ")}:
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)
    for name in {words[0] for line in rest if (words := line.partition("-m training ")[2].split())}:
        command = [sys.executable, "-m", "training", name, "--help"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
