"""From a file of pairs to an answer over HTTP: train, export, serve."""

from pathlib import Path

import pytest

from tests.end_to_end.server import serve
from tests.training.helpers import BACKWARDS, tiny_encoder_decoder_document, write_toml
from training.__main__ import main

SOURCES = [line.split("\t")[0] for line in BACKWARDS.splitlines()[:8]]


def test_the_service_says_what_the_trained_model_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.tsv").write_text(BACKWARDS)
    training = {"steps": 30, "eval_every": 15, "learning_rate": 0.02, "select_by": "exact_match"}
    config = write_toml(tmp_path / "tiny.toml", tiny_encoder_decoder_document(training=training))
    run, models = str(tmp_path / "run"), tmp_path / "models"
    assert main(["train", str(config), "--run", run]) == 0
    assert main(["export", run, "--models", str(models)]) == 0
    capsys.readouterr()
    assert main(["translate", run, "--beam-size", "3", *SOURCES]) == 0
    expected = capsys.readouterr().out.splitlines()[-len(SOURCES) :]
    with serve(models, precision="fp32") as server, server.client() as client:
        answer = client.post("/translate", json={"source": SOURCES, "beam_size": 3})
        results = answer.json()["results"]
        assert [x["hypotheses"][0]["text"] for x in results] == expected
        for source, result in zip(SOURCES, results, strict=True):
            best = result["hypotheses"][0]
            pair = {"source": source, "text": best["text"], "eos": best["finish_reason"] == "stop"}
            (scored,) = client.post("/score", json=pair).json()["results"]
            # One row against three: other kernels, and so other last bits.
            assert scored["logprob"] == pytest.approx(best["logprob"], abs=1e-4)
