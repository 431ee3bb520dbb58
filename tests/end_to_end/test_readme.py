"""What the README says is what a person sees."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.server import ROOT, Server, serve

README = (ROOT / "README.md").read_text()
# A curl command in a block of its own, and the answer in the JSON block that follows it.
EXAMPLES = re.findall(r"```\n(curl [^\n]+)\n```\n\n```json\n(.*?)\n```", README, re.DOTALL)


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
    assert paths == ["/generate", "/score", "/translate", "/score"]


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
