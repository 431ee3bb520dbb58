"""The TOML configuration: what is refused, and that the message says what is allowed."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.training.helpers import (
    tiny_document,
    tiny_encoder_decoder_document,
    tiny_infill_document,
    tiny_ngram_document,
    write_toml,
)
from training.config import (
    AdaptConfig,
    BaselineConfig,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderDataConfig,
    EncoderDecoderNetworkConfig,
    EncoderDecoderTrainingConfig,
    InfillConfig,
    LanguageModelConfig,
    LanguageModelDataConfig,
    LanguageModelNetworkConfig,
    LanguageModelTrainingConfig,
    NGramConfig,
    NGramLanguageModelConfig,
    NGramModelConfig,
    SpansConfig,
    TextSideConfig,
    load_config,
)

CONFIGS = sorted((Path(__file__).parents[2] / "training/configs").glob("*.toml"))
# These say themselves what they are.
SELF_EXPLANATORY = ("description", "title", "source", "license")


def refusal(tmp_path: Path, document: Mapping[str, Any]) -> str:
    path = write_toml(tmp_path / "config.toml", document)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


def refusal_of(tmp_path: Path, section: str, option: str, value: object) -> str:
    message = refusal(tmp_path, tiny_document(**{section: {option: value}}))
    assert f"config.toml: {section}.{option}: " in message
    return message


def test_a_good_configuration_loads(tmp_path: Path) -> None:
    config = load_config(write_toml(tmp_path / "config.toml", tiny_document()))
    assert isinstance(config, LanguageModelConfig)
    assert (config.name, config.training.steps, config.data.files) == ("tiny", 10, ["text.txt"])


def test_everything_but_a_name_the_files_and_the_steps_has_a_default(tmp_path: Path) -> None:
    document = {"name": "x", "data": {"files": ["a"]}, "training": {"steps": 1}}
    assert (
        load_config(write_toml(tmp_path / "config.toml", document)).model
        == LanguageModelNetworkConfig()
    )


@pytest.mark.parametrize(
    ("section", "allowed"),
    [
        ("data", LanguageModelDataConfig),
        ("model", LanguageModelNetworkConfig),
        ("training", LanguageModelTrainingConfig),
        ("ngram", NGramConfig),
        ("adapt", AdaptConfig),
        ("baselines", BaselineConfig),
    ],
)
def test_an_unknown_option_is_refused_and_its_neighbours_are_named(
    tmp_path: Path, section: str, allowed: type[BaseModel]
) -> None:
    message = refusal_of(tmp_path, section, "hiden_size", 3)
    assert message.endswith("no such option; there are " + ", ".join(allowed.model_fields))


def test_an_unknown_section_is_refused_and_its_neighbours_are_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, tiny_document() | {"trainig": {"steps": 1}})
    assert message.endswith(
        "trainig: no such option; there are " + ", ".join(LanguageModelConfig.model_fields)
    )


def test_without_their_sections_nothing_is_mixed_in_and_nothing_adapts(tmp_path: Path) -> None:
    config = load_config(write_toml(tmp_path / "config.toml", tiny_document()))
    assert isinstance(config, LanguageModelConfig)
    assert (config.ngram, config.adapt) == (None, None)


def test_an_empty_section_mixes_in_an_ngram_and_adapts(tmp_path: Path) -> None:
    document = tiny_document(ngram={}, adapt={})
    config = load_config(write_toml(tmp_path / "config.toml", document))
    assert isinstance(config, LanguageModelConfig)
    assert (config.ngram, config.adapt) == (NGramConfig(), AdaptConfig())


def test_an_unknown_normalization_is_refused_and_the_others_are_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, tiny_document(data={"normalization": {"nfd": True}}))
    assert message.endswith(
        "data.normalization.nfd: no such option; there are newlines, fold, lowercase, "
        "ascii_fold, nfc, strip"
    )


def test_every_mistake_has_a_line_of_its_own(tmp_path: Path) -> None:
    document = tiny_document(model={"cell": "elman"}, training={"steps": 0})
    assert [line.split(": ")[1] for line in refusal(tmp_path, document).splitlines()] == [
        "model.cell",
        "training.steps",
    ]


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("data", "files", "text.txt"),
        ("data", "files", [1]),
        ("data", "min_count", 1.5),
        ("model", "hidden_size", "64"),
        ("model", "tie_embeddings", 1),
        ("training", "steps", True),
        ("training", "learning_rate", "0.1"),
        ("training", "patience", 2.0),
    ],
)
def test_a_wrong_type_is_refused(tmp_path: Path, section: str, option: str, value: object) -> None:
    message = refusal(tmp_path, tiny_document(**{section: {option: value}}))
    assert f"config.toml: {section}.{option}" in message


def test_a_normalization_that_is_not_a_boolean_is_refused(tmp_path: Path) -> None:
    document = tiny_document(data={"normalization": {"lowercase": "no"}})
    assert "data.normalization.lowercase" in refusal(tmp_path, document)


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("data", "documents", "paragraph"),
        ("data", "min_count", 0),
        ("data", "valid_fraction", -0.1),
        ("data", "valid_fraction", 1.0),
        ("model", "cell", "LSTM"),
        ("model", "num_layers", 0),
        ("model", "dropout_input", 1.0),
        ("model", "weight_drop", -0.5),
        ("training", "steps", 0),
        ("training", "learning_rate", 0.0),
        ("training", "final_learning_rate_ratio", 1.1),
        ("training", "warmup_steps", -1),
        ("training", "restart_probability", 1.0),
        ("training", "order", "random"),
        ("training", "grad_clip_norm", 0.0),
        ("training", "ema_decay", 1.0),
        ("training", "patience", 0),
        ("training", "seed", -1),
        ("training", "device", "tpu"),
        ("baselines", "max_order", 9),
        ("ngram", "order", 1),
        ("ngram", "order", 11),
        ("ngram", "prune", -1e-9),
        ("ngram", "max_ngrams", 0),
        ("adapt", "rank", 0),
    ],
)
def test_a_value_out_of_range_is_refused(
    tmp_path: Path, section: str, option: str, value: object
) -> None:
    refusal_of(tmp_path, section, option, value)


def test_infinity_and_nan_are_refused(tmp_path: Path) -> None:
    for value in ("inf", "nan"):
        path = write_toml(tmp_path / "config.toml", tiny_document())
        path.write_text(
            path.read_text().replace("[training]", f"[training]\nlearning_rate = {value}")
        )
        with pytest.raises(ConfigError, match=r"training\.learning_rate"):
            load_config(path)


def test_fractions_that_leave_nothing_to_train_on_are_refused(tmp_path: Path) -> None:
    document = tiny_document(data={"valid_fraction": 0.5, "test_fraction": 0.5})
    assert "must leave a training split" in refusal(tmp_path, document)


def test_tied_embeddings_need_equal_sizes(tmp_path: Path) -> None:
    document = tiny_document(model={"tie_embeddings": True, "hidden_size": 8, "embedding_dim": 4})
    assert "tie_embeddings needs embedding_dim = hidden_size" in refusal(tmp_path, document)


def test_replicas_must_divide_the_batch(tmp_path: Path) -> None:
    document = tiny_document(training={"batch_size": 4, "replicas": 3})
    assert "batch_size must be a multiple of replicas" in refusal(tmp_path, document)


@pytest.mark.parametrize("name", ["", "Alice", "../alice", ".alice", "a b", "a" * 65])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    assert "config.toml: name: " in refusal(tmp_path, tiny_document() | {"name": name})


def test_a_missing_option_is_named(tmp_path: Path) -> None:
    document = tiny_document()
    del document["data"]["files"]
    assert "data: Value error, files or train_files must name" in refusal(tmp_path, document)
    del document["data"]
    assert refusal(tmp_path, document).endswith("data: Field required")


def test_a_text_in_a_configurations_place_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "my names.txt").write_text("Anna\nBert\n")
    with pytest.raises(ConfigError, match=r"training learn '.*my names\.txt'") as caught:
        load_config(tmp_path / "my names.txt")
    assert "\n" not in str(caught.value)


def test_bad_toml_is_refused_with_the_file_and_the_line(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('name = "x"\nsteps 3\n')
    with pytest.raises(ConfigError, match=r"config\.toml: .*line 2"):
        load_config(tmp_path / "config.toml")


def test_a_configuration_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b'# mine\nname = "\xff"')
    with pytest.raises(ConfigError, match=r"config\.toml, line 2, byte 16 of .*: not UTF-8"):
        load_config(tmp_path / "config.toml")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"No such file|Is a directory"):
        load_config(tmp_path / name)


# --- n-grams ------------------------------------------------------------------------------------


def test_a_configuration_of_an_ngram_has_its_options_and_nothing_to_train(tmp_path: Path) -> None:
    model = {"order": 4, "prune": 1e-7, "max_ngrams": 100}
    config = load_config(write_toml(tmp_path / "config.toml", tiny_ngram_document(model=model)))
    assert isinstance(config, NGramLanguageModelConfig)
    assert config.model == NGramModelConfig(cell="ngram", order=4, prune=1e-7, max_ngrams=100)
    assert (config.task, config.seed) == ("language_model", 0)


def test_an_ngram_has_the_defaults_of_the_section_of_a_mixture(tmp_path: Path) -> None:
    document = {"name": "x", "data": {"files": ["a"]}, "model": {"cell": "ngram"}}
    config = load_config(write_toml(tmp_path / "config.toml", document))
    assert config.model.model_dump(exclude={"cell"}) == NGramConfig().model_dump()


@pytest.mark.parametrize("section", ["training", "ngram", "adapt"])
def test_an_ngram_with_a_networks_section_is_refused(tmp_path: Path, section: str) -> None:
    message = refusal(tmp_path, tiny_ngram_document(**{section: {}}))
    sections = ", ".join(NGramLanguageModelConfig.model_fields)
    assert message.endswith(f"config.toml: {section}: no such option; there are {sections}")


@pytest.mark.parametrize(
    ("make", "option", "message"),
    [
        (tiny_ngram_document, "hidden_size", "there are order, prune, max_ngrams, cell"),
        (tiny_document, "order", "there are cell, num_layers, hidden_size, "),
    ],
)
def test_a_network_and_an_ngram_have_none_of_each_others_options(
    tmp_path: Path, make: Callable[..., dict[str, Any]], option: str, message: str
) -> None:
    found = refusal(tmp_path, make(model={option: 3}))
    assert f"config.toml: model.{option}: no such option; {message}" in found


@pytest.mark.parametrize(
    ("option", "value"), [("order", 1), ("order", 11), ("prune", -1.0), ("max_ngrams", 0)]
)
def test_a_value_of_an_ngram_out_of_range_is_refused(
    tmp_path: Path, option: str, value: object
) -> None:
    message = refusal(tmp_path, tiny_ngram_document(model={option: value}))
    assert f"config.toml: model.{option}: " in message


def test_pairs_have_no_ngram(tmp_path: Path) -> None:
    message = refusal(tmp_path, tiny_encoder_decoder_document(model={"cell": "ngram"}))
    assert "config.toml: model.cell: Input should be 'rnn', 'gru' or 'lstm'" in message


@pytest.mark.parametrize("model", ["lstm", 3, ["ngram"]])
def test_a_model_that_is_no_section_is_refused(tmp_path: Path, model: object) -> None:
    message = refusal(tmp_path, {**tiny_document(), "model": model})
    assert "config.toml: model: Input should be a valid dictionary" in message


# --- pairs --------------------------------------------------------------------------------------


def test_a_good_configuration_of_pairs_loads(tmp_path: Path) -> None:
    config = load_config(write_toml(tmp_path / "config.toml", tiny_encoder_decoder_document()))
    assert isinstance(config, EncoderDecoderConfig)
    assert (config.name, config.training.steps, config.data.files) == (
        "tiny-pairs",
        10,
        ["pairs.tsv"],
    )


def test_pairs_need_a_name_files_and_steps_and_no_more(tmp_path: Path) -> None:
    document = {
        "task": "encoder_decoder",
        "name": "x",
        "data": {"train_files": ["a"]},
        "training": {"steps": 1},
    }
    config = load_config(write_toml(tmp_path / "config.toml", document))
    assert config.model == EncoderDecoderNetworkConfig()


@pytest.mark.parametrize(
    ("task", "kind"),
    [("language_model", LanguageModelConfig), ("encoder_decoder", EncoderDecoderConfig)],
)
def test_the_task_says_what_is_trained(tmp_path: Path, task: str, kind: type) -> None:
    document = tiny_document() if kind is LanguageModelConfig else tiny_encoder_decoder_document()
    config = load_config(write_toml(tmp_path / "config.toml", {**document, "task": task}))
    assert type(config) is kind
    assert config.task == task


def test_without_a_task_it_is_a_language_models(tmp_path: Path) -> None:
    assert load_config(write_toml(tmp_path / "config.toml", tiny_document())).task == (
        "language_model"
    )


@pytest.mark.parametrize("task", ["seq2seq", "", 3])
@pytest.mark.parametrize("make", [tiny_document, tiny_encoder_decoder_document])
def test_an_unknown_task_is_one_mistake_that_names_all(
    tmp_path: Path, task: object, make: Callable[[], dict[str, Any]]
) -> None:
    message = refusal(tmp_path, {**make(), "task": task})
    assert message.endswith(
        'config.toml: task: it must be "language_model", "encoder_decoder", "infill", '
        '"classifier", "tagger" or "restore"'
    )
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("section", "allowed"),
    [
        ("data", EncoderDecoderDataConfig),
        ("model", EncoderDecoderNetworkConfig),
        ("training", EncoderDecoderTrainingConfig),
    ],
)
def test_an_unknown_option_of_pairs_is_refused_and_its_neighbours_are_named(
    tmp_path: Path, section: str, allowed: type[EncoderDecoderDataConfig]
) -> None:
    message = refusal(tmp_path, tiny_encoder_decoder_document(**{section: {"hiden_size": 3}}))
    assert message.endswith(
        f"{section}.hiden_size: no such option; there are {', '.join(allowed.model_fields)}"
    )


def test_an_unknown_option_of_a_side_is_refused_and_its_neighbours_are_named(
    tmp_path: Path,
) -> None:
    message = refusal(tmp_path, tiny_encoder_decoder_document(data={"source": {"language": "en"}}))
    assert message.endswith(
        f"data.source.language: no such option; there are {', '.join(TextSideConfig.model_fields)}"
    )
    normalization = {"normalization": {"nfd": True}}
    message = refusal(tmp_path, tiny_encoder_decoder_document(data={"target": normalization}))
    assert message.endswith("there are newlines, fold, lowercase, ascii_fold, nfc, strip")


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("data", "files", "pairs.tsv"),
        ("data", "extra_tests", ["pairs.tsv"]),
        ("data", "extra_tests", {"more": "pairs.tsv"}),
        ("data", "source", {"tokenization": "words"}),
        ("data", "source", {"vocab_size": 63}),
        ("data", "target", {"vocab_size": 65_001}),
        ("data", "max_source_tokens", 0),
        ("data", "max_length_ratio", 1.0),
        ("model", "encoder", "cnn"),
        ("model", "attention", "luong"),
        ("model", "pool_stride", 0),
        ("model", "conv_widths", [0]),
        ("model", "highway_layers", -1),
        ("model", "dropout_embedding", 1.0),
        ("training", "batch_size", 0),
        ("training", "label_smoothing", 1.0),
        ("training", "teacher_forcing", 1.1),
        ("training", "select_by", "accuracy"),
        ("training", "beam_size", 0),
        ("training", "max_valid_sources", 0),
        ("training", "show", -1),
        ("training", "bptt_len", 12),
    ],
)
def test_a_value_of_pairs_out_of_range_is_refused(
    tmp_path: Path, section: str, option: str, value: object
) -> None:
    message = refusal(tmp_path, tiny_encoder_decoder_document(**{section: {option: value}}))
    assert f"config.toml: {section}.{option}" in message


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("data", {"files": []}, "files or train_files must name something to train on"),
        ("data", {"valid_fraction": 0.5, "test_fraction": 0.5}, "must leave a training split"),
        (
            "data",
            {"share_vocab": True, "source": {"tokenization": "bpe"}},
            "share_vocab needs the same options in source and target",
        ),
        (
            "model",
            {"attention": "dot", "hidden_size": 12, "encoder_hidden_size": 8},
            'attention "dot" needs hidden_size = 2 · encoder_hidden_size',
        ),
        ("model", {"conv_widths": [1, 2]}, "conv_filters must have one number for each of"),
    ],
)
def test_options_of_pairs_that_contradict_each_other_are_refused(
    tmp_path: Path, section: str, options: dict[str, Any], message: str
) -> None:
    assert message in refusal(tmp_path, tiny_encoder_decoder_document(**{section: options}))


def test_sides_that_share_a_vocabulary_may_have_different_languages(tmp_path: Path) -> None:
    data = {"share_vocab": True, "source": {"lang": "en"}, "target": {"lang": "de"}}
    path = write_toml(tmp_path / "config.toml", tiny_encoder_decoder_document(data=data))
    config = load_config(path)
    assert isinstance(config, EncoderDecoderConfig)
    assert config.data.share_vocab


def test_a_batch_of_pairs_need_not_be_a_multiple_of_the_replicas(tmp_path: Path) -> None:
    document = tiny_encoder_decoder_document(training={"batch_size": 5, "replicas": 2})
    config = load_config(write_toml(tmp_path / "config.toml", document))
    assert isinstance(config, EncoderDecoderConfig)
    assert config.training.replicas == 2


# --- texts with blanks --------------------------------------------------------------------------


def test_an_experiment_on_blanks_is_one_on_pairs_that_are_never_stripped(tmp_path: Path) -> None:
    rules = {"lowercase": True}
    document = tiny_infill_document(data={"normalization": rules, "lang": "en"})
    config = load_config(write_toml(tmp_path / "config.toml", document))
    assert isinstance(config, InfillConfig)
    pairs = config.pairs
    assert (pairs.model, pairs.training) == (config.model, config.training)
    assert pairs.data.source == pairs.data.target
    assert (pairs.data.source.lang, pairs.data.share_vocab) == ("en", True)
    found = pairs.data.source.normalization
    assert (found.lowercase, found.nfc, found.strip) == (True, True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "spans.context"),
        ({"max_chars": 0}, "spans.max_chars"),
        ({"max_blanks": 0}, "spans.max_blanks"),
        ({"geometric_p": 0.0}, "spans.geometric_p"),
        ({"several_share": 1.5}, "spans.several_share"),
        ({"uniform_share": 0.6, "word_share": 0.6}, "uniform_share + word_share: at most 1"),
        ({"lenght": 3}, "no such option; there are " + ", ".join(SpansConfig.model_fields)),
    ],
)
def test_spans_that_cannot_be_drawn_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    assert message in refusal(tmp_path, tiny_infill_document(spans=options))


# --- what is shipped ----------------------------------------------------------------------------


def test_there_are_configurations_to_start_from() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads_under_its_own_name(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_option_of_a_shipped_configuration_has_a_comment(path: Path) -> None:
    bare = re.compile(r'(\w+) = (?:"[^"]*"|\[[^]]*\]|[^#"\[])*')
    uncommented = [match[1] for x in path.read_text().splitlines() if (match := bare.fullmatch(x))]
    assert [option for option in uncommented if option not in SELF_EXPLANATORY] == []
