"""A run that begins with other weights: old ids stay, new characters follow, nothing is guessed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.bundle.language_model import MixturePart
from service.bundle.store import read_bundle, read_language_model
from tests.training.helpers import (
    BACKWARDS,
    FABLE,
    Main,
    tiny_document,
    tiny_encoder_decoder_document,
    write_toml,
)
from training.__main__ import main
from training.config import ConfigError, load_config, parse_config
from training.experiments.kinds import experiment_of
from training.experiments.starting_point import open_starting_point
from training.loop import encoder_decoder
from training.loop.language_model import load_best

LARGER = "Zoë's 42 euros: 7 €.\n" * 3 + FABLE


def configured(folder: Path, text: str = FABLE, **sections: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    sections["training"] = {"steps": 2, "eval_every": 1, **sections.get("training", {})}
    return write_toml(folder / "tiny.toml", tiny_document(**sections))


@pytest.fixture(scope="module", params=["lstm", "gru"])
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two layers and its bundle."""
    folder = tmp_path_factory.mktemp("parent")
    config = configured(folder, model={"cell": request.param, "num_layers": 2})
    assert main(["train", str(config), "--run", str(folder / "run")]) == 0
    assert main(["export", str(folder / "run"), "--models", str(folder / "models")]) == 0
    return folder


def cell_of(parent: Path) -> dict[str, Any]:
    return {"cell": load_best(parent / "run")[0].model.cell, "num_layers": 2}


def test_a_bundle_gives_the_runs_weights_bit_for_bit(parent: Path) -> None:
    wanted = load_best(parent / "run")[1].state_dict()
    found = open_starting_point(parent / "models/tiny").weights
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_temperature_of_the_export_is_undone(parent: Path) -> None:
    bundle = read_language_model(parent / "models/tiny")
    experiment = experiment_of(parse_config(bundle.manifest.training.config))
    part = MixturePart(name="lstm", model=bundle.manifest.model, weight=1.0, temperature=2.0)
    manifest = bundle.manifest.model_copy(update={"parts": []})
    plain, _ = experiment.starting_weights(replace(bundle, manifest=manifest))
    manifest = bundle.manifest.model_copy(update={"parts": [part]})
    undone, _ = experiment.starting_weights(replace(bundle, manifest=manifest))
    for name, weight in plain.items():
        assert torch.equal(undone[name], 2 * weight if name.startswith("output.") else weight)


@pytest.mark.parametrize("kind", ["run", "models/tiny"])
def test_old_ids_stay_and_new_characters_follow(
    parent: Path, tmp_path: Path, call: Main, kind: str
) -> None:
    still = {"learning_rate": 1e-12, "weight_decay": 0.0}
    config = configured(tmp_path, LARGER, model=cell_of(parent), training=still)
    run = tmp_path / "run"
    assert call("train", config, "--run", run, "--init-from", parent / kind)[0] == 0
    _, before, old = load_best(parent / "run")
    _, after, new = load_best(run)
    known = len(old["vocab"])
    assert new["vocab"][:known] == old["vocab"]
    assert set(new["vocab"][known:]) == set(LARGER) - set(FABLE)
    torch.testing.assert_close(after.embedding.weight[:known], before.embedding.weight)
    torch.testing.assert_close(after.output.bias[:known], before.output.bias)
    mean = before.embedding.weight[4:].mean(dim=0)
    torch.testing.assert_close(after.embedding.weight[known], mean)
    assert call("train", run, "--resume")[0] == 0
    assert call("export", run, "--models", tmp_path / "models")[0] == 0
    found = read_language_model(tmp_path / "models/tiny").manifest.training.parent
    assert found is not None
    assert (found.name, found.sha256) == ("tiny", open_starting_point(parent / kind).sha256)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"hidden_size": 16}}, "model.hidden_size is 12 in tiny and 16 here"),
        (
            {"data": {"normalization": {"lowercase": True}}},
            "data.normalization.lowercase is False in tiny and True here",
        ),
    ],
)
def test_another_model_or_normalization_is_refused(
    parent: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    sections = {**sections, "model": {**cell_of(parent), **sections.get("model", {})}}
    config = load_config(configured(tmp_path, **sections))
    with pytest.raises(ConfigError, match=message):
        open_starting_point(parent / "run").check(config)


def test_dropout_may_be_another(parent: Path, tmp_path: Path) -> None:
    model = {**cell_of(parent), "dropout_output": 0.5}
    open_starting_point(parent / "run").check(load_config(configured(tmp_path, model=model)))


def test_a_folder_that_holds_neither_is_refused(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path, training={"init_from": "nowhere"})
    status, _, stderr = call("train", config, "--run", tmp_path / "run")
    assert status == 1
    assert "training.init_from: " in stderr
    assert "neither the folder of a run with weights nor a bundle" in stderr


def test_pairs_start_from_a_run_and_not_from_a_bundle(tmp_path: Path, call: Main) -> None:
    (tmp_path / "pairs.tsv").write_text(BACKWARDS)
    data = {"files": ["pairs.tsv"], "valid_fraction": 0.2, "test_fraction": 0.2}
    training = {"steps": 2, "eval_every": 1}
    document = tiny_encoder_decoder_document(data=data, training=training)
    config = write_toml(tmp_path / "tiny.toml", document)
    assert call("train", config, "--run", tmp_path / "run")[0] == 0
    assert call("export", tmp_path / "run", "--models", tmp_path / "models")[0] == 0
    (tmp_path / "pairs.tsv").write_text(BACKWARDS + "".join(f"Ä{i}é\té{i}Ä\n" for i in range(40)))
    document["training"]["init_from"] = "run"
    write_toml(tmp_path / "tiny.toml", document)
    assert call("train", config, "--run", tmp_path / "child")[0] == 0
    _, _, source, target, _ = encoder_decoder.load_best(tmp_path / "run")
    _, _, new_source, new_target, _ = encoder_decoder.load_best(tmp_path / "child")
    for old, new in ((source, new_source), (target, new_target)):
        assert new.tokens[: len(old)] == old.tokens
        assert "é" in new.tokens[len(old) :]
    assert call("export", tmp_path / "child", "--models", tmp_path / "again")[0] == 0
    assert read_bundle(tmp_path / "again/tiny-pairs").manifest.training.parent is not None
    with pytest.raises(ConfigError, match="start from its run's folder instead"):
        open_starting_point(tmp_path / "models/tiny-pairs")
