"""`python -m service generate|score|…|models|keys`: the tasks from a command line.

They ask a running server (`--url`), or run a bundle (`--bundle`) in this process. Texts are
arguments or the lines of standard input. Each answer is written at once, as one line of text, TSV
or JSON.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from service.cli.answered_lines import AnsweredLines
from service.cli.answers import Answer, Answers, CommandError, Refusal
from service.cli.bundle import Bundle, models_in
from service.cli.input_lines import InputLines
from service.cli.parser import command_parser, flag_of
from service.cli.rows import COLUMNS, FURTHER_COLUMNS, write_head, write_row
from service.cli.running_server import RunningServer
from service.cli.scored_files import score_files
from service.cli.scored_rows import score_body, score_form
from service.endpoints.infill_wire import DEFAULT_BLANK
from service.http.api_keys import ApiKeysError, new_key

# Most lines of standard input in one request, if that many are already there.
_LINES_AT_ONCE = {
    **dict.fromkeys(("generate", "translate", "infill"), 64),
    **dict.fromkeys(("score", "classify", "tag"), 512),
}


def run(arguments: Sequence[str]) -> int:
    """Run a command. Returns the exit status: 0, 1 for an error, 130 for an interrupt."""
    options = command_parser().parse_args(arguments)
    try:
        return _run(options)
    except CommandError as error:
        sys.stderr.write(f"error: {_cause(error, options)}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe, so nothing may be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _cause(error: CommandError, options: argparse.Namespace) -> str:
    """The error, with the command's flag in place of the pointer into the body."""
    if not isinstance(error, Refusal):
        return str(error)
    flag = flag_of(options, error.option)
    if flag is None:
        return str(error)
    return f"{flag}: {str(error).removeprefix(f'/{error.option}: ')}"


def _run(options: argparse.Namespace) -> int:
    if options.command == "keys":
        _write_key(options)
        return 0
    if options.command == "models":
        for model in _models(options):
            write_row(options.format, model, "{name}\t{task}\t{precision}\t{description}")
        return 0
    if options.command == "score" and options.input:
        return score_files(options)
    if options.command == "infill":
        _check_candidates(options)
    answers = _server(options) if options.bundle is None else _bundle(options)
    try:
        return _write_answers(answers, options)
    finally:
        answers.close()


def _models(options: argparse.Namespace) -> list[Answer]:
    return _server(options).models() if options.bundle is None else models_in(options.bundle)


def _server(options: argparse.Namespace) -> RunningServer:
    return RunningServer(options.url, options.model, options.api_key_file)


def _bundle(options: argparse.Namespace) -> Bundle:
    decider = options.rescore if options.command == "infill" else None
    return Bundle(options.bundle, None if decider is None else Path(decider))


def _write_answers(answers: Answers, options: argparse.Namespace) -> int:
    command = options.command
    write = partial(_WRITERS[command], answers, options)
    write_head(options.format, _columns(options))
    texts = _texts(options)
    if texts is not None:
        write(texts)
        return 0
    # Without a prompt, a new text is generated.
    if_none = "" if command == "generate" else None
    lines = AnsweredLines(write, InputLines(sys.stdin.fileno()))
    return lines.run(_LINES_AT_ONCE[command], if_none)


def _columns(options: argparse.Namespace) -> Sequence[str]:
    """The columns of TSV."""
    command: str = options.command
    asked = [names for flag, names in FURTHER_COLUMNS.items() if getattr(options, flag, False)]
    return [*itertools.chain(*asked), *COLUMNS[command]]


