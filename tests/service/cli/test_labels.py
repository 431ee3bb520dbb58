"""`classify` and `tag` of the command line, on bundles in this process."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from service.bundle.store import write_bundle
from service.cli import commands as cli
from service.cli.bundle import Bundle
from service.cli.commands import _marked
from tests.labelers import Sort, tiny_labeler_files

SORTS: tuple[Sort, ...] = ("text", "several", "forward", "chain", "restore")
TEXT = "a bad idea"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    for sort in SORTS:
        write_bundle(made, *tiny_labeler_files(sort))
    return made


@pytest.fixture
def printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """A command's lines; it must succeed."""

    def run(command: str, sort: Sort, *arguments: str) -> list[str]:
        assert cli.run([command, "--bundle", str(folder / f"tiny-{sort}"), *arguments]) == 0
        return capfd.readouterr().out.split("\n")[:-1]

    return run


def answered(folder: Path, sort: Sort, path: str, **body: Any) -> Any:
    """The same through the wire's models."""
    bundle = Bundle(folder / f"tiny-{sort}")
    try:
        return bundle.ask(path, {"text": TEXT, **body})
    finally:
        bundle.close()


def test_the_likeliest_label_is_printed_unless_more_are_asked_for(
    printed: Any, folder: Path
) -> None:
    labels = answered(folder, "text", "/classify")["results"][0]["labels"]
    rows = [f"{x['probability']:.4f}\t{x['label']}\t{TEXT}" for x in labels]
    assert printed("classify", "text", TEXT) == rows[:1]
    assert printed("classify", "text", "--top", "2", TEXT) == rows[:2]
    assert printed("classify", "text", "--min-probability", "0", TEXT) == rows
    assert printed("classify", "text", "--min-probability", "1", TEXT, "b") == [
        f"-\t\t{TEXT}",
        "-\t\tb",
    ]
    head, *table = printed("classify", "text", "--top", "3", "--format", "tsv", TEXT)
    assert head == "text\trank\tprobability\tlogprob\tlabel"
    assert [row.split("\t")[-1] for row in table] == [x["label"] for x in labels]


def test_a_label_is_scored_with_its_probability(printed: Any, folder: Path) -> None:
    labels = answered(folder, "text", "/classify")["results"][0]["labels"]
    for each in labels:
        row = f"{each['probability']:.4f}\t{TEXT}"
        assert printed("score", "text", "--label", each["label"], TEXT) == [row]
    last = labels[-1]
    (line,) = printed("score", "text", "--label", last["label"], "--format", "json", TEXT)
    assert json.loads(line)["logprob"] == last["logprob"]


def test_json_has_all_that_was_answered(printed: Any, folder: Path) -> None:
    (line,) = printed("classify", "forward", "--steps", "--format", "json", TEXT)
    wanted = answered(folder, "forward", "/classify", steps=True, top=1)["results"][0]
    assert json.loads(line) == {"text": TEXT, **wanted}
    assert len(wanted["steps"]) == len(TEXT)
    (line,) = printed("tag", "chain", "--places", "--top", "2", "--format", "json", TEXT)
    wanted = answered(folder, "chain", "/tag", places=True, top=2)["results"][0]
    assert json.loads(line) == {"sent": TEXT, **wanted}


def test_a_restored_text_stands_alone(printed: Any, folder: Path) -> None:
    answer = answered(folder, "restore", "/tag", n=2)
    assert answer["restored"] is True
    (result,) = answer["results"]
    assert printed("tag", "restore", TEXT) == [result["text"]]
    assert result["text"] != TEXT
    both = [result["text"], result["alternatives"][0]["text"]]
    assert printed("tag", "restore", "-n", "2", TEXT) == both


def test_tags_are_marked_in_the_text_and_rows_of_a_table(printed: Any, folder: Path) -> None:
    answer = answered(folder, "chain", "/tag")
    assert answer["restored"] is False
    tags = answer["results"][0]["tags"]
    assert tags
    (line,) = printed("tag", "chain", TEXT)
    for tag in tags:
        assert f"[{TEXT[tag['start'] : tag['end']]}]({tag['label']})" in line
    head, *rows = printed("tag", "chain", "--format", "tsv", TEXT)
    assert head == "text\trank\tstart\tend\tprobability\tlabel\ttagged"
    assert [row.split("\t")[-1] for row in rows] == [TEXT[x["start"] : x["end"]] for x in tags]


def test_a_marked_text_keeps_what_is_between_its_tags() -> None:
    tags = [{"start": 0, "end": 2, "label": "x"}, {"start": 5, "end": 6, "label": "y"}]
    assert _marked({"text": "ab cd🐇 e", "tags": tags}, False) == "[ab](x) cd[🐇](y) e"
    assert _marked({"text": "ab", "tags": tags[:1]}, True) == "ab"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("classify text --top 0", "--top: Input should be "),
        ("classify text --min-probability 2", "--min-probability: Input should be "),
        ("classify text --steps", "--steps: "),
        ("classify chain", "this model does not classify texts; it answers /tag"),
        ("tag chain --n 1000", "--n: "),
        ("tag chain --top 2", "top needs places: true"),
        ("score text --label nothing", "--label: "),
        ("score text", "this model does not score texts; it answers /classify"),
        ("tag text", "this model does not tag texts; it answers /classify"),
    ],
)
def test_what_is_wrong_is_named_as_its_flag(
    folder: Path, capfd: pytest.CaptureFixture[str], asked: str, words: str
) -> None:
    command, sort, *arguments = asked.split()
    assert cli.run([command, "--bundle", str(folder / f"tiny-{sort}"), *arguments, TEXT]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_lines_of_standard_input_are_labelled_as_they_come(
    printed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a bad idea\n\nabide\n")
    with path.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        lines = printed("classify", "several")
    assert [line.split("\t")[2] for line in lines] == ["a bad idea", "", "abide"]
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert lines == printed("classify", "several", "a bad idea", "", "abide")
