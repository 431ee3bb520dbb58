"""Clients that others wrote, each in an environment of its own, against a real server."""

import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.bundle.store import write_bundle
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.end_to_end.server import ROOT, Server, serve

PYTHON = ROOT / ".venv" / "clients" / "bin" / "python"
HERE = Path(__file__).parent
MODEL = "tiny-lstm"

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="the clients' environment is not there: make .venv/clients/.done"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_encoder_decoder_files(name="tiny-pairs"))
    with serve(folder, engine_threads=1) as running:
        yield running


def used(script: str, *arguments: str) -> str:
    """What a script prints in the clients' environment."""
    done = subprocess.run(
        [PYTHON, HERE / script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def test_the_openai_package(server: Server) -> None:
    assert used("use_openai.py", server.url, MODEL).count(": ok") == 10


def test_tritons_client_and_libretranslates(server: Server) -> None:
    assert used("use_others.py", server.url, MODEL, "tiny-pairs").count(": ok") == 3


# --- lm-eval --------------------------------------------------------------------------------------

TEXTS = ["the white rabbit was late for tea", "alice saw a cat in a hat, and a hatter at three"]
# No query ends with a blank: the harness would move it over to the choice.
CHOICES: list[dict[str, Any]] = [
    {"query": "the cat sat on the", "choices": [" hat", " rabbit", "x"], "gold": 0},
    {"query": "alice", "choices": [" was late", " saw"], "gold": 1},
    {"query": "", "choices": ["a", "the", "tea"], "gold": 2},
]
TASKS = {
    "unroll_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
  - metric: byte_perplexity
  - metric: word_perplexity
""",
    "unroll_choice": """
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
target_delimiter: ""
metric_list:
  - metric: acc
""",
    "unroll_until": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: " "
generation_kwargs:
  until: ["t"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture(scope="module")
def lone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With one model: lm-eval asks for "the" tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    with serve(folder, engine_threads=1) as running:
        yield running


# As the harness comes; with texts in place of ids; several questions at a time; in windows of 30
# tokens, each of which has but one token of the text before it.
WINDOW = 30
MODES: dict[str, dict[str, Any]] = {
    "ids": {},
    "texts": {"tokenized_requests": False},
    "together": {"num_concurrent": 2},
    "windows": {"max_length": WINDOW + 2},
}


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def evaluated(lone_server: Server, mode: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tasks")
    rows: dict[str, list[dict[str, Any]]] = {
        "unroll_rolling": [{"text": text} for text in TEXTS],
        "unroll_choice": CHOICES,
        "unroll_until": [{"text": text[:9]} for text in TEXTS],
    }
    for name, task in TASKS.items():
        lines = "\n".join(json.dumps(row) for row in rows[name])
        (folder / f"{name}.jsonl").write_text(lines + "\n")
        head = (
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n"
            f"  data_files:\n    test: {folder}/{name}.jsonl\ntest_split: test\n"
        )
        (folder / f"{name}.yaml").write_text(head + task.lstrip())
    output = used("use_lm_eval.py", lone_server.url, MODEL, str(folder), json.dumps(MODES[mode]))
    return json.loads(output.splitlines()[-1])


def scored(server: Server, text: str, context: str = "") -> float:
    with server.client() as client:
        body = {"model": MODEL, "text": text, "context": context}
        answer = client.post("/score", json=body).json()
    return float(answer["results"][0]["logprob"])


def in_windows(server: Server, text: str) -> float:
    """The harness cuts a long text; its last window is filled up with what stands before it."""
    total = scored(server, text[:WINDOW])
    for start in range(WINDOW, len(text), WINDOW):
        before = text[min(start, len(text) - WINDOW) - 1 : start]
        total += scored(server, text[start : start + WINDOW], before)
    return total


def test_lm_eval_rolling_bits_per_byte_are_those_of_score(
    evaluated: Any, mode: str, server: Server
) -> None:
    measure = in_windows if mode == "windows" else scored
    total = sum(measure(server, text) for text in TEXTS)
    wanted = -total / (sum(len(text.encode()) for text in TEXTS) * math.log(2))
    found = evaluated["results"]["unroll_rolling"]["bits_per_byte,none"]
    assert abs(found - wanted) < 1e-6


def test_lm_eval_multiple_choice_is_that_of_score(evaluated: Any, server: Server) -> None:
    right = 0
    for sample in evaluated["samples"]["unroll_choice"]:
        doc = sample["doc"]
        wanted = [scored(server, choice, doc["query"]) for choice in doc["choices"]]
        found = [float(each[0][0]) for each in sample["resps"]]
        assert found == pytest.approx(wanted, abs=1e-6)
        right += wanted.index(max(wanted)) == doc["gold"]
    assert evaluated["results"]["unroll_choice"]["acc,none"] == pytest.approx(right / len(CHOICES))


def test_lm_eval_generate_until_is_what_generate_gives(evaluated: Any, server: Server) -> None:
    with server.client() as client:
        for sample in evaluated["samples"]["unroll_until"]:
            body = {
                "model": MODEL,
                "prompt": sample["doc"]["text"],
                "temperature": 0.0,
                "max_tokens": 12,
                "stop": ["t"],
            }
            (result,) = client.post("/generate", json=body).json()["results"]
            assert sample["resps"][0][0] == result["choices"][0]["text"]
