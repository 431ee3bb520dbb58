"""PyTorch, onnxruntime and HTTP give the same number: train, export, serve, compare."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from service.bundle.store import read_language_model
from service.bundle.text import BOS_ID, EOS_ID, Vocabulary, normalize
from service.runtime.language_model import OnnxLanguageModelSession
from tests.end_to_end.server import ROOT, Server, serve
from training.__main__ import main
from training.loop.language_model import open_best

MAX_DIFFERENCE = 1e-5  # nats a token

CONFIG = """
name = "tiny-{cell}"
[data]
files = ["{text}"]
min_count = 2
[model]
cell = "{cell}"
{options}
[baselines]
max_order = 3
"""
NETWORK = """
num_layers = 2
hidden_size = 24
embedding_dim = 8
[training]
steps = 60
batch_size = 8
bptt_len = 32
eval_every = 60
restart_probability = 0.2
sample_chars = 0
threads = 1
"""
OPTIONS = {"rnn": NETWORK, "gru": NETWORK, "lstm": NETWORK, "ngram": "order = 5"}
CELLS = [*OPTIONS]

TEXTS = [
    "Alice was beginning to get very tired of sitting by her sister on the bank",
    "a",
    "",
    "\n\n   \u2028 * * *\n",
    "Qué será, será: \U0001f407 \x00 \ud7ff",
    "The Queen of Hearts, she made some tarts,\r\nAll on a summer day:" * 20,
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `<cell>/` runs and `models/`, trained on a piece of Alice."""
    folder = tmp_path_factory.mktemp("one-number")
    text = (ROOT / "training/data/alice/alice.txt").read_text()[:20_000]
    # A line separator that a line-based vocabulary file would lose.
    (folder / "text.txt").write_text(text.replace("Alice", "Alice\u2028", 40))
    for cell in CELLS:
        config = folder / f"{cell}.toml"
        config.write_text(CONFIG.format(cell=cell, text="text.txt", options=OPTIONS[cell]))
        assert main(["train", str(config), "--run", str(folder / cell)]) == 0
        assert main(["export", str(folder / cell), "--models", str(folder / "models")]) == 0
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    with serve(runs / "models", precision="fp32") as running:
        yield running


def torch_logprob(runs: Path, cell: str, text: str, *, eos: bool) -> tuple[float, int]:
    """Total log-probability and counted tokens, by PyTorch at the exported temperature."""
    config, model, record = open_best(runs / cell)
    part = read_language_model(runs / f"models/tiny-{cell}").manifest.parts[0]
    vocab = Vocabulary(record["vocab"])
    ids = [BOS_ID, *vocab.encode(normalize(text, config.data.normalization)).tolist()]
    ids += [EOS_ID] if eos else []
    if len(ids) == 1:
        return 0.0, 0
    with torch.no_grad():
        logits, _ = model(torch.tensor([ids[:-1]]), model.initial_states(1))
    logprobs = torch.log_softmax(logits[0] / (part.temperature or 1.0), dim=-1)
    picked = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return float(picked.double().sum()), len(ids) - 1


def session_logprob(models: Path, name: str, text: str, *, eos: bool) -> float:
    """The same by the exported graph alone."""
    bundle = read_language_model(models / name)
    session = OnnxLanguageModelSession(bundle, "fp32")
    ids = bundle.vocab.encode(normalize(text, bundle.manifest.normalization)).astype(np.int64)
    row = np.concatenate([[BOS_ID], ids, [EOS_ID] if eos else []]).astype(np.int64)[None]
    if row.shape[1] == 1:
        return 0.0
    lengths = np.array([row.shape[1] - 1], np.int32)
    picked, _ = session.pick(row[:, :-1], lengths, row[:, 1:], session.initial_states(1))
    return float(picked.astype(np.float64).sum())


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_pytorch_onnxruntime_and_http_agree(
    runs: Path, server: Server, cell: str, eos: bool
) -> None:
    name = f"tiny-{cell}"
    with server.client() as client:
        body = {"model": name, "text": TEXTS, "eos": eos}
        answer = client.post("/score", json=body).raise_for_status().json()
    for text, result in zip(TEXTS, answer["results"], strict=True):
        expected, tokens = torch_logprob(runs, cell, text, eos=eos)
        exported = session_logprob(runs / "models", name, text, eos=eos)
        allowed = MAX_DIFFERENCE * max(tokens, 1)
        assert result["logprob"] == pytest.approx(exported, abs=1e-9)
        assert result["logprob"] == pytest.approx(expected, abs=allowed)
        assert result["bits"] == pytest.approx(-result["logprob"] / math.log(2))


def test_the_known_answers_of_a_mixture_are_http_s_adapting_or_not() -> None:
    # PyTorch in double precision wrote them: the first is the beginning of the held-out text.
    manifest = read_language_model(ROOT / "models/alice-lstm").manifest
    tokens = read_language_model(ROOT / "models/alice-lstm").vocab.tokens
    assert [part.model.cell for part in manifest.parts] == ["lstm", "ngram"]
    totals = []
    with serve(ROOT / "models", precision="fp32") as running, running.client() as client:
        for adapt in (False, True):
            known = next(x for x in manifest.golden if (x.precision, x.adapt) == ("fp32", adapt))
            text = "".join(tokens[i] for i in known.tokens[1:])
            body = {"model": "alice-lstm", "text": text, "adapt": adapt, "tokens": True}
            answer = client.post("/score", json=body).raise_for_status().json()
            assert answer["adapt"] is adapt
            found = [x["logprob"] for x in answer["results"][0]["tokens"]]
            difference = np.abs(np.array(found) - np.array(known.logprobs)).mean()
            assert difference <= MAX_DIFFERENCE
            totals.append(sum(found))
    assert totals[0] != pytest.approx(totals[1], abs=0.01)


@pytest.mark.parametrize("cell", CELLS)
def test_generate_and_score_give_the_same_logprobs_bit_for_bit(server: Server, cell: str) -> None:
    with server.client() as client:
        body = {
            "model": f"tiny-{cell}",
            "prompt": "Alice ",
            "max_tokens": 300,
            "seed": 7,
            "logprobs": 0,
        }
        generated = client.post("/generate", json=body).raise_for_status().json()
        choice = generated["results"][0]["choices"][0]
        body = {
            "model": f"tiny-{cell}",
            "context": "Alice ",
            "text": choice["text"],
            "tokens": True,
            "eos": choice["finish_reason"] == "stop",
        }
        scored = client.post("/score", json=body).raise_for_status().json()["results"][0]
    assert [x["logprob"] for x in scored["tokens"]] == [x["logprob"] for x in choice["logprobs"]]


def test_a_line_separator_is_a_token_like_any_other(server: Server) -> None:
    with server.client() as client:
        body = {"model": "tiny-lstm", "text": "Alice\u2028 was", "tokens": True}
        result = client.post("/score", json=body).raise_for_status().json()["results"][0]
    assert result["unknown"] == []
    assert [x["token"] for x in result["tokens"]] == list("Alice\u2028 was")


def test_the_service_process_never_imports_torch(server: Server) -> None:
    maps = (Path("/proc") / str(server.process.pid) / "maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    assert os.environ.get("UNROLL_PORT") is None
