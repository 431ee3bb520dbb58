"""A bundle (`--bundle`), run in this process; or a folder of bundles, listed."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from service.bundle.files import BundleError
from service.bundle.store import MANIFEST_FILE, read_bundle
from service.cli.answers import REFUSED, Answer, CommandError, Refusal
from service.endpoints.classify_wire import ClassifyRequest, ClassifyResponse
from service.endpoints.generate_wire import GenerateRequest, GenerateResponse
from service.endpoints.infill_wire import InfillRequest, InfillResponse
from service.endpoints.score_wire import ScoreRequest, ScoreResponse
from service.endpoints.tag_wire import TagRequest, TagResponse
from service.endpoints.translate_wire import TranslateRequest, TranslateResponse
from service.errors import InvalidRequest, ServiceError
from service.http.body import field_errors
from service.http.option_names import named_by
from service.http.wire import listed
from service.settings import Settings
from service.tasks.engine import (
    CLASSIFY,
    DECIDE,
    GENERATE,
    INFILL,
    PROPOSE,
    SCORE,
    SCORE_LABELS,
    TAG,
    TRANSLATE,
    Ability,
    Engine,
)
from service.tasks.folders import bundle_folders
from service.tasks.kinds import Surroundings, open_engine

Able = TypeVar("Able")
_Answering: TypeAlias = Callable[[Engine, str], Coroutine[Any, Any, Answer]]


class Bundle:
    """The engine of a bundle's folder, and the one that ranks its proposals, if named."""

    def __init__(self, folder: Path, decider: Path | None = None) -> None:
        self._engine = _opened(folder)
        deciding = None if decider is None else _opened(decider)
        self._engines = [self._engine] if deciding is None else [self._engine, deciding]
        self._answers: dict[str, _Answering] = {
            **_ANSWERS,
            "/infill": partial(_infill, decider=deciding),
        }
        self._runner = asyncio.Runner()
        self._started = False

    async def _start(self) -> None:
        for engine in self._engines:
            engine.start()

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a body. The first one starts threads; until then, a process may fork."""
        if not self._started:
            self._runner.run(self._start())
            self._started = True
        try:
            return self._runner.run(self._answers[path](self._engine, json.dumps(dict(body))))
        except ServiceError as error:
            if error.status not in REFUSED:
                raise CommandError(error.detail) from error
            option = error.errors[0].option if error.errors else ""
            raise Refusal(error.detail, option) from error

    def close(self) -> None:
        """End the engines."""
        for engine in self._engines if self._started else []:
            self._runner.run(engine.stop())
        self._runner.close()


def _opened(folder: Path) -> Engine:
    try:
        surroundings = Surroundings(settings=Settings(), threads=1)
        return open_engine(read_bundle(folder), surroundings)
    except BundleError as error:
        raise CommandError(str(error)) from error


_LISTED = ("name", "task", "description", "precision", "fills")


def models_in(folder: Path) -> list[Answer]:
    """What `/models` lists, of every bundle in a folder, or of the folder's own bundle."""
    try:
        is_bundle = (folder / MANIFEST_FILE).exists()
        folders = [folder] if is_bundle else bundle_folders(folder)
        manifests = [read_bundle(each).manifest for each in folders]
    except BundleError as error:
        raise CommandError(str(error)) from error
    return [
        {name: getattr(manifest, name) for name in _LISTED}
        | {"adapts": any(graph.role == "adapt" for graph in manifest.graphs)}
        for manifest in manifests
    ]


def _able(engine: Engine, ability: Ability[Able]) -> Able:
    found = ability.of(engine)
    if found is None:
        raise InvalidRequest(ability.lacking(engine.abilities))
    return found


async def _generate(engine: Engine, body: str) -> Answer:
    request = _parsed(GenerateRequest, body)
    generates = _able(engine, GENERATE)
    options = request.options()
    results = await generates.generate(listed(request.prompt), options)
    return _plain(GenerateResponse.of(engine, options, results))


async def _score(engine: Engine, body: str) -> Answer:
    request = _parsed(ScoreRequest, body)
    texts, options = listed(request.text), request.options()
    labels = request.labels(len(texts))
    if labels is not None:
        results = await _able(engine, SCORE_LABELS).score_labels(texts, labels, options)
    else:
        contexts, sources = request.contexts(len(texts)), request.sources(len(texts))
        scores = _able(engine, SCORE)
        results = await scores.score(texts, options, contexts=contexts, sources=sources)
    return _plain(ScoreResponse.of(engine, options, results))


async def _translate(engine: Engine, body: str) -> Answer:
    request = _parsed(TranslateRequest, body)
    translates = _able(engine, TRANSLATE)
    sources = listed(request.source)
    prefixes = request.prefixes(len(sources))
    results = await translates.translate(sources, prefixes, request.options())
    return _plain(TranslateResponse.of(engine, results))


async def _classify(engine: Engine, body: str) -> Answer:
    request = _parsed(ClassifyRequest, body)
    classifies = _able(engine, CLASSIFY)
    results = await classifies.classify(listed(request.text), request.options())
    return _plain(ClassifyResponse.of(engine, results))


async def _tag(engine: Engine, body: str) -> Answer:
    request = _parsed(TagRequest, body)
    tags = _able(engine, TAG)
    results = await tags.tag(listed(request.text), request.options())
    return _plain(TagResponse.of(tags, results))


async def _infill(engine: Engine, body: str, decider: Engine | None) -> Answer:
    request = _parsed(InfillRequest, body)
    texts, options = request.blanks(), request.options()
    with named_by(request.fields):
        if decider is None:
            infills = _able(engine, INFILL)
            results = await infills.infill(texts, options)
        else:
            proposes, decides = PROPOSE.of(engine), DECIDE.of(decider)
            if proposes is None or decides is None:
                raise InvalidRequest.of_option("rescore", _RESCORE)
            proposals = await proposes.propose(texts, options)
            results = await decides.infill(texts, options, proposals=proposals)
    return _plain(InfillResponse.of(engine, results, decider))


_RESCORE = "--bundle must be trained to fill blanks, and --rescore a language model"
_ANSWERS: dict[str, _Answering] = {
    "/generate": _generate,
    "/score": _score,
    "/translate": _translate,
    "/classify": _classify,
    "/tag": _tag,
}


def _plain(answer: BaseModel) -> Answer:
    """An answer as HTTP would send it: its details are built as it is serialized."""
    plain: Answer = json.loads(to_json(answer))
    return plain


def _parsed(schema: type[Any], body: str) -> Any:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise field_errors(schema, error) from error
