"""The runs of classifiers and taggers, from files to answers, by the commands alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import WORDS, Main, write_toml
from tests.training.labelled import tiny_labeler_document
from training.config import ConfigError, load_config
from training.evaluation.labeler import judge_network
from training.experiments.kinds import experiment_of
from training.experiments.starting_point import open_starting_point
from training.loop.labeler import load_best

VOWELS = "aeiou"


def files(folder: Path, task: str, more: str = "", **sections: Mapping[str, Any]) -> Path:
    """A configuration and its data: what a word begins with, or its vowels."""
    folder.mkdir(parents=True, exist_ok=True)
    if task == "classifier":
        lines = [f"{word}\t{'early' if word[0] < 'n' else 'late'}\n" for word in WORDS]
    else:
        lines = [f"{x}\t{''.join('V' if y in VOWELS else 'O' for y in x)}\n" for x in WORDS]
    (folder / "labelled.tsv").write_text("".join(lines) + more, encoding="utf-8")
    sections["training"] = {"steps": 2, "eval_every": 1, **sections.get("training", {})}
    return write_toml(folder / "tiny.toml", tiny_labeler_document(task, **sections))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each task."""
    from training.__main__ import main

    folder = tmp_path_factory.mktemp("runs")
    for task, model in (("classifier", {}), ("tagger", {"crf": True})):
        training = {"steps": 60, "eval_every": 60, "learning_rate": 0.03}
        config = files(folder / task, task, model=model, training=training)
        assert main(["train", str(config), "--run", str(folder / task / "run")]) == 0
    return folder


def test_training_ends_with_a_table_of_the_model_and_its_floors(tmp_path: Path, call: Main) -> None:
    config = files(tmp_path, "classifier")
    status, stdout, _ = call("train", config, "--run", tmp_path / "run")
    assert status == 0
    first, *_, last = stdout.splitlines()
    assert first.startswith("tiny-classifier: texts: ")
    assert first.endswith(" tokens, 2 labels")
    assert [x for x in stdout.splitlines() if x.startswith("PyTorch")]
    assert [x for x in stdout.splitlines() if x.startswith("majority")]
    assert last.startswith(f"the run is {tmp_path / 'run'}; next: ")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())["labels"]
    assert {x["split"] for x in metrics} == {"test"}
    (tmp_path / "labelled.tsv").unlink()  # the run has its own copy
    assert call("evaluate", tmp_path / "run", "--split", "valid")[0] == 0


def test_texts_are_classified(runs: Path, call: Main) -> None:
    run = runs / "classifier/run"
    data = experiment_of(load_config(runs / "classifier/tiny.toml")).open(run)
    _, model, *_ = load_best(run)
    found = judge_network(model, data.train, data.labels, torch.device("cpu"))
    wanted = [data.labels.names[x.found[0]] for x in found]
    assert {*wanted} == {"early", "late"}
    status, stdout, _ = call("classify", run, "--top", 1, *data.train.texts)
    assert status == 0
    assert [line.split()[0] for line in stdout.splitlines()] == wanted
    _, stdout, _ = call("classify", run, data.train.texts[0])
    answers = [x.split() for x in stdout.strip().split(", ")]
    assert [label for label, _ in answers] == sorted({*wanted}, key=lambda x: x != wanted[0])
    assert sum(float(share) for _, share in answers) == pytest.approx(1.0, abs=0.002)


def test_texts_are_tagged(runs: Path, call: Main) -> None:
    assert call("tag", runs / "tagger/run", "trusted", "ou") == (
        0,
        "tr[u](V)st[e](V)d\n[ou](V)\n",
        "",
    )


def test_an_empty_text_is_refused(runs: Path, call: Main) -> None:
    assert call("tag", runs / "tagger/run", "ou", "") == (1, "", "error: a text is empty\n")


def test_the_command_of_another_kind_names_the_right_one(runs: Path, call: Main) -> None:
    for task, command, other in (("classifier", "classify", "tag"), ("tagger", "tag", "classify")):
        run = runs / task / "run"
        message = f"error: {run}: a {task}; `{command}` is its command\n"
        assert call(other, run, "text") == (1, "", message)


