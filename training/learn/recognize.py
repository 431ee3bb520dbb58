"""What files hold: texts (a file or a line each), pairs or labels; how a side becomes tokens.

Every decision comes with its reason; `--as` overrides the kind.
"""

import glob
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from training.config import ConfigError
from training.learn.recognize_labels import (
    LINES_A_LABEL,
    TIME,
    labelled_folders,
    labels_asked_for,
    labels_in_columns,
    tags_asked_for,
    tags_in_columns,
    tags_of_characters,
)
from training.learn.sight import Kind, Labelled, Side, Sight, characters_of
from training.learn.survey import SAMPLE_LINES, LineShapes, Survey, survey, text_lines

# Shares of the sampled lines from which a rule applies.
_MOST = 0.9
_SOME_BLANK = 0.03
_SOME_INDENTED = 0.1
_SOME_WRAPPED = 0.2
_SOME_CONTINUED = 0.15
_SOME_SENTENCES = 0.1
_FILLED = 0.75  # wrapped text: the median line has this share of the longest usual one
_ALIKE = 0.6
_LONG_LINE = 500  # characters: longer lines are paragraphs
_FEW_LINES = 20
_SIDES = (("src", "tgt"), ("source", "target"), ("src", "trg"), ("from", "to"), ("in", "out"))


def recognize(paths: Sequence[Path], kind: Kind | None = None) -> Sight:
    """Look at the files. Raises ConfigError for empty ones, and ones that do not fit `kind`."""
    if kind is None and (folders := labelled_folders([x.expanduser() for x in paths])):
        return folders
    files = expand(paths)
    surveys = [survey(path) for path in files]
    if not any(found.texts for found in surveys):
        raise ConfigError(f"{', '.join(str(x) for x in paths)}: there is no text in it")
    if kind is not None:
        return _asked_for(kind, paths, surveys)
    if _are_two_sides(surveys):
        first, second = surveys
        return _aligned(first, second, f"two files of {first.lines:,} lines each, line by line")
    for labelled in (tags_of_characters, labels_in_columns, tags_in_columns):
        if found := labelled(surveys):
            return found
    rejected = _why_no_pairs(surveys)
    if rejected is None:
        return _columns(surveys, "two columns with a tab between them on nearly all lines")
    kind, reason = _lines_or_file(surveys)
    return _texts(surveys, kind, reason, _hint(surveys, rejected))


def _asked_for(kind: Kind, paths: Sequence[Path], surveys: Sequence[Survey]) -> Sight:
    """What `--as` finds. Raises ConfigError where the files do not fit it."""
    if kind == "pairs":
        return _asked_for_pairs(surveys)
    if kind == "labels":
        return labels_asked_for([x.expanduser() for x in paths], surveys)
    if kind == "tags":
        return tags_asked_for(surveys)
    if kind == "accents":
        return _with_accents(surveys)
    return _texts(surveys, kind, f"you said --as {kind}")


def _with_accents(surveys: Sequence[Survey]) -> Sight:
    """Texts that lose their accents."""
    documents, reason = _lines_or_file(surveys)
    found = _texts(surveys, documents, reason)
    mean_chars = found.chars / max(1, found.texts)
    options = {"documents": "line" if documents == "lines" else "file", "loss": ["accents"]}
    labelled = Labelled(options, mean_chars, 0)
    return replace(
        found, kind="accents", reason=f"accents to put back; {reason}", labelled=labelled
    )


def expand(paths: Sequence[Path]) -> list[Path]:
    """The files, those of a folder in order of their names. Raises ConfigError for none."""
    files: dict[Path, None] = {}
    for path in (x.expanduser() for x in paths):
        if path.is_dir():
            inside = [x for x in sorted(path.rglob("*")) if x.is_file() and not _hidden(x, path)]
            texts = [x for x in inside if x.suffix.lower() == ".txt"]
            if not inside:
                raise ConfigError(f"{path}: the folder holds no files")
            files |= dict.fromkeys(texts or inside)
        elif path.is_file():
            files[path] = None
        elif found := [Path(x) for x in sorted(glob.glob(str(path)))]:  # noqa: PTH207
            files |= dict.fromkeys(x for x in found if x.is_file())
        else:
            raise ConfigError(f"{path}: there is no such file or folder")
    return list(files)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


# --- texts --------------------------------------------------------------------------------------


