"""A restorer's run, from text to a bundle, by the commands alone."""

import json
from pathlib import Path

from service.bundle.labeler import LabelerManifest
from service.bundle.losses import lost
from service.bundle.store import read_bundle
from tests.training.helpers import Main, write_toml
from tests.training.labelled import tiny_labeler_document
from training.config import load_config
from training.experiments.kinds import experiment_of

LINES = [
    f"{x} přišel {y}" for x in ("kůň", "pes", "muž") for y in ("včera", "dnes", "zítra", "pozdě")
]


def test_a_restorer_is_trained_asked_and_exported(tmp_path: Path, call: Main) -> None:
    (tmp_path / "labelled.tsv").write_text("\n".join(LINES * 2) + "\n", encoding="utf-8")
    training = {"steps": 80, "eval_every": 80, "learning_rate": 0.03}
    document = tiny_labeler_document("restore", training=training, model={"hidden_size": 16})
    config, run = write_toml(tmp_path / "tiny.toml", document), tmp_path / "run"

    status, stdout, _ = call("train", config, "--run", run)

    assert status == 0
    assert "12 dropped (repeated)" in stdout
    assert [x for x in stdout.splitlines() if x.startswith("word table")]
    metrics = json.loads((run / "metrics.json").read_text())["labels"][0]["measurements"]
    assert metrics[0]["values"]["base_errors"] == 0.0
    experiment = experiment_of(load_config(config))
    text = experiment.open(run).train.texts[0]
    status, stdout, _ = call("tag", run, text, "MUZ")
    answer, upper, _ = stdout.split("\n")
    assert (status, lost(answer, ["accents"]), upper) == (0, text, "MUZ")  # no Ž was ever seen
    assert answer in LINES  # learned by heart
    folder = experiment.export(run, experiment.open(run), tmp_path / "models", name=None)
    manifest = read_bundle(folder).manifest
    assert isinstance(manifest, LabelerManifest)
    assert manifest.labels.applied
    assert "word_error_rate" in manifest.metrics[0].measurements[-1].values
    assert experiment.figures(manifest)[0].count("% of the words") == 1
