"""`--set`: how words become options and values, and what is refused."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import tiny_document, write_toml
from training.config import ConfigError, load_config
from training.config_changes import as_word, read_changes, read_single_changes, render


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("256", [256]),
        ("256,512", [256, 512]),
        (" 3e-3 , 0.01", [0.003, 0.01]),
        ("true,false", [True, False]),
        ("lstm,gru", ["lstm", "gru"]),
        ('lstm,"gru"', ["lstm", "gru"]),
        ('\'a, b\',"c\\"d"', ["a, b", 'c"d']),
        ('["accents","case"],["case"]', [["accents", "case"], ["case"]]),
        ("[1,[2,3]]", [[1, [2, 3]]]),
        ('""', [""]),
        ("data/text-*.txt", ["data/text-*.txt"]),
        ("two words", ["two words"]),
        ("C#", ["C#"]),
        ("a=b", ["a=b"]),
        ('"1","true"', ["1", "true"]),
    ],
)
def test_values_are_those_of_toml_and_words_need_no_quotes(text: str, values: list[Any]) -> None:
    (found,) = read_changes([f"some.option={text}"]).values()
    assert found == values
    assert [type(x) for x in found] == [type(x) for x in values]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.hidden_size"], "write KEY=VALUE"),
        (["=3"], "write KEY=VALUE"),
        (["model..size=3"], "write KEY=VALUE"),
        (["a=1", "a=2"], "--set a: it is given twice"),
        (["a="], "--set a: a value is missing"),
        (["a=1,,2"], "--set a: a value is missing"),
        (["a=1,"], "--set a: a value is missing"),
        (["a=[1,2"], "[1,2: not a TOML value; is a quote or bracket missing?"),
        (["a='x"], "is a quote or bracket missing?"),
        (["a=don't"], "must be quoted"),
        (["a=x]"], "must be quoted"),
        (["a=x\ny"], "must be quoted"),
        (["a=2024-01-01"], "a date or a time, which no option takes"),
        (["a=[08:15:00]"], "a date or a time, which no option takes"),
        (["a=True"], 'write true, or "True" for a text'),
    ],
    ids=str,
)
def test_a_likely_mistake_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_changes(words)
    assert message in str(caught.value)


def test_a_single_run_takes_single_values() -> None:
    assert read_single_changes(["a=1", "b=[1,2]"]) == {"a": 1, "b": [1, 2]}
    with pytest.raises(ConfigError, match="it has 2 values, which `sweep` trains one by one"):
        read_single_changes(["a=1,2"])


@pytest.mark.parametrize("value", [1, 2.5e-7, True, "a", 'q"\\,\x7f', ["x", "y"]], ids=repr)
def test_a_word_is_read_as_it_was_written(value: Any) -> None:
    assert read_changes([as_word("a", value)]) == {"a": [value]}


def test_a_rendered_document_is_read_as_it_was() -> None:
    document = {**tiny_document(), "odd": {"a b": {"ü": ['"', "\n"]}}}
    assert tomllib.loads(render("one\ntwo", document)) == document


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.cell=foo", "--set model.cell=\"foo\": model.cell: Input should be 'rnn'"),
        ("model.hidden_size=0", "--set model.hidden_size=0: model.hidden_size: Input should be"),
        ("model.hiden_size=3", "--set model.hiden_size=3: model.hiden_size: no such option; there"),
        ("modell.cell=3", "--set modell.cell=3: modell: no such option; there are task, name"),
        ("data.files.x=3", "--set data.files.x: files is an option, not a section"),
        ("model.tie_embeddings=true", "tiny.toml with model.tie_embeddings=true: model: Value err"),
    ],
)
def test_a_mistake_is_placed_where_it_was_made(tmp_path: Path, word: str, message: str) -> None:
    path = write_toml(tmp_path / "tiny.toml", tiny_document())
    with pytest.raises(ConfigError) as caught:
        load_config(path, read_single_changes([word]))
    assert message in str(caught.value)


def test_a_section_that_the_file_lacks_is_added(tmp_path: Path) -> None:
    path = write_toml(tmp_path / "tiny.toml", tiny_document())
    config = load_config(path, {"ngram.order": 4})
    assert config.model_dump()["ngram"]["order"] == 4
