"""`python -m training` on pairs, from files to a bundle that reads back."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.files import BundleError
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
from training.data.pairs import PairCorpus, prepare_pairs
from training.data.stored_pairs import load_pairs
from training.export.encoder_decoder import EXAMPLES, gate
from training.export.gate import MAX_QUANTIZATION_LOSS
from training.loop.encoder_decoder import load_best

TRAINING = {"steps": 30, "eval_every": 15, "learning_rate": 0.02, "select_by": "exact_match"}
MORE = "".join(f"{a}{b}\t{b}{a}\n" for a in "abc" for b in "xyz")


def configured(folder: Path, text: str = BACKWARDS, **sections: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.tsv").write_text(text)
    (folder / "more.tsv").write_text(MORE)
    data = {"extra_tests": {"more": ["more.tsv"]}, "title": "Words", **sections.pop("data", {})}
    training = {**TRAINING, **sections.pop("training", {})}
    document = tiny_encoder_decoder_document(data=data, training=training, **sections)
    return write_toml(folder / "tiny.toml", document)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, its finished run and its bundle."""
    folder = tmp_path_factory.mktemp("pairs")
    run = str(folder / "run")
    assert main(["train", str(configured(folder)), "--run", run]) == 0
    assert main(["export", run, "--models", str(folder / "models")]) == 0
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def bundle(made: Path) -> EncoderDecoderBundle:
    found = read_bundle(made / "models/tiny-pairs")
    assert isinstance(found, EncoderDecoderBundle)
    return found


@pytest.fixture(scope="module")
def corpus(made: Path) -> PairCorpus:
    config, *_ = load_best(made / "run")
    return prepare_pairs(config.data, made)


def assert_refused(found: tuple[int, str, str], *parts: str) -> None:
    status, _, stderr = found
    assert status == 1
    *_, line = stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in stderr
    for part in parts:
        assert part in line


# --- train, evaluate, translate, baselines ------------------------------------------------------


def test_training_says_how_the_pairs_are_split_and_ends_with_a_table(
    tmp_path: Path, call: Main
) -> None:
    status, stdout, _ = call("train", configured(tmp_path), "--run", tmp_path / "run")
    assert status == 0
    first, *rest = stdout.splitlines()
    assert first.startswith("tiny-pairs: pairs: ")
    assert {"test: ", "more: "} <= {x.split(" ")[0] + " " for x in rest}
    names = ["greedy", "beam 2", "copy", "nearest source"]
    assert [x for x in (line.split("  ")[0] for line in rest) if x in names] == names * 2


def test_what_the_run_keeps_is_what_the_table_shows(made: Path, call: Main) -> None:
    metrics = json.loads((made / "run/metrics.json").read_text())["pairs"]
    assert [x["split"] for x in metrics] == ["test", "more"]
    _, stdout, _ = call("evaluate", made / "run")
    for part in metrics:
        for x in part["measurements"]:
            cells = "".join(f"{value:>19.4f}" for value in x["values"].values())
            assert cells in stdout


@pytest.mark.parametrize("split", ["train", "valid", "test", "more"])
def test_every_split_can_be_evaluated(made: Path, call: Main, split: str) -> None:
    status, stdout, _ = call("evaluate", made / "run", "--split", split)
    assert status == 0
    assert [x.split(": ")[0] for x in stdout.splitlines() if x.endswith(" pairs")] == [split]


def test_a_split_that_is_not_there_is_told_with_those_that_are(made: Path, call: Main) -> None:
    found = call("evaluate", made / "run", "--split", "all")
    assert_refused(found, "--split: there are train, valid, test, more")


def test_translating_gives_a_line_for_each_text(made: Path, call: Main) -> None:
    status, stdout, _ = call("translate", made / "run", "fox", " grapes ", "--beam-size", 3)
    assert status == 0
    lines = stdout.splitlines()
    assert len(lines) == 2
    assert call("translate", made / "run", "grapes", "--beam-size", 3)[1].splitlines() == lines[1:]


def test_baselines_need_no_run(tmp_path: Path, call: Main) -> None:
    status, stdout, _ = call("baselines", configured(tmp_path), "--run", tmp_path / "run")
    assert status == 0
    assert [line.split("  ")[0] for line in stdout.splitlines()[3:5]] == ["copy", "nearest source"]


def test_a_run_on_pairs_has_no_samples(made: Path, call: Main) -> None:
    assert_refused(call("sample", made / "run"), "an encoder-decoder; `translate` is its command")


def test_a_language_models_run_has_no_translations(tmp_path: Path, call: Main) -> None:
    (tmp_path / "text.txt").write_text(FABLE)
    config = write_toml(tmp_path / "tiny.toml", tiny_document(training={"steps": 1}))
    assert call("train", config, "--run", tmp_path / "run")[0] == 0
    found = call("translate", tmp_path / "run", "fox")
    assert_refused(found, "a language model; `sample` is its command")


@pytest.mark.parametrize("command", ["evaluate", "translate", "export"])
def test_a_run_needs_nothing_but_its_folder(
    copied: Path, tmp_path: Path, call: Main, command: str
) -> None:
    texts = ["QUICK"] if command == "translate" else []
    before = call(command, copied / "run", *texts)[:2] if command != "export" else None
    (copied / "run").rename(tmp_path / "moved")
    shutil.rmtree(copied)
    models = ["--models", tmp_path / "models"] if command == "export" else []
    found = call(command, tmp_path / "moved", *texts, *models)
    assert found[0] == 0
    assert before is None or found[:2] == before


