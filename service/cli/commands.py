"""`python -m service generate|score|translate|models|keys`: the tasks from a command line.

They ask a running server (`--url`), or run straight on a bundle (`--bundle`) in this process. Texts
are arguments or the lines of standard input; answers are written as they come, as text, TSV or
JSON, a line each.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.client import HTTPException
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from service.bundle.files import BundleError
from service.bundle.store import read_bundle
from service.cli.input_lines import InputLine, InputLines
from service.endpoints.translate_wire import TranslateRequest, TranslateResponse
from service.environment import program
from service.errors import BodyTooLarge, InvalidRequest, ModelFailure, ServiceError
from service.http.api_keys import ROLES, ApiKeysError, new_key
from service.http.body import field_errors
from service.http.wire import (
    GenerateRequest,
    GenerateResponse,
    ModelSummary,
    ScoreRequest,
    ScoreResponse,
)
from service.settings import Settings, is_loopback
from service.tasks.engine import GENERATE, SCORE, TRANSLATE, Engine
from service.tasks.kinds import Surroundings, open_engine
from service.tasks.registry import bundle_folders

COMMANDS = ("generate", "score", "translate", "models", "keys")
# Lines of standard input that are asked for together where they are there already, and characters.
_LINES = {"generate": 64, "translate": 64, "score": 512}
_BATCH_CHARS = 64 * 1024
# Refusals from the first line on, after which the rest would not be taken either.
_HOPELESS = 20

Answer = dict[str, Any]

# The body is wrong, or too large, or the model fails at it.
_REFUSED = {BodyTooLarge.status, InvalidRequest.status, ModelFailure.status}


class CommandError(Exception):
    """What ends a command, in one line."""


class Refusal(CommandError):
    """What was asked for is not answered; something else may be."""

    def __init__(self, detail: str, pointer: str) -> None:
        super().__init__(detail)
        self.is_of_text = pointer.startswith(("/text", "/prompt", "/source")) or not pointer


class Service(Protocol):
    """What answers: a server, or an engine in this process."""

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a body. Raises CommandError."""

    def models(self) -> list[Answer]:
        """Every model that there is. Raises CommandError."""

    def close(self) -> None:
        """End it."""


