"""What files hold, by their shape."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from training.config import ConfigError
from training.learn.recognize import recognize
from training.learn.sight import Kind, Sight

RNG = random.Random(1)
SYLLABLES = (
    "an",
    "be",
    "co",
    "da",
    "el",
    "fi",
    "go",
    "ha",
    "in",
    "jo",
    "ka",
    "lu",
    "mi",
    "no",
    "ro",
)
WORDS = tuple("".join(RNG.choices(SYLLABLES, k=RNG.randint(1, 3))) for _ in range(300))
PHONEMES = ("AH", "N", "R", "OW", "L", "B", "IY", "K", "D", "EH", "F", "G")


def words(count: int) -> str:
    return " ".join(RNG.choices(WORDS, k=count))


def wrapped(text: str, width: int = 60) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, line]


SOME_WORDS = [f"{i} {words(3)}" for i in range(100)]
NAMES = [word.capitalize() + RNG.choice(("", "ë")) for word in WORDS]
PASSWORDS = [f"{RNG.choice(WORDS)}{RNG.randint(1, 9999)}!" for _ in range(200)]
LOG = [f"2024-01-{i % 28 + 1:02d} 12:00:{i % 60:02d} INFO {words(6)}" for i in range(100)]
TABBED_LOG = [f"2024-01-02T12:00:{i % 60:02d}\t{words(6)}" for i in range(100)]
LEVELS = [f"{RNG.choice(('INFO', 'WARN'))}\t{words(6)}" for _ in range(100)]
LABELLED = [f"{words(4)}\t{RNG.choice(('de', 'en', 'fr'))}" for _ in range(100)]
RATED = [f"{words(4)}\t{RNG.randint(1, 5)}" for _ in range(100)]
LABEL_SETS = ("a", "b", "c", "a,b", "b,c", "a,c", "a,b,c", "")
SEVERAL = [f"{words(4)}\t{RNG.choice(LABEL_SETS)}" for _ in range(200)]
ALIGNED = [f"{text}\t{re.sub('[a-m]', 'X', re.sub('[^a-m]', 'O', text))}" for text in SOME_WORDS]
TIMED_LEVELS = [f"12:00:{i % 60:02d}\t{RNG.choice(('INFO', 'WARN'))}" for i in range(100)]
CODES = [f"{RNG.choice('ab')}\t{RNG.choice('cd')}" for _ in range(100)]
TAGGED = [x for _ in range(30) for x in (*(f"{w} B-X" for w in WORDS[:2]), "of O", "to O", "")]
NUMBERED = [f"{i}\t{words(4)}" for i in range(1, 101)]
WIDE = ["\t".join(words(1) for _ in range(5)) for _ in range(100)]
PROSE = wrapped(". ".join(words(12).capitalize() for _ in range(40)) + ".")
PARAGRAPHS = [x for _ in range(12) for x in (*wrapped(words(60)), "")]
POEM = [words(6).capitalize() + RNG.choice((",", ";", "")) for _ in range(60)]
PLAY = [x for _ in range(40) for x in (f"{RNG.choice(NAMES)}:", words(8).capitalize() + ".", "")]
LONG = [words(3000)]
CODE = [f"{'    ' * RNG.randint(0, 2)}{words(2)} = {RNG.randint(0, 9)}" for _ in range(100)]
QUERIES = [words(RNG.randint(1, 12)) for _ in range(200)]
SENTENCES = [words(RNG.randint(4, 14)).capitalize() + "." for _ in range(200)]
SYMBOL_PAIRS = [f"{word}\t{' '.join(RNG.choices(PHONEMES, k=len(word)))}" for word in WORDS]
TATOEBA = [f"{words(5)}.\t{words(6)}.\tCC-BY 2.0 Attribution: tatoeba.org #{i}" for i in range(100)]
DATES = [f"{i % 28 + 1} July {1900 + i}\t{1900 + i}-07-{i % 28 + 1:02d}" for i in range(100)]

SHAPES: dict[str, tuple[Sequence[str], Kind]] = {
    "names": (NAMES, "lines"),
    "passwords": (PASSWORDS, "lines"),
    "log lines": (LOG, "lines"),
    "log lines with tabs": (TABBED_LOG, "lines"),
    "a level and a message": (LEVELS, "labels"),
    "a text and its label": (LABELLED, "labels"),
    "a text and a rating": (RATED, "labels"),
    "a text and several labels": (SEVERAL, "labels"),
    "a text and a label a character": (ALIGNED, "tags"),
    "times and levels": (TIMED_LEVELS, "lines"),
    "two columns of few values": (CODES, "lines"),
    "numbered lines": (NUMBERED, "lines"),
    "a table of five columns": (WIDE, "lines"),
    "queries": (QUERIES, "lines"),
    "a sentence a line": (SENTENCES, "lines"),
    "names with one blank line": ([*NAMES[:200], "", *NAMES[200:]], "lines"),
    "wrapped prose": (PROSE, "file"),
    "paragraphs": (PARAGRAPHS, "file"),
    "a poem": (POEM, "file"),
    "a play": (PLAY, "file"),
    "one long line": (LONG, "file"),
    "code": (CODE, "file"),
    "words and phonemes": (SYMBOL_PAIRS, "pairs"),
    "sentences with attributions": (TATOEBA, "pairs"),
    "dates": (DATES, "pairs"),
    "pairs with a stray line": ([*DATES, "no tab"], "pairs"),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("form", ["plain", "CR LF and a BOM"])
def test_a_file_is_recognized_by_its_lines(name: str, form: str, tmp_path: Path) -> None:
    lines, kind = SHAPES[name]
    end, mark = ("\n", "") if form == "plain" else ("\r\n", "\ufeff")
    path = tmp_path / "data.txt"
    path.write_text(mark + end.join(lines) + end, encoding="utf-8", newline="")
    sight = recognize([path])
    assert (sight.kind, sight.characters) == (kind, len(set("".join(lines))))
    if kind != "file":
        assert sight.texts == sum(bool(line) for line in lines)


@pytest.mark.parametrize("kind", ["lines", "file"])
def test_what_a_person_says_overrules(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("\n".join(DATES))
    assert recognize([path], kind).kind == kind


@pytest.mark.parametrize(
    ("names", "aligned"),
    [
        (("train.en", "train.de"), True),
        (("train.en.txt", "train.de.txt"), True),
        (("x.src", "x.tgt"), True),
        (("source.txt", "target.txt"), True),
        (("first names.txt", "last names.txt"), False),
        (("a.txt", "b.txt"), False),
    ],
)
def test_two_files_are_two_sides_by_their_names_and_lines(
    names: tuple[str, str], *, aligned: bool, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("\n".join(words(5) for _ in range(50)) + "\n")
    paths = [tmp_path / name for name in names]
    sight = recognize(paths)
    assert (sight.kind == "pairs", sight.aligned) == (aligned, aligned)
    assert aligned or "--as pairs" in str(sight.hint)
    assert recognize(paths, "pairs").aligned
    paths[1].write_text("one line\n")
    assert recognize(paths).kind == "lines"
    with pytest.raises(ConfigError, match=r"50 lines and .* has 1"):
        recognize(paths, "pairs")


def test_languages_are_taken_from_the_names_of_two_files(tmp_path: Path) -> None:
    for name in ("train.en", "train.de"):
        (tmp_path / name).write_text("one\ntwo\n")
    sight = recognize([tmp_path / "train.en", tmp_path / "train.de"])
    assert sight.source is not None
    assert sight.target is not None
    assert (sight.source.lang, sight.target.lang) == ("en", "de")


def test_a_side_is_characters_symbols_or_subwords(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    prose = [f"{words(12)}\t{words(12)}" for _ in range(2500)]
    for lines, expected in (
        (SYMBOL_PAIRS, ("character", "whitespace")),
        (DATES, ("character", "character")),
        (prose, ("bpe", "bpe")),
        (prose[:300], ("character", "character")),
    ):
        path.write_text("\n".join(lines))
        sight = recognize([path])
        assert sight.source is not None
        assert sight.target is not None
        assert (sight.source.tokenization, sight.target.tokenization) == expected


def test_a_folder_is_its_texts_and_hidden_files_are_none(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".hidden.txt", "notes.pdf", "deep/c.txt"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\r\n".join(PARAGRAPHS))
    sight = recognize([tmp_path / "texts"])
    assert [path.name for path in sight.files] == ["a.txt", "b.txt", "c.txt"]
    assert (sight.kind, sight.texts) == ("file", 3)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "windows.txt").write_bytes("Zoë\n".encode("cp1252") * 50)
    (tmp_path / "folder").mkdir()
    for name, expected in (
        ("empty.txt", "there is no text in it"),
        ("missing.txt", "no such file"),
        ("folder", "holds no files"),
        ("windows.txt", "windows.txt.*UTF-8"),
    ):
        with pytest.raises(ConfigError, match=expected) as raised:
            recognize([tmp_path / name])
        assert "\n" not in str(raised.value)
    (tmp_path / "plain.txt").write_text("no tabs\n" * 50)
    with pytest.raises(ConfigError, match="no line has a tab"):
        recognize([tmp_path / "plain.txt"], "pairs")


def test_commas_between_columns_are_told_apart_from_tabs(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("\n".join(LABELLED).replace("\t", ",") + "\n")
    assert "put tabs between them" in str(recognize([path]).hint)


# --- labels -------------------------------------------------------------------------------------


def seen(folder: Path, lines: Sequence[str], kind: Kind | None = None) -> Sight:
    (folder / "data.tsv").write_text("\n".join(lines) + "\n")
    return recognize([folder / "data.tsv"], kind)


def test_a_column_of_labels_is_first_or_second(tmp_path: Path) -> None:
    last = seen(tmp_path, LABELLED)
    assert (last.labelled.options, last.labelled.names) == ({}, 3)
    first = seen(tmp_path, LEVELS)
    assert (first.labelled.options, first.labelled.names) == ({"label_first": True}, 2)
    assert "--as pairs" in str(first.hint)
    assert seen(tmp_path, LABELLED, "pairs").kind == "pairs"


def test_labels_with_commas_between_them_are_several(tmp_path: Path) -> None:
    found = seen(tmp_path, SEVERAL).labelled
    assert (found.options, found.names) == ({"several": True}, 3)
    cities = [line.replace("de", "Ulm, Bavaria") for line in LABELLED]
    assert seen(tmp_path, cities).labelled.options == {}


def test_words_with_labels_in_the_last_column_are_tags(tmp_path: Path) -> None:
    sight = seen(tmp_path, TAGGED)
    assert (sight.kind, sight.texts, sight.labelled.options) == ("tags", 30, {"form": "columns"})
    assert seen(tmp_path, ALIGNED).labelled.options == {"form": "aligned"}


def test_few_labelled_texts_are_taken_where_a_person_says_so(tmp_path: Path) -> None:
    few = [f"{i} {words(2)}\t{i % 3}" for i in range(30)]
    assert seen(tmp_path, few).kind != "labels"
    assert seen(tmp_path, few, "labels").labelled.names == 3
    assert seen(tmp_path, TAGGED[:14], "tags").kind == "tags"
    with pytest.raises(ConfigError, match="there are no labels"):
        seen(tmp_path, SENTENCES, "labels")
    with pytest.raises(ConfigError, match="no labels of words"):
        seen(tmp_path, SENTENCES, "tags")


def test_a_folder_of_folders_is_labels_where_each_has_many_texts(tmp_path: Path) -> None:
    for label in ("spam", "mail"):
        (tmp_path / "all" / label).mkdir(parents=True)
        for i in range(12):
            (tmp_path / "all" / label / f"{i}.txt").write_text(f"{words(9)}\n{words(9)}\n")
    sight = recognize([tmp_path / "all"])
    assert (sight.kind, sight.texts, sight.files) == ("labels", 24, [tmp_path / "all"])
    assert sight.labelled.options == {"form": "folders", "documents": "file"}
    for path in (tmp_path / "all").glob("*/1*.txt"):
        path.unlink()
    assert recognize([tmp_path / "all"]).kind != "labels"
    asked = recognize([tmp_path / "all"], "labels")
    assert (asked.texts, asked.labelled.options["documents"]) == (36, "line")


@pytest.mark.parametrize(("lines", "documents"), [(QUERIES, "line"), (PARAGRAPHS, "file")])
def test_any_text_can_be_asked_for_its_accents(
    tmp_path: Path, lines: Sequence[str], documents: str
) -> None:
    sight = seen(tmp_path, lines, "accents")
    assert sight.kind == "accents"
    assert sight.labelled.options == {"documents": documents, "loss": ["accents"]}
