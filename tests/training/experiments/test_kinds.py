"""One table of the kinds of model; nothing else asks of which kind a thing is."""

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import training
from tests.training.helpers import (
    Main,
    tiny_document,
    tiny_encoder_decoder_document,
    tiny_infill_document,
    tiny_ngram_document,
    write_toml,
)
from tests.training.labelled import tiny_labeler_document
from training.config import ConfigError, LanguageModelConfig, parse_config
from training.experiments.counts import in_words
from training.experiments.kinds import experiment_of, trained_experiment_of
from training.experiments.language_model import LanguageModelExperiment

KIND_WORDS = ("Config", "Corpus", "Manifest", "Bundle", "Task")
DOCUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "language_model": tiny_document,
    "ngram": tiny_ngram_document,
    "encoder_decoder": tiny_encoder_decoder_document,
    "infill": tiny_infill_document,
    "classifier": partial(tiny_labeler_document, "classifier"),
    "tagger": partial(tiny_labeler_document, "tagger"),
    "restore": partial(tiny_labeler_document, "restore"),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_configuration_has_the_experiment_of_its_kind(kind: str) -> None:
    config = parse_config(DOCUMENTS[kind]())
    experiment = experiment_of(config)
    assert experiment.config is config
    assert config.kind == kind


@pytest.mark.parametrize(
    ("sections", "name"), [({}, "tiny"), ({"ngram": {}}, "tiny, network alone")]
)
def test_the_figures_of_a_run_say_what_they_are_of(sections: dict[str, Any], name: str) -> None:
    config = LanguageModelConfig.model_validate(tiny_document(**sections))
    assert LanguageModelExperiment(config).run_name() == name


def test_an_ngram_is_not_trained_step_by_step() -> None:
    with pytest.raises(ConfigError, match=r"tiny-ngram: it is counted, .* no \[training\]"):
        trained_experiment_of(parse_config(tiny_ngram_document()))


def type_checks() -> Iterator[str]:
    """The types that `isinstance` is asked for anywhere in training."""
    for path in Path(training.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                yield f"{path.name}: {ast.unparse(node.args[1])}"


def test_no_code_asks_of_which_kind_a_thing_is() -> None:
    found = [x for x in type_checks() if any(word in x for word in KIND_WORDS)]
    assert found == []


@pytest.mark.parametrize(
    ("document", "command", "message"),
    [
        (tiny_document(), "translate", "a language model; `sample` is its command"),
        (
            tiny_encoder_decoder_document(),
            "sample",
            "an encoder-decoder; `translate` is its command",
        ),
    ],
)
def test_the_command_of_another_kind_names_the_right_one(
    tmp_path: Path, call: Main, document: Mapping[str, Any], command: str, message: str
) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    (tmp_path / "pairs.tsv").write_text("".join(f"a{i}b\tb{i}a\n" for i in range(60)))
    training = {**document["training"], "steps": 1, "eval_every": 1}
    config = write_toml(tmp_path / "tiny.toml", {**document, "training": training})
    assert call("train", config, "--run", tmp_path / "run")[0] == 0
    text = ["text"] if command == "translate" else []
    status, _, stderr = call(command, tmp_path / "run", *text)
    assert (status, stderr) == (1, f"error: {tmp_path / 'run'}: {message}\n")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"files": 1, "lines": 12}, "1 file, 12 lines"),
        ({"files": 2, "dropped: blank": 1000}, "2 files, 1,000 dropped (blank)"),
        (
            {"dropped: no tab": 1, "train": 5, "read": 8, "valid": 2},
            "8 read, 1 dropped (no tab), 5 to train, 2 to validate",
        ),
    ],
)
def test_counts_begin_with_what_was_read_and_end_with_the_splits(
    counts: dict[str, int], words: str
) -> None:
    assert in_words(counts) == words


def test_runs_of_different_kinds_are_not_mixed(tmp_path: Path, call: Main) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    (tmp_path / "pairs.tsv").write_text("".join(f"a{i}b\tb{i}a\n" for i in range(60)))
    documents = (tiny_ngram_document(), tiny_encoder_decoder_document(training={"steps": 1}))
    text, pairs = tmp_path / "text", tmp_path / "pairs"
    for document, run in zip(documents, (text, pairs), strict=True):
        config = write_toml(tmp_path / "tiny.toml", document)
        assert call("train", config, "--run", run)[0] == 0
    models = ("--models", tmp_path / "models")
    messages = {
        (text, pairs): f"{pairs}: an encoder-decoder, which cannot be mixed with a language model",
        (pairs, text): f"{text}: a language model, which cannot be mixed with an encoder-decoder",
        (pairs, pairs): f"{pairs}: encoder-decoders are not mixed; export one run",
        (text, tmp_path): f"{tmp_path}: there is no run in this folder",
    }
    for runs, message in messages.items():
        assert call("export", *runs, *models) == (1, "", f"error: {message}\n")
    assert not (tmp_path / "models").exists()
