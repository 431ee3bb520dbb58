"""What files hold, by their shape."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from training.config import ConfigError
from training.learn.recognize import Kind, recognize

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


NAMES = [word.capitalize() + RNG.choice(("", "ë")) for word in WORDS]
PASSWORDS = [f"{RNG.choice(WORDS)}{RNG.randint(1, 9999)}!" for _ in range(200)]
LOG = [f"2024-01-{i % 28 + 1:02d} 12:00:{i % 60:02d} INFO {words(6)}" for i in range(100)]
TABBED_LOG = [f"2024-01-02T12:00:{i % 60:02d}\t{words(6)}" for i in range(100)]
LEVELS = [f"{RNG.choice(('INFO', 'WARN'))}\t{words(6)}" for _ in range(100)]
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
    "a level and a message": (LEVELS, "lines"),
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
