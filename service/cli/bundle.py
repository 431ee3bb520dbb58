"""A bundle (`--bundle`), run in this process; or a folder of bundles, listed."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from service.bundle.files import BundleError
from service.bundle.store import MANIFEST_FILE, read_bundle
from service.cli.answers import REFUSED, Answer, CommandError, Refusal
from service.endpoints.generate_wire import GenerateRequest, GenerateResponse
from service.endpoints.score_wire import ScoreRequest, ScoreResponse
from service.endpoints.translate_wire import TranslateRequest, TranslateResponse
from service.errors import InvalidRequest, ServiceError
from service.http.body import field_errors
from service.http.wire import listed
from service.settings import Settings
from service.tasks.engine import GENERATE, SCORE, TRANSLATE, Engine
from service.tasks.kinds import Surroundings, open_engine
from service.tasks.registry import bundle_folders


class Bundle:
    """The engine of a bundle's folder."""

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
            if error.status not in REFUSED:
                raise CommandError(error.detail) from error
            option = error.errors[0].option if error.errors else ""
            raise Refusal(error.detail, option) from error

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self._engine.stop())
        self._runner.close()


def models_in(folder: Path) -> list[Answer]:
    """What `/models` lists, of every bundle in a folder, or of the folder's own bundle."""
    try:
        is_bundle = (folder / MANIFEST_FILE).exists()
        folders = [folder] if is_bundle else bundle_folders(folder)
        manifests = [read_bundle(each).manifest for each in folders]
    except BundleError as error:
        raise CommandError(str(error)) from error
    return [
        {name: getattr(manifest, name) for name in ("name", "task", "description", "precision")}
        | {"adapts": any(graph.role == "adapt" for graph in manifest.graphs)}
        for manifest in manifests
    ]


async def _generate(engine: Engine, body: str) -> Answer:
    request = _parsed(GenerateRequest, body)
    generates = GENERATE.of(engine)
    if generates is None:
        raise InvalidRequest("an encoder-decoder does not continue text; see the command translate")
    options = request.options()
    results = await generates.generate(listed(request.prompt), options)
    return _plain(GenerateResponse.of(engine, options, results))


async def _score(engine: Engine, body: str) -> Answer:
    request = _parsed(ScoreRequest, body)
    scores = SCORE.of(engine)
    if scores is None:
        raise InvalidRequest("this model does not score texts; see the command models")
    texts = listed(request.text)
    contexts, sources = request.contexts(len(texts)), request.sources(len(texts))
    options = request.options()
    results = await scores.score(texts, options, contexts=contexts, sources=sources)
    return _plain(ScoreResponse.of(engine, options, results))


async def _translate(engine: Engine, body: str) -> Answer:
    request = _parsed(TranslateRequest, body)
    translates = TRANSLATE.of(engine)
    if translates is None:
        raise InvalidRequest("a language model does not translate; see the command generate")
    sources = listed(request.source)
    prefixes = request.prefixes(len(sources))
    results = await translates.translate(sources, prefixes, request.options())
    return _plain(TranslateResponse.of(engine, results))


_ANSWERS = {"/generate": _generate, "/score": _score, "/translate": _translate}


def _plain(answer: BaseModel) -> Answer:
    """An answer as HTTP would send it: its details are built as it is serialized."""
    plain: Answer = json.loads(to_json(answer))
    return plain


def _parsed(schema: type[Any], body: str) -> Any:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise field_errors(schema, error) from error