@pytest.mark.parametrize("task", ["classifier", "tagger"])
def test_evaluate_names_the_mistakes(runs: Path, call: Main, task: str) -> None:
    status, stdout, _ = call("evaluate", runs / task / "run", "--split", "train")
    assert status == 0
    assert f"train: {len(WORDS) - 2} texts" not in stdout  # a part of them
    assert "\ntrain:\n" in stdout
    status, _, stderr = call("evaluate", runs / task / "run", "--split", "nowhere")
    assert (status, stderr) == (1, "error: --split: there are train, valid, test\n")


def test_floors_need_no_run(tmp_path: Path, call: Main) -> None:
    status, stdout, _ = call("baselines", files(tmp_path, "tagger"), "--run", tmp_path / "run")
    assert status == 0
    assert "majority" in stdout
    assert "PyTorch" not in stdout


def test_requests_ask_for_a_held_out_text(runs: Path) -> None:
    class Manifest:
        name = "tiny"

    for task, path in (("classifier", "/classify"), ("tagger", "/tag")):
        experiment = experiment_of(load_config(runs / task / "tiny.toml"))
        data = experiment.open(runs / task / "run")
        ((found, body),) = experiment.requests(Manifest(), data)
        assert (found, body["model"]) == (path, "tiny")
        assert body["text"] in data.held_out[0].texts


# --- starting from other weights ----------------------------------------------------------------


# A label that is new.
LARGER = {
    "classifier": ("digits", "".join(f"Zoë {i}\tdigits\n" for i in range(40))),
    "tagger": ("D", "".join(f"ë{i:02}\tVDD\n" for i in range(40))),
}


@pytest.mark.parametrize("task", LARGER)
def test_known_tokens_and_labels_keep_their_ids_and_new_ones_follow(
    runs: Path, tmp_path: Path, call: Main, task: str
) -> None:
    parent, (label, more) = runs / task / "run", LARGER[task]
    model = {"crf": True} if task == "tagger" else {}
    config = files(tmp_path, task, more, model=model, training={"learning_rate": 1e-12})
    status, stdout, stderr = call("train", config, "--run", tmp_path / "run", "--init-from", parent)
    assert status == 0, stderr
    assert f"it starts from the weights of tiny-{task}" in stdout
    _, before, old_tokens, old_labels, _ = load_best(parent)
    _, after, tokens, labels, record = load_best(tmp_path / "run")
    assert record["parent"]["name"] == f"tiny-{task}"
    known, size = len(old_tokens), len(old_labels.names)
    assert tokens.tokens[:known] == old_tokens.tokens
    assert labels.names == [*old_labels.names, label]
    torch.testing.assert_close(after.embedding.weight[:known], before.embedding.weight)
    mean = before.embedding.weight[4:].mean(dim=0)
    torch.testing.assert_close(after.embedding.weight[known], mean)
    torch.testing.assert_close(after.output.weight[:size], before.output.weight)
    torch.testing.assert_close(after.output.weight[size], before.output.weight.mean(dim=0))
    if before.chain is not None and after.chain is not None:
        old, new = before.chain.transitions, after.chain.transitions
        torch.testing.assert_close(new[:size, :size], old)
        torch.testing.assert_close(new[size, :size], old.mean(dim=0))
        torch.testing.assert_close(new[size, size], old.mean())
    assert call("train", tmp_path / "run", "--resume")[0] == 0


@pytest.mark.parametrize(
    ("task", "sections", "message"),
    [
        ("classifier", {"data": {"several": True}}, "data.several is False in .* and True here"),
        ("classifier", {"model": {"pooling": "last"}}, "model.pooling is max in .* and last here"),
        ("tagger", {"data": {"outside": "V"}}, "data.outside is O in .* and V here"),
    ],
)
def test_another_reading_of_labels_is_refused(
    runs: Path, tmp_path: Path, task: str, sections: dict[str, Any], message: str
) -> None:
    config = load_config(files(tmp_path, task, **sections))
    with pytest.raises(ConfigError, match=message):
        open_starting_point(runs / task / "run").check(config)
