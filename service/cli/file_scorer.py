"""What a worker does with a chunk of a file: read its lines, score them, write their rows."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.batch.chunks import MAX_LINE_BYTES
from service.batch.compression import compressed
from service.batch.errors import BatchError
from service.batch.tables import arrow, framed, packed, unpacked
from service.batch.work import ERROR, SCORE, Done, Work
from service.cli.answers import Answer, Answers, CommandError, Refusal
from service.cli.rows import row_line
from service.cli.scored_rows import figure_columns, score_body, score_columns, score_form

# The most texts, and the most characters, that are scored together.
_MOST_TEXTS = 512
_MOST_CHARS = 64 * 1024
# Errors of a chunk that may be reported one by one.
_MOST_REPORTED = 20


@dataclass(slots=True)
class Item:
    """A text with its result or its error."""

    line: int
    text: str = ""
    source: str | None = None
    record: bytes = b""  # the line that it is from
    error: str | None = None
    result: Answer = field(default_factory=dict)


class FileScorer:
    """Scores the lines of chunks."""

    def __init__(self, answers: Answers, options: argparse.Namespace) -> None:
        self._answers = answers
        self._options = options
        self._field = options.field or "text"

    def __call__(self, work: Work | None) -> Done:
        """Score a chunk; None only checks the options.

        Raises BatchError if no text can be scored with these options.
        """
        if work is None:
            self.score([Item(1, source="a" if self._options.source_field else None)])
            return Done(b"", 0, 0)
        if work.kind == "table":
            items, output = self._table(work)
        else:
            read, written = self._forms(work)
            items = list(read(work))
            self.score([item for item in items if item.error is None])
            lines = "".join(map(written, items)).encode("utf-8", "surrogatepass")
            output = compressed(lines, work.compression)
        wrong = [(item.line, item.error) for item in items if item.error is not None]
        return Done(
            output,
            sum(len(item.text) for item in items if item.error is None),
            len(wrong),
            wrong[:_MOST_REPORTED],
        )

    def score(self, items: Sequence[Item]) -> None:
        """Score the items' texts. Raises BatchError if no text could be scored."""
        for batch in _batches(items):
            self._ask(batch)

    def _ask(self, items: Sequence[Item]) -> None:
        """Score items together; if they are rejected, each half separately."""
        body = score_body(self._options, [item.text for item in items])
        if self._options.source_field is not None:
            body["source"] = [item.source for item in items]
        try:
            results = self._answers.ask("/score", body)["results"]
        except Refusal as error:
            if not error.is_of_text or (error.option == "source" and "source" not in body):
                raise BatchError(str(error)) from error
            if len(items) == 1:
                items[0].error = str(error)
                return
            middle = len(items) // 2
            self._ask(items[:middle])
            self._ask(items[middle:])
            return
        except CommandError as error:
            raise BatchError(str(error)) from error
        for item, result in zip(items, results, strict=True):
            item.result = result

    def _table(self, work: Work) -> tuple[list[Item], bytes]:
        """The rows with their figures in a struct, null where there are none."""
        pa, batch = arrow(), unpacked(work.chunk.content or b"")
        sources = [None] * batch.num_rows
        name = self._options.source_field
        if name is not None:
            sources = batch.column(name).to_pylist()
        items = []
        for place, text in enumerate(batch.column(self._field).to_pylist()):
            is_text = isinstance(text, str) and (name is None or isinstance(sources[place], str))
            item = Item(work.chunk.first_line + place, text if is_text else "", sources[place])
            item.error = None if is_text else "no text"
            items.append(item)
        self.score([item for item in items if item.error is None])
        figures = figure_columns(self._options)
        kinds = {x: pa.int64() if whole else pa.float64() for x, whole in figures.items()}
        rows = [
            {x: item.result.get(x) for x in kinds} if item.error is None else None for item in items
        ]
        scores = pa.array(rows, pa.struct(list(kinds.items())))
        errors = pa.array([item.error for item in items], pa.string())
        for name, column in ((SCORE, scores), (ERROR, errors)):
            batch = batch.append_column(name, column)
        return items, framed(packed(batch))

    def _forms(self, work: Work) -> tuple[Callable[[Work], Iterator[Item]], Callable[[Item], str]]:
        if work.kind == "records":
            return self._records, _record_line
        return _texts, self._text_line

    def _records(self, work: Work) -> Iterator[Item]:
        for item in _lines(work):
            if item.error is None and item.record.strip():
                self._read(item)
            if item.error is not None or item.record.strip():
                yield item

    def _read(self, item: Item) -> None:
        try:
            record = json.loads(item.text)
        except ValueError:
            item.error, item.record = "not JSON", b""
            return
        except RecursionError:
            item.error, item.record = "JSON that is nested too deeply", b""
            return
        if not isinstance(record, dict):
            item.error, item.record = "not a JSON object", b""
            return
        text = record.get(self._field)
        if SCORE in record or ERROR in record:
            item.error = f"it already has a field {SCORE} or {ERROR}"
        elif not isinstance(text, str):
            item.error = f"no field {self._field} with a text"
        else:
            item.text = text
        name = self._options.source_field
        if name is not None and item.error is None:
            source = record.get(name)
            item.source = source if isinstance(source, str) else None
            item.error = None if isinstance(source, str) else f"no field {name} with a text"

    def _text_line(self, item: Item) -> str:
        options = self._options
        if item.error is None:
            row = {**item.result, "text": item.text}
            line = row_line(
                options.format,
                row,
                score_form(options, item.result),
                [*score_columns(options), "error"],
            )
        elif options.format == "text":
            dashes = 1 + options.guesses + options.percentile
            line = "-\t" * dashes + item.text
        else:
            row = {"text": item.text, "error": item.error}
            line = row_line(options.format, row, "", [*score_columns(options), "error"])
        return line + "\n"


def head_of(options: argparse.Namespace) -> bytes:
    """What comes before the first row."""
    if options.format != "tsv":
        return b""
    return "\t".join([*score_columns(options), "error"]).encode() + b"\n"


def _lines(work: Work) -> Iterator[Item]:
    """The chunk's lines, as bytes that are UTF-8 or have an error."""
    number, content = work.chunk.first_line, work.chunk.content
    if content is None:
        yield Item(number, error=f"longer than {MAX_LINE_BYTES:,} bytes")
        return
    for place, line in enumerate(content.removesuffix(b"\n").split(b"\n"), number):
        item = Item(place, record=line.removesuffix(b"\r"))
        try:
            item.text = item.record.decode()
        except UnicodeDecodeError as error:
            item.error = (
                f"byte {error.start + 1} is not UTF-8; is it Windows-1252? Then convert the file "
                "with iconv -f WINDOWS-1252 -t UTF-8"
            )
            item.record = b""
        yield item


def _texts(work: Work) -> Iterator[Item]:
    return _lines(work)


def _record_line(item: Item) -> str:
    """The record as it was, with the score as a further field."""
    added: dict[str, Any] = {SCORE: item.result} if item.error is None else {ERROR: item.error}
    more = json.dumps(added, ensure_ascii=False)
    record = item.record.decode().strip()
    inside = record.removesuffix("}").rstrip()
    if not record or inside == "{":
        return more + "\n"
    return f"{inside}, {more.removeprefix('{')}\n"


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        size += len(item.text)
        if batch and (len(batch) >= _MOST_TEXTS or size > _MOST_CHARS):
            yield batch
            batch, size = [], len(item.text)
        batch.append(item)
    if batch:
        yield batch
