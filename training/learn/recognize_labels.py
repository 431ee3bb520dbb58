"""Whether files hold labelled texts: in a column, for each character, or in a folder per label.

Labels are recognized as short values that repeat. `--as labels` and `--as tags` demand less.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config import ConfigError
from training.data.tagged import columns_of
from training.learn.sight import Kind, Labelled, Sight, characters_of
from training.learn.survey import SAMPLE_LINES, Survey, survey

TIME = re.compile(r"\d{1,2}:\d{2}:\d{2}")
# In a column of labels, each value occurs in at least so many lines on average.
LINES_A_LABEL = 20

_MOST = 0.9  # share of the sampled lines from which a rule applies
_NEARLY_ALL = 0.98
_LONGEST_LABEL = 40  # characters
_FILES_A_LABEL = 10  # the folder of a label has at least so many files, unless --as labels is said
_MARKS = 10  # different labels of aligned characters, at most
_SEPARATOR = ","  # of several labels of a text
_SOME_SEPARATED = 0.05
_TAG = re.compile(r"[BIESLU]-.+|O|[A-Z][A-Z0-9$.:,'`+-]*")  # of words: BIO, or a part of speech
_TAGGED = "a label for each"
_HINT = "if these are {}, say --as {}"


def labelled_folders(paths: Sequence[Path], *, asked: bool = False) -> Sight | None:
    """Folders that hold a folder for each label; None if they are something else."""
    folders = [path for path in paths if path.is_dir()]
    if not folders or len(folders) < len(paths):
        return None
    found = {path: _visible(path) for path in folders}
    if any(len(inside) < 2 or not all(x.is_dir() for x in inside) for inside in found.values()):
        return None
    labels = [place for inside in found.values() for place in inside]
    files = {place: [x for x in _visible(place) if x.is_file()] for place in labels}
    fewest = min(map(len, files.values()))
    if fewest < (1 if asked else _FILES_A_LABEL):
        return None
    surveys = [survey(path) for texts in files.values() for path in texts]
    # If there are few files, each line is a text.
    by_line = fewest < _FILES_A_LABEL
    lengths = [x.chars for x in surveys]
    if by_line:
        lengths = [len(line) for line in _sample(surveys)]
    names = {place.name for place in labels}
    what = "lines of its files" if by_line else "files"
    return Sight(
        "labels",
        f"folders for {len(names):,} labels; a text is one of the {what}",
        folders,
        sum(found.texts for found in surveys) if by_line else len(surveys),
        sum(found.chars for found in surveys),
        characters_of(surveys),
        labelled=_labelled(
            {"form": "folders", "documents": "line" if by_line else "file"}, lengths, len(names)
        ),
        hint=_HINT.format("texts without labels", "file"),
    )


def labels_in_columns(surveys: Sequence[Survey], *, asked: bool = False) -> Sight | None:
    """TSV with a label beside each text; None if it is something else."""
    rows = _rows(surveys)
    if rows is None:
        return None
    columns = [[row[column].strip() for row in rows] for column in (0, 1)]
    few = [column for column in (1, 0) if asked or _are_labels(columns[column])]
    if not asked and (len(few) != 1 or _is_no_text(columns[1 - few[0]])):
        return None
    label = min(few, key=lambda column: len({*columns[column]}))
    values, texts = columns[label], columns[1 - label]
    options: dict[str, Any] = {"label_first": True} if label == 0 else {}
    names = {*values}
    if parts := _several(values):
        options, names = {**options, "several": True}, parts
    place = ("first", "second")[label]
    what = "labels, several for a text," if "several" in options else "labels"
    reason = f"{len(names):,} {what} in the {place} column"
    return _sight("labels", reason, surveys, _labelled(options, [*map(len, texts)], len(names)))


def tags_in_columns(surveys: Sequence[Survey], *, asked: bool = False) -> Sight | None:
    """One word and its label per line (CoNLL), blank lines between texts; None if it is not."""
    lines = _sample(surveys)
    rows = [row for row in columns_of(lines) if row is not None]
    if not rows:
        return None
    width, usual = Counter(len(row) for row in rows).most_common(1)[0]
    blank = sum(found.blank_between for found in surveys)
    if width < 2 or usual < _NEARLY_ALL * len(rows) or blank < 2:
        return None
    labels = [row[-1].strip() for row in rows if len(row) == width]
    alike = sum(bool(_TAG.fullmatch(label)) for label in labels)
    if not asked and (alike < _MOST * len(labels) or not _are_few(labels)):
        return None
    words = sum(found.texts for found in surveys)
    texts = blank + len(surveys)
    mean_chars = sum(len(row[0]) + 1 for row in rows) / len(rows) * words / texts
    return Sight(
        "tags",
        f"{_TAGGED} word in the last of {width} columns; a blank line ends a text",
        [found.path for found in surveys],
        texts,
        round(mean_chars * texts),
        characters_of(surveys),
        labelled=Labelled({"form": "columns"}, mean_chars, round(3 * mean_chars), len({*labels})),
        hint=_HINT.format("lines without labels", "lines"),
    )


def tags_of_characters(surveys: Sequence[Survey], *, asked: bool = False) -> Sight | None:
    """TSV of a text and a string with a label for each of its characters; None if it is not."""
    rows = _rows(surveys)
    if rows is None:
        return None
    alike = sum(len(row[0]) == len(row[1]) for row in rows)
    marks = {mark for row in rows for mark in row[1]}
    fits = alike >= (_MOST if asked else _NEARLY_ALL) * len(rows)
    unlike_codes = 2 <= len(marks) <= _MARKS and not _are_few([row[0] for row in rows])
    if not fits or not (asked or unlike_codes):
        return None
    reason = f"{_TAGGED} character in the second column: {len(marks):,} different ones"
    lengths = [len(row[0]) for row in rows]
    labelled = _labelled({"form": "aligned"}, lengths, len(marks))
    return _sight("tags", reason, surveys, labelled)


def labels_asked_for(paths: Sequence[Path], surveys: Sequence[Survey]) -> Sight:
    """What `--as labels` finds. Raises ConfigError."""
    found = labelled_folders(paths, asked=True) or labels_in_columns(surveys, asked=True)
    if found is None:
        raise ConfigError(
            f"{surveys[0].path}: there are no labels; each line must be text, tab, label (or "
            "label, tab, text; commas do not separate them), or a folder must hold a folder of "
            "texts for each label"
        )
    return found


def tags_asked_for(surveys: Sequence[Survey]) -> Sight:
    """What `--as tags` finds. Raises ConfigError."""
    found = tags_of_characters(surveys, asked=True) or tags_in_columns(surveys, asked=True)
    if found is None:
        raise ConfigError(
            f"{surveys[0].path}: there are no labels of words or characters; each line must be a "
            "word and its label, with a blank line after each text, or text, tab, and one label "
            "for each character"
        )
    return found


def _labelled(options: Mapping[str, Any], lengths: Sequence[int], names: int) -> Labelled:
    """Of sampled texts of these lengths."""
    return Labelled(options, sum(lengths) / max(1, len(lengths)), _long(lengths), names)


def _sight(kind: Kind, reason: str, surveys: Sequence[Survey], labelled: Labelled) -> Sight:
    """Of TSV files."""
    lines = sum(found.texts for found in surveys)
    return Sight(
        kind,
        reason,
        [found.path for found in surveys],
        lines,
        round(labelled.mean_chars * lines),
        characters_of(surveys),
        labelled=labelled,
        hint=_HINT.format("pairs", "pairs") + "; lines without labels, --as lines",
    )


def _sample(surveys: Sequence[Survey]) -> list[str]:
    return [line for found in surveys for line in found.sample][:SAMPLE_LINES]


def _rows(surveys: Sequence[Survey]) -> list[list[str]] | None:
    """The columns of the sampled lines, if nearly all have two, or three."""
    lines = _sample(surveys)
    rows = [row for row in (line.split("\t") for line in lines) if len(row) in {2, 3}]
    return rows if len(rows) >= _MOST * len(lines) else None


def _are_few(values: Sequence[str]) -> bool:
    different = len({*values})
    enough = len(values) >= 2 * LINES_A_LABEL
    return enough and 2 <= different <= len(values) / LINES_A_LABEL


def _are_labels(values: Sequence[str]) -> bool:
    return _are_few(values) and max(map(len, values)) <= _LONGEST_LABEL


def _is_no_text(values: Sequence[str]) -> bool:
    """Whether a column mostly holds times, as in a log, or numbers."""
    return sum(bool(TIME.search(x)) or x.isdecimal() for x in values) > len(values) / 2


def _several(values: Sequence[str]) -> set[str]:
    """The labels, if a value may hold several; else none."""
    parts = {part.strip() for value in values for part in value.split(_SEPARATOR)} - {""}
    separated = sum(_SEPARATOR in value for value in values)
    # Names with commas in them have more parts than there are names.
    is_several = separated >= _SOME_SEPARATED * len(values) and len(parts) < len({*values})
    return parts if is_several else set()


def _visible(folder: Path) -> list[Path]:
    return [x for x in sorted(folder.iterdir()) if not x.name.startswith(".")]


def _long(lengths: Sequence[int]) -> int:
    ordered = sorted(lengths)
    return ordered[int(_NEARLY_ALL * (len(ordered) - 1))] if ordered else 0