def _texts(surveys: Sequence[Survey], kind: Kind, reason: str, hint: str | None = None) -> Sight:
    chars = sum(found.chars for found in surveys)
    texts = sum(found.texts for found in surveys) if kind == "lines" else len(surveys)
    if kind == "file":
        chars += sum(found.lines for found in surveys)  # their ends
    characters = characters_of(surveys)
    files = [found.path for found in surveys]
    return Sight(kind, reason, files, texts, chars, characters, hint=hint)


def _lines_or_file(surveys: Sequence[Survey]) -> tuple[Kind, str]:
    """Whether a text is a line or a file, and why."""
    sample = [line for found in surveys for line in found.sample][:SAMPLE_LINES]
    shapes = LineShapes(sample)
    texts = sum(found.texts for found in surveys)
    blank_between = sum(found.blank_between for found in surveys)
    whole = "each file is a text of its own" if len(surveys) > 1 else "the file is one text"
    if texts < _FEW_LINES and shapes.median_chars > 100:
        return "file", f"{texts:,} long lines; {whole}"
    if shapes.median_chars > _LONG_LINE:
        return "file", f"lines are paragraphs of {shapes.median_chars:,} characters; {whole}"
    if blank_between >= max(2, _SOME_BLANK * texts):
        return "file", f"blank lines stand between parts of it; {whole}"
    if shapes.alike >= _ALIKE:
        return "lines", "the lines begin alike, as in a log; each is a text of its own"
    if shapes.tabbed >= _MOST:
        return "lines", "columns with tabs between them; each line is a text of its own"
    if shapes.indented >= _SOME_INDENTED:
        return "file", f"lines are indented, so they belong together; {whole}"
    if shapes.median_words <= 3:
        return "lines", (
            f"short lines of {shapes.median_chars} characters, as in a list; "
            "each is a text of its own"
        )
    if (
        shapes.wrapped >= _SOME_WRAPPED
        and shapes.filled >= _FILLED
        and shapes.sentences >= _SOME_SENTENCES
    ):
        return "file", f"sentences go on from line to line; {whole}"
    if shapes.continued >= _SOME_CONTINUED:
        return "file", f"many lines end within a sentence, as in verse; {whole}"
    return "lines", (
        f"lines of about {shapes.median_chars} characters, each complete in itself, with no blank "
        "lines between them; each is a text of its own"
    )


def _hint(surveys: Sequence[Survey], rejected: str) -> str | None:
    if len(surveys) == 2 and surveys[0].lines == surveys[1].lines:
        return (
            "both files have the same number of lines; if they are two sides of pairs, "
            "say --as pairs"
        )
    if any(found.path.suffix.lower() == ".csv" for found in surveys):
        return "commas are read as text; if these are columns, put tabs between them"
    return rejected or None


# --- pairs --------------------------------------------------------------------------------------


def _asked_for_pairs(surveys: Sequence[Survey]) -> Sight:
    if any("\t" in line for line in surveys[0].sample):
        return _columns(surveys, "you said --as pairs")
    if len(surveys) == 2:
        first, second = surveys
        if first.lines != second.lines:
            raise ConfigError(
                f"{first.path} has {first.lines:,} lines and {second.path} has {second.lines:,}; "
                "two sides of pairs have a line each"
            )
        return _aligned(first, second, "you said --as pairs")
    raise ConfigError(
        f"{surveys[0].path}: no line has a tab; pairs are lines of source, tab, target, "
        "or two files with a line each"
    )


def _are_two_sides(surveys: Sequence[Survey]) -> bool:
    """Two files of as many lines whose names differ in one part: `x.en` and `x.de`."""
    if len(surveys) != 2 or surveys[0].lines != surveys[1].lines or surveys[0].lines < 2:
        return False
    first, second = (re.split(r"[._\-]", found.path.name) for found in surveys)
    different = [(x, y) for x, y in zip(first, second, strict=False) if x != y]
    if len(first) != len(second) or len(different) != 1:
        return False
    sides = different[0][0].lower(), different[0][1].lower()
    return sides in _SIDES or sides[::-1] in _SIDES or all(_language(x) for x in sides)


def _language(part: str) -> str:
    """A part of a file's name, if it is a language code, or an empty text."""
    return part if re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]{2,4})?", part) and part != "txt" else ""