class RunningServer:
    """A server, by the standard library: this environment has no other HTTP client."""

    def __init__(self, url: str, model: str | None, key_file: Path | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise CommandError("--url begins with http:// or https://")
        self._url = url.rstrip("/")
        # A proxy of the environment (`http_proxy`) is for elsewhere.
        is_here = is_loopback(urlsplit(url).hostname or "")
        self._opener = build_opener(ProxyHandler({})) if is_here else build_opener()
        self._model = model
        self._headers = {} if key_file is None else {"Authorization": f"Bearer {_key(key_file)}"}

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a body."""
        named = {"model": self._model} if self._model else {}
        content = json.dumps({**named, **body}).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        return self._answer(Request(self._url + path, content, headers, method="POST"))

    def models(self) -> list[Answer]:
        """Every served model."""
        models: list[Answer] = self._answer(Request(f"{self._url}/models", headers=self._headers))[
            "models"
        ]
        return models

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, request: Request) -> Answer:
        try:
            with self._opener.open(request, timeout=600) as answer:
                found: Answer = json.load(answer)
                return found
        except HTTPError as error:
            raise _problem(error) from error
        except (URLError, HTTPException, OSError, ValueError) as error:
            raise CommandError(f"{self._url}: {error}") from error


def _key(path: Path) -> str:
    """The key in a file: command lines can be read by others."""
    try:
        return path.read_text("utf-8-sig").encode("ascii").decode().strip()
    except (OSError, UnicodeError) as error:
        raise CommandError(f"{path}: no key can be read from it") from error


def _problem(error: HTTPError) -> CommandError:
    """What a problem document says."""
    try:
        problem = json.load(error)
        detail = str(problem["detail"])
        pointer = str(problem["errors"][0]["pointer"]) if problem["errors"] else ""
    except (ValueError, KeyError, TypeError):
        return CommandError(f"the server answered {error.code}")
    return Refusal(detail, pointer) if error.code in _REFUSED else CommandError(detail)


class Bundle:
    """An engine of a bundle's folder, in this process."""

    def __init__(self, folder: Path) -> None:
        try:
            surroundings = Surroundings(settings=Settings(), threads=1)
            self._engine = open_engine(read_bundle(folder), surroundings)
        except BundleError as error:
            raise CommandError(str(error)) from error
        self._runner = asyncio.Runner()
        self._runner.run(self._start())

    async def _start(self) -> None:
        self._engine.start()

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a body."""
        try:
            return self._runner.run(_ANSWERS[path](self._engine, json.dumps(dict(body))))
        except ServiceError as error:
            if error.status not in _REFUSED:
                raise CommandError(error.detail) from error
            pointer = error.errors[0].pointer if error.errors else ""
            raise Refusal(error.detail, pointer) from error

    def models(self) -> list[Answer]:
        """This one."""
        return [ModelSummary.of(self._engine).model_dump()]

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self._engine.stop())
        self._runner.close()


def _plain(answer: BaseModel) -> dict[str, Any]:
    """An answer as it comes over HTTP: its details are made when they are written."""
    plain: dict[str, Any] = json.loads(to_json(answer))
    return plain


async def _generate(engine: Engine, body: str) -> Answer:
    request = _parsed(GenerateRequest, body)
    generates = GENERATE.of(engine)
    if generates is None:
        raise InvalidRequest("an encoder-decoder translates; see the command translate")
    results = await generates.generate(_listed(request.prompt or ""), request.options())
    return _plain(GenerateResponse.of(engine, results))


async def _score(engine: Engine, body: str) -> Answer:
    request = _parsed(ScoreRequest, body)
    scores = SCORE.of(engine)
    if scores is None:
        raise InvalidRequest("this model scores nothing")
    texts = _listed(request.text)
    contexts, sources = request.contexts(len(texts)), request.sources(len(texts))
    results = await scores.score(texts, request.options(), contexts=contexts, sources=sources)
    return _plain(ScoreResponse.of(engine, results))


async def _translate(engine: Engine, body: str) -> Answer:
    request = _parsed(TranslateRequest, body)
    translates = TRANSLATE.of(engine)
    if translates is None:
        raise InvalidRequest("a language model translates nothing; see the command generate")
    sources = _listed(request.source)
    results = await translates.translate(sources, request.prefixes(len(sources)), request.options())
    return _plain(TranslateResponse.of(engine, results))


_ANSWERS = {"/generate": _generate, "/score": _score, "/translate": _translate}


def _parsed(schema: type[Any], body: str) -> Any:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise field_errors(schema, error) from error


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


# --- the commands ---------------------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """Run a command; the exit status: 0, 1 for an error of an answer, 130 for an interrupt."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except CommandError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read has enough; nothing may be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.command == "keys":
        _write_key(options)
        return 0
    service = _service(options)
    try:
        if options.command == "models":
            for model in service.models():
                _write(options.format, model, "{name}\t{task}\t{precision}\t{description}")
            return 0
        write: Callable[[Service, argparse.Namespace, list[str]], None] = {
            "generate": _write_generated,
            "score": _write_scored,
            "translate": _write_translated,
        }[options.command]
        if options.format == "tsv":
            sys.stdout.write("\t".join(_COLUMNS[options.command]) + "\n")
        texts = _texts(options)
        if texts is not None:
            write(service, options, texts)
            return 0
        return _Reading(partial(write, service, options), InputLines(sys.stdin.fileno())).run(
            options.command
        )
    finally:
        service.close()


def _texts(options: argparse.Namespace) -> list[str] | None:
    """The arguments; None where standard input has the texts."""
    for place, text in enumerate(options.texts, 1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CommandError(f"text {place} is not UTF-8") from error
    if options.texts:
        return list(options.texts)
    if options.command == "generate" and (sys.stdin is None or sys.stdin.isatty()):
        return [""]  # a prompt that is left out begins a text
    if sys.stdin is None:
        raise CommandError("there is no text, and no standard input")
    return None


class _Reading:
    """Lines that are answered as they come; what is refused is reported and passed over."""

    def __init__(self, write: Callable[[list[str]], None], lines: InputLines) -> None:
        self._write = write
        self._lines = lines
        self._answered = self._failed = 0

    def run(self, command: str) -> int:
        """Answer all; the exit status."""
        for batch in self._lines.batches(_LINES[command], _BATCH_CHARS):
            for error, lines in groupby(batch, key=lambda line: line.error):
                if error is None:
                    self._answer(list(lines))
                else:
                    for line in lines:
                        self._fail(line, error)
            sys.stdout.flush()
        if command == "generate" and not self._answered and not self._failed:
            self._write([""])
        return int(self._failed > 0)

    def _answer(self, batch: list[InputLine]) -> None:
        """Ask for lines together; where that is refused, for each half of them."""
        try:
            self._write([line.text for line in batch])
        except Refusal as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                self._answer(batch[:middle])
                self._answer(batch[middle:])
                return
            if not error.is_of_text:
                raise
            self._fail(batch[0], str(error))
            if not self._answered and self._failed >= _HOPELESS:
                raise CommandError("no line is taken so far; the rest is not tried") from error
            return
        self._answered += len(batch)

    def _fail(self, line: InputLine, cause: str) -> None:
        self._failed += 1
        sys.stdout.flush()
        sys.stderr.write(f"error: {self._lines.name}: line {line.number}: {cause}\n")


def _write_key(options: argparse.Namespace) -> None:
    """A fresh key for whoever is to have it, and the line that the server is to have."""
    try:
        secret, key = new_key(options.name, options.role)
    except ApiKeysError as error:
        raise CommandError(str(error)) from error
    sys.stderr.write(f"the key, told this once: {secret}\n")
    sys.stdout.write(key.line() + "\n")


def _service(options: argparse.Namespace) -> Service:
    if options.bundle is None:
        return RunningServer(options.url, options.model, options.api_key_file)
    if options.command == "models":
        return _Folder(options.bundle)
    return Bundle(options.bundle)


class _Folder:
    """The bundles of a folder, or the one that it is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Nothing is asked of a folder."""
        raise NotImplementedError(path, body)

    def models(self) -> list[Answer]:
        """Every bundle's name, task and sentence."""
        try:
            is_bundle = (self._folder / "manifest.json").exists()
            folders = [self._folder] if is_bundle else bundle_folders(self._folder)
            manifests = [read_bundle(folder).manifest for folder in folders]
        except BundleError as error:
            raise CommandError(str(error)) from error
        return [
            x.model_dump(include={"name", "task", "precision", "description"}) for x in manifests
        ]

    def close(self) -> None:
        """Nothing is held."""


_COLUMNS = {
    "generate": ("prompt", "choice", "finish_reason", "seed", "text"),
    "score": ("bits_per_char", "bits", "logprob", "chars", "text"),
    "translate": ("source", "rank", "score", "logprob", "finish_reason", "text"),
}


def _write_generated(service: Service, options: argparse.Namespace, texts: list[str]) -> None:
    fields = ("max_tokens", "temperature", "top_k", "top_p", "seed", "n", "pattern")
    body = _given(options, fields) | {"prompt": texts, "stop": options.stop}
    for text, result in zip(texts, service.ask("/generate", body)["results"], strict=True):
        for place, choice in enumerate(result["choices"]):
            row = {"prompt": text, "choice": place, **choice}
            _write(options.format, row, "{text}", _COLUMNS["generate"])


def _write_scored(service: Service, options: argparse.Namespace, texts: list[str]) -> None:
    body = _given(options, ("source", "context", "unknown")) | {"text": texts}
    body |= {"eos": True} if options.eos else {}
    body |= {"tokens": True} if options.tokens else {}
    for text, result in zip(texts, service.ask("/score", body)["results"], strict=True):
        row = {**result, "text": text}
        _write(options.format, row, "{bits_per_char}\t{text}", _COLUMNS["score"])


def _write_translated(service: Service, options: argparse.Namespace, texts: list[str]) -> None:
    fields = ("beam_size", "num_hypotheses", "length_penalty", "max_tokens")
    body = _given(options, fields) | {"source": texts}
    body |= {"return_alignments": True} if options.alignments else {}
    for text, result in zip(texts, service.ask("/translate", body)["results"], strict=True):
        if options.format == "json":
            _write("json", {"source": text, **result}, "")
            continue
        for rank, hypothesis in enumerate(result["hypotheses"], 1):
            row = {"source": text, "rank": rank, **hypothesis}
            _write(options.format, row, "{text}", _COLUMNS["translate"])


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    found = {name: getattr(options, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _write(form: str, row: Mapping[str, Any], text_form: str, columns: Sequence[str] = ()) -> None:
    if form == "json":
        line = json.dumps(dict(row), ensure_ascii=False)
    elif form == "tsv":
        line = "\t".join(_escaped(row[name]) for name in columns or row)
    else:
        line = text_form.format(**row)
    sys.stdout.write(line + "\n")


def _escaped(value: Any) -> str:
    """A field of TSV: what would end it is written with a backslash."""
    text = "" if value is None else str(value)
    for raw, shown in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(raw, shown)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Serve bundles (without a command), or run a task from the command line.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    where = common.add_mutually_exclusive_group()
    where.add_argument("--url", default="http://127.0.0.1:8000", help="of a running server")
    where.add_argument("--bundle", type=Path, help="folder of a bundle, to run it in this process")
    common.add_argument("--model", help="name of a served model")
    common.add_argument("--api-key-file", type=Path, help="file with the key of a running server")
    common.add_argument("--format", choices=("text", "tsv", "json"), default="text")
    texts = argparse.ArgumentParser(add_help=False)
    texts.add_argument(
        "texts", nargs="*", help="left out: the lines of standard input, as they come"
    )
    generate = commands.add_parser(
        "generate",
        parents=[common, texts],
        help="continue prompts; without any, begin texts",
        epilog='python -m service generate --bundle models/alice-lstm "Alice was " --seed 1',
    )
    generate.add_argument("--max-tokens", type=int)
    generate.add_argument("--temperature", type=float)
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--seed", type=int)
    generate.add_argument("-n", "--n", type=int, help="choices a prompt")
    generate.add_argument("--stop", action="append", default=[], help="may be given again")
    generate.add_argument("--pattern", help="what the text may be: masked, not conditioned")
    score = commands.add_parser(
        "score",
        parents=[common, texts],
        help="how surprising texts are: bits a character, then the text",
        epilog="tail -f log | python -m service score --bundle models/alice-lstm: each line as it "
        "comes. For the most surprising lines of a file: … score … < log | sort -rn | head",
    )
    score.add_argument("--source", help="of an encoder-decoder: what the texts translate")
    score.add_argument("--context", help="read before each text and not counted")
    score.add_argument("--unknown", choices=("unk", "error", "skip"))
    score.add_argument("--eos", action="store_true", help="count the end of each text")
    score.add_argument("--tokens", action="store_true", help="with json: every character")
    translate = commands.add_parser(
        "translate",
        parents=[common, texts],
        help="translate sources",
        epilog="python -m service translate --bundle models/g2p-en unroll recurrent",
    )
    translate.add_argument("--beam-size", type=int)
    translate.add_argument("--num-hypotheses", type=int)
    translate.add_argument("--length-penalty", type=float)
    translate.add_argument("--max-tokens", type=int)
    translate.add_argument("--alignments", action="store_true", help="with json")
    commands.add_parser(
        "models",
        parents=[common],
        help="what is served, or what a folder has",
        epilog="python -m service models --bundle models",
    )
    keys = commands.add_parser(
        "keys",
        help="make an API key: it goes to standard error, and its line for the file to output",
        epilog="python -m service keys alice >> api-keys",
    )
    keys.add_argument("name", help="whose it is, as logs tell it")
    keys.add_argument("--role", choices=ROLES, default="use")
    return parser