def _texts(options: argparse.Namespace) -> list[str] | None:
    """The arguments; None if the texts come from standard input."""
    for place, text in enumerate(options.texts, 1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CommandError(f"text {place} is not UTF-8") from error
    if options.texts:
        return list(options.texts)
    if options.command == "generate" and (sys.stdin is None or sys.stdin.isatty()):
        return [""]
    if sys.stdin is None:
        raise CommandError("there is no text, and no standard input")
    return None


def _check_candidates(options: argparse.Namespace) -> None:
    """Raise CommandError if `--candidates`, which takes all that follows, has taken a text."""
    blank = options.blank or DEFAULT_BLANK
    if any(blank in candidate for candidate in options.candidates or []):
        raise CommandError(
            f"--candidates: one of them contains a blank ({blank}); texts go before --candidates"
        )


# --- the commands ---------------------------------------------------------------------------------


def _write_generated(answers: Answers, options: argparse.Namespace, texts: list[str]) -> None:
    fields = ("max_tokens", "temperature", "top_k", "top_p", "seed", "n", "pattern")
    body = _given(options, fields) | {"prompt": texts, "stop": options.stop}
    body |= {"adapt": True} if options.adapt else {}
    for text, result in zip(texts, answers.ask("/generate", body)["results"], strict=True):
        for place, choice in enumerate(result["choices"]):
            row = {"prompt": text, "choice": place, **choice}
            write_row(options.format, row, "{text}", COLUMNS["generate"])


def _write_scored(answers: Answers, options: argparse.Namespace, texts: list[str]) -> None:
    results = answers.ask("/score", score_body(options, texts))["results"]
    for text, result in zip(texts, results, strict=True):
        row = {**result, "text": text}
        write_row(options.format, row, score_form(options, result), _columns(options))


def _write_translated(answers: Answers, options: argparse.Namespace, texts: list[str]) -> None:
    fields = ("beam_size", "num_hypotheses", "length_penalty", "max_tokens")
    more = ("pattern", "must_contain", "min_confidence")
    body = _given(options, (*fields, *more)) | {"source": texts}
    body |= {"return_alignments": True} if options.alignments else {}
    for text, result in zip(texts, answers.ask("/translate", body)["results"], strict=True):
        if options.format == "json":
            write_row("json", {"source": text, **result}, "")
            continue
        for rank, hypothesis in enumerate(result["hypotheses"], 1):
            row = {"source": text, "rank": rank, **hypothesis}
            write_row(options.format, row, "{text}", COLUMNS["translate"])
        if result["abstained"]:
            # A source without an answer keeps its place, with an empty line.
            row = dict.fromkeys(COLUMNS["translate"]) | {"source": text, "text": ""}
            write_row(options.format, row, "{text}", COLUMNS["translate"])


def _write_filled(answers: Answers, options: argparse.Namespace, texts: list[str]) -> None:
    body = _given(options, _INFILL_FIELDS) | {"text": texts}
    body |= {"eos": True} if options.eos else {}
    for text, result in zip(texts, answers.ask("/infill", body)["results"], strict=True):
        if options.format == "json":
            write_row("json", {"text": text, **result}, "")
            continue
        for rank, fill in enumerate(result["fills"], 1):
            # The texts of several blanks are separated by tabs.
            row = {**fill, "text": text, "rank": rank, "fill": "\t".join(fill["texts"])}
            write_row(options.format, row, "{posterior:.4f}\t{fill}", COLUMNS["infill"])


def _write_classified(answers: Answers, options: argparse.Namespace, texts: list[str]) -> None:
    body = _given(options, ("top", "min_probability", "unknown")) | {"text": texts}
    if options.top is None and options.min_probability is None:
        body["top"] = 1
    body |= {"steps": True} if options.steps else {}
    columns = COLUMNS["classify"]
    for text, result in zip(texts, answers.ask("/classify", body)["results"], strict=True):
        if options.format == "json":
            write_row("json", {"text": text, **result}, "")
            continue
        for rank, label in enumerate(result["labels"], 1):
            row = {"text": text, "rank": rank, **label}
            write_row(options.format, row, "{probability:.4f}\t{label}\t{text}", columns)
        if not result["labels"]:
            # A text without a label keeps its place.
            write_row(
                options.format, dict.fromkeys(columns) | {"text": text}, "-\t\t{text}", columns
            )


def _write_tagged(answers: Answers, options: argparse.Namespace, texts: list[str]) -> None:
    body = _given(options, ("n", "top", "unknown")) | {"text": texts}
    body |= {"places": True} if options.places else {}
    answer = answers.ask("/tag", body)
    for text, result in zip(texts, answer["results"], strict=True):
        if options.format == "json":
            write_row("json", {"sent": text, **result}, "")
            continue
        for rank, tagging in enumerate([result, *result["alternatives"]], 1):
            if options.format == "text":
                write_row("text", {"line": _marked(tagging, answer["restored"])}, "{line}")
                continue
            for tag in tagging["tags"]:
                tagged = tagging["text"][tag["start"] : tag["end"]]
                row = {**tag, "text": text, "rank": rank, "tagged": tagged}
                write_row("tsv", row, "", COLUMNS["tag"])


def _marked(tagging: Answer, restored: bool) -> str:
    """A restored text as it is, any other with [its tags](label)."""
    text: str = tagging["text"]
    if restored:
        return text
    pieces, at = [], 0
    for tag in tagging["tags"]:
        start, end = tag["start"], tag["end"]
        pieces += [text[at:start], f"[{text[start:end]}]({tag['label']})"]
        at = end
    return "".join([*pieces, text[at:]])


_INFILL_FIELDS = (
    *("candidates", "blank", "pattern", "allowed_chars", "length", "max_tokens"),
    *("num_fills", "num_proposals", "seed", "unknown", "rescore"),
)

_WRITERS: dict[str, Callable[[Answers, argparse.Namespace, list[str]], None]] = {
    "generate": _write_generated,
    "score": _write_scored,
    "translate": _write_translated,
    "infill": _write_filled,
    "classify": _write_classified,
    "tag": _write_tagged,
}


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    found = {name: getattr(options, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _write_key(options: argparse.Namespace) -> None:
    """Write a new key for its owner, and the line for the server's file of keys."""
    try:
        secret, key = new_key(options.name, options.role)
    except ApiKeysError as error:
        raise CommandError(str(error)) from error
    sys.stderr.write(f"the key, shown only once: {secret}\n")
    sys.stdout.write(key.line() + "\n")