def test_prepared_pairs_are_the_pairs(made: Path, corpus: PairCorpus) -> None:
    config, *_ = load_best(made / "run")
    opened = load_pairs(config.data, made / "run/pairs.json")
    assert (opened.sha256, opened.counts) == (corpus.sha256, corpus.counts)
    for mine, other in zip(
        (opened.train, opened.valid, *opened.tests),
        (corpus.train, corpus.valid, *corpus.tests),
        strict=True,
    ):
        assert (mine.name, list(mine.pairs)) == (other.name, list(other.pairs))
        assert list(map(list, mine.sources)) == list(map(list, other.sources))
        assert list(map(list, mine.targets)) == list(map(list, other.targets))


def test_damaged_pairs_are_refused(copied: Path, call: Main) -> None:
    path = copied / "run/pairs.json"
    path.write_bytes(path.read_bytes().replace(b"fox", b"cat", 1))
    assert_refused(call("evaluate", copied / "run"), "pairs.json: damaged")


# --- export -------------------------------------------------------------------------------------


def test_a_bundle_says_what_the_run_was(bundle: EncoderDecoderBundle, corpus: PairCorpus) -> None:
    manifest = bundle.manifest
    assert (manifest.name, manifest.task) == ("tiny-pairs", "encoder_decoder")
    assert manifest.data.sha256 == corpus.sha256
    assert (manifest.data.name, manifest.data.train_pairs) == ("Words", len(corpus.train))
    assert manifest.model.parameters > 0
    assert manifest.training.config["name"] == "tiny-pairs"
    assert {x.precision for x in manifest.golden} == {x.precision for x in manifest.graphs}
    assert [(x.role, x.precision) for x in manifest.graphs][:2] == [
        ("encoder", "fp32"),
        ("decoder", "fp32"),
    ]


def test_a_bundle_has_the_tokenizers_of_the_run(
    bundle: EncoderDecoderBundle, corpus: PairCorpus
) -> None:
    for mine, its in ((bundle.source, corpus.source), (bundle.target, corpus.target)):
        assert mine.tokens == its.tokens
        assert mine.encode("fox?").tolist() == its.encode("fox?").tolist()


def test_examples_are_held_out_and_nobody_picks_them(
    bundle: EncoderDecoderBundle, corpus: PairCorpus
) -> None:
    examples = bundle.manifest.examples
    references = corpus.held_out[0].references
    assert len(examples) == min(EXAMPLES, len(references))
    for example in examples:
        assert references[example.source] == example.targets
    assert [x.source for x in examples] != sorted(x.source for x in examples)


def test_metrics_are_the_runs_and_the_loss_of_each_precision(
    made: Path, bundle: EncoderDecoderBundle
) -> None:
    first, second = bundle.manifest.metrics
    kept = json.loads((made / "run/metrics.json").read_text())["pairs"]
    assert [x.model_dump() for x in first.measurements[:-2]] == kept[0]["measurements"]
    assert second.model_dump() == kept[1]
    greedy, fp32, int8 = first.measurements[0], *first.measurements[-2:]
    assert (fp32.name, int8.name) == (
        "fp32, onnxruntime, first pairs",
        "int8, onnxruntime, first pairs",
    )
    assert fp32.values["loss"] == pytest.approx(greedy.values["loss"], abs=1e-5)


def test_a_bundle_of_pairs_is_no_language_models(made: Path) -> None:
    with pytest.raises(BundleError, match="its kind is encoder_decoder, not language_model"):
        read_language_model(made / "models/tiny-pairs")


def test_a_bundle_may_have_another_name(made: Path, tmp_path: Path, call: Main) -> None:
    assert call("export", made / "run", "--models", tmp_path, "--name", "other")[0] == 0
    assert read_bundle(tmp_path / "other").manifest.name == "other"


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"share_vocab": True, "test_fraction": 0.0, "extra_tests": {}}},
        {
            "data": {
                "source": {"tokenization": "bpe", "vocab_size": 64, "lang": "x"},
                "target": {"tokenization": "whitespace"},
            },
            "model": {"encoder": "crnn", "cell": "gru", "attention": "additive"},
        },
        {"model": {"cell": "rnn", "attention": "none", "input_feeding": True}},
    ],
    ids=["shared", "subwords", "rnn"],
)
def test_every_kind_of_run_becomes_a_bundle(
    tmp_path: Path, call: Main, sections: dict[str, Mapping[str, Any]]
) -> None:
    pairs = [line.split("\t") for line in BACKWARDS.splitlines()]
    text = "".join(f"{source}\t{' '.join(target)}\n" for source, target in pairs)
    config = configured(tmp_path, text, **sections, training={"steps": 5, "eval_every": 5})
    assert call("train", config, "--run", tmp_path / "run")[0] == 0
    assert call("export", tmp_path / "run", "--models", tmp_path / "models")[0] == 0
    found = read_bundle(tmp_path / "models/tiny-pairs")
    assert isinstance(found, EncoderDecoderBundle)
    crnn = sections.get("model", {}).get("encoder") == "crnn"
    assert found.manifest.memory_stride == (2 if crnn else 1)


def test_without_metrics_they_are_measured(made: Path, copied: Path, call: Main) -> None:
    kept = (made / "run/metrics.json").read_text()
    (copied / "run/metrics.json").unlink()
    assert call("export", copied / "run", "--models", copied / "models")[0] == 0
    assert json.loads((copied / "run/metrics.json").read_text()) == json.loads(kept)


@pytest.mark.parametrize(
    ("worse_bits", "precision"),
    [
        (-0.1, "int8"),
        (MAX_QUANTIZATION_LOSS * 0.99, "int8"),
        (MAX_QUANTIZATION_LOSS * 1.01, "fp32"),
        (float("nan"), "fp32"),
    ],
)
def test_eight_bits_are_served_where_they_cost_little(worse_bits: float, precision: str) -> None:
    nats = worse_bits * 0.6931471805599453
    assert gate({"fp32": 1.0, "int8": 1.0 + nats}) == precision