def _why_no_pairs(surveys: Sequence[Survey]) -> str | None:
    """Why lines are no pairs (source, tab, target): None if they are, "" if few have a tab."""
    lines = [line for found in surveys for line in found.sample][:SAMPLE_LINES]
    rows = [line.split("\t") for line in lines]
    tabbed = [row for row in rows if len(row) >= 2]
    if len(tabbed) < _MOST * len(rows):
        return ""
    width = Counter(len(row) for row in tabbed).most_common(1)[0][0]
    if width > 3:
        return (
            f"lines have {width} columns; pairs have two (source, tab, target), "
            "so cut out the two that you mean (`cut -f1,2`)"
        )
    pairs = [row for row in tabbed if row[0].strip() and row[1].strip()]
    if sum(len(row) in (2, 3) for row in pairs) < _MOST * len(rows):
        return "the number of columns varies; pairs have two (source, tab, target)"
    for column in (0, 1):
        values = [row[column].strip() for row in pairs]
        if sum(bool(TIME.search(value)) for value in values) > len(values) / 2:
            return "a column holds times, as in a log; if these are pairs, say --as pairs"
        if len(values) >= 2 * LINES_A_LABEL and len(set(values)) * LINES_A_LABEL <= len(values):
            return "a column holds few labels; if these are pairs, say --as pairs"
    numbers = [row[0].strip() for row in pairs]
    if all(x.isdecimal() for x in numbers) and _counts_up([int(x) for x in numbers]):
        return "the first column numbers the lines; if these are pairs, say --as pairs"
    return None


def _counts_up(numbers: Sequence[int]) -> bool:
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    return sum(step == 1 for step in steps) >= _MOST * max(1, len(steps))


def _columns(surveys: Sequence[Survey], reason: str) -> Sight:
    rows = [line.split("\t") for found in surveys for line in found.sample if "\t" in line]
    sources, targets = [row[0].strip() for row in rows], [row[1].strip() for row in rows]
    if any(len(row) > 2 for row in rows):
        reason += "; further columns are ignored"
    return Sight(
        "pairs",
        reason,
        [found.path for found in surveys],
        sum(found.texts for found in surveys),
        sum(found.chars for found in surveys),
        characters_of(surveys),
        source=_side("source", sources),
        target=_side("target", targets),
    )


def _aligned(first: Survey, second: Survey, reason: str) -> Sight:
    # A line may be blank on one side only, and the samples must hold the same lines.
    rows = [(x.strip(), y.strip()) for x, y in _heads(first.path, second.path) if x and y]
    source, target = (_lang(x.path, y.path) for x, y in ((first, second), (second, first)))
    return Sight(
        "pairs",
        reason,
        [first.path, second.path],
        min(first.texts, second.texts),
        first.chars + second.chars,
        characters_of([first, second]),
        aligned=True,
        source=_side(first.path.name, [x for x, _ in rows], source),
        target=_side(second.path.name, [y for _, y in rows], target),
    )


def _heads(first: Path, second: Path) -> Iterator[tuple[str, str]]:
    for _, pair in zip(
        range(SAMPLE_LINES), zip(text_lines(first), text_lines(second), strict=False), strict=False
    ):
        yield pair


def _lang(path: Path, other: Path) -> str:
    """The language code in a file's name: the part that the other file's name lacks."""
    theirs = re.split(r"[._\-]", other.name)
    parts = [x for x in re.split(r"[._\-]", path.name) if x not in theirs]
    known = {x for pair in _SIDES for x in pair}
    return _language(parts[0]) if len(parts) == 1 and parts[0] not in known else ""


def _side(name: str, texts: Sequence[str], lang: str = "") -> Side:
    """How one side is cut into tokens."""
    symbols = [text.split(" ") for text in texts]
    counts = Counter(symbol for text in symbols for symbol in text)
    total = max(1, counts.total())
    mean_chars = sum(len(text) for text in texts) / max(1, len(texts))
    mean_symbols = total / max(1, len(texts))
    size = sum(len(symbol) * n for symbol, n in counts.items()) / total
    # Symbols are few and short; each is frequent, and a text has several.
    few = len(counts) <= min(400, 10 + total / 10)
    if mean_symbols >= 2 and size <= 3.5 and few:
        reason = f"{len(counts):,} short symbols between spaces"
        return Side(name, "whitespace", reason, mean_chars, lang)
    if mean_chars > 40 and len(texts) >= 2000:
        reason = f"prose of {mean_chars:.0f} characters on average"
        return Side(name, "bpe", reason, mean_chars, lang)
    reason = f"{mean_chars:.0f} characters on average"
    return Side(name, "character", reason, mean_chars, lang)
