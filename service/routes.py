"""The native endpoints: schema in, engine call, schema out."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.body import body_documentation, read_body
from service.engine import Engine, Scored
from service.errors import ClientGone, InvalidRequest, ModelNotFound
from service.pair_schemas import EncoderDecoderDetail, TranslateRequest, TranslateResponse
from service.schemas import (
    AnyEngine,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    Live,
    ModelDetail,
    ModelList,
    ModelSummary,
    Problem,
    Ready,
    ScoreRequest,
    ScoreResponse,
)
from service.settings import Settings
from service.translator import ALIGNMENT_SIZE, Translator
from service.workers import LARGE_CHARS

Result = TypeVar("Result")

router = APIRouter()

_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_STATUS = {
    400: "The body is not JSON.",
    404: "No served model has that name.",
    413: "The body is over the limit.",
    415: "The body is not application/json, or it is compressed.",
    422: "A field or a limit; `errors` points at it.",
    429: "The queue is full; see Retry-After.",
    500: "The model run failed for this request.",
    503: "The engine is not running; see Retry-After.",
    504: "The request took too long.",
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Problem, "content": _PROBLEM}
    for status, text in _STATUS.items()
}

_GENERATE_EXAMPLE = {
    "model": "alice-lstm",
    "prompt": "Alice was ",
    "max_tokens": 80,
    "temperature": 0.7,
    "seed": 1,
}
_TRANSLATE_EXAMPLE = {"model": "g2p-en", "source": ["unroll", "recurrent"], "beam_size": 5}
_SCORE_EXAMPLE = {
    "model": "alice-lstm",
    "text": ["the white rabbit", "the whjte rabbit"],
    "context": "Alice saw ",
}


@router.post(
    "/generate",
    response_model=GenerateResponse,
    responses=_PROBLEMS,
    openapi_extra=body_documentation(GenerateRequest, _GENERATE_EXAMPLE),
    tags=["models"],
)
async def generate(request: Request) -> Response:
    """Continue a prompt, or every prompt of a list."""
    body = await read_body(request, GenerateRequest)
    engine = _engine(request, body.model)
    if not isinstance(engine, Engine):
        raise InvalidRequest.at("/model", "an encoder-decoder answers /translate and /score")
    prompts = _list(body.prompt, "/prompt", request)
    _check_choices(body, request.app.state.settings)
    results = await _unless_gone(request, engine.generate(prompts, body.options()))
    size = sum(len(choice.text) for result in results for choice in result.choices)
    return await _json(
        size * (1 + (body.logprobs or 0)), lambda: GenerateResponse.of(engine, results)
    )


@router.post(
    "/translate",
    response_model=TranslateResponse,
    responses=_PROBLEMS,
    openapi_extra=body_documentation(TranslateRequest, _TRANSLATE_EXAMPLE),
    tags=["models"],
)
async def translate(request: Request) -> Response:
    """Translate a source, or every source of a list."""
    body = await read_body(request, TranslateRequest)
    engine = _engine(request, body.model)
    if not isinstance(engine, Translator):
        raise InvalidRequest.at("/model", "a language model translates nothing; see /models")
    sources = _list(body.source, "/source", request)
    prefixes = body.prefixes(len(sources))
    results = await _unless_gone(request, engine.translate(sources, prefixes, body.options()))
    size = sum(len(x.text) for result in results for x in result.hypotheses)
    size *= ALIGNMENT_SIZE if body.return_alignments else 1
    return await _json(size, lambda: TranslateResponse.of(engine, results))


@router.post(
    "/score",
    response_model=ScoreResponse,
    responses=_PROBLEMS,
    openapi_extra=body_documentation(ScoreRequest, _SCORE_EXAMPLE),
    tags=["models"],
)
async def score(request: Request) -> Response:
    """The probability of a text, or of every text of a list; given its source, where it has one."""
    body = await read_body(request, ScoreRequest)
    engine = _engine(request, body.model)
    texts = _list(body.text, "/text", request)
    if isinstance(engine, Translator):
        results = await _unless_gone(request, _score_pairs(engine, body, texts))
    else:
        results = await _unless_gone(request, _score_texts(engine, body, texts))
    size = sum(map(len, texts)) * (1 + body.top_logprobs) if body.tokens else 0
    return await _json(size, lambda: ScoreResponse.of(engine, results))


def _score_texts(
    engine: Engine, body: ScoreRequest, texts: list[str]
) -> Coroutine[Any, Any, list[Scored]]:
    if body.source is not None:
        raise InvalidRequest.at("/source", "a language model takes `context`, and no source")
    return engine.score(texts, body.contexts(len(texts)), body.options())


def _score_pairs(
    engine: Translator, body: ScoreRequest, texts: list[str]
) -> Coroutine[Any, Any, list[Scored]]:
    if body.source is None:
        raise InvalidRequest.at("/source", "an encoder-decoder scores a text given its source")
    if body.context or not body.bos:
        pointer = "/context" if body.context else "/bos"
        raise InvalidRequest.at(pointer, "an encoder-decoder scores a target from its beginning")
    eos = True if body.eos is None else body.eos
    return engine.score(body.sources(len(texts)), texts, body.options(), eos=eos)


@router.get("/models", tags=["models"])
async def models(request: Request) -> ModelList:
    """Every served model."""
    engines = request.app.state.engines
    return ModelList(models=[ModelSummary.of(engines[name]) for name in sorted(engines)])


# "4XX" and not 404: else FastAPI documents a 422 of its own that no name can cause.
@router.get("/models/{name}", responses={"4XX": _PROBLEMS[404]}, tags=["models"])
async def model(name: str, request: Request) -> ModelDetail | EncoderDecoderDetail:
    """One model: what it is, what it was trained on and what it is worth."""
    engine = _engine(request, name)
    if isinstance(engine, Translator):
        return EncoderDecoderDetail.of_translator(engine)
    return ModelDetail.of_engine(engine)


@router.get("/livez", tags=["health"])
async def livez() -> Live:
    """Whether the process answers."""
    return Live(status="live")


@router.get("/readyz", responses={503: {"model": Ready}}, tags=["health"])
async def readyz(request: Request, response: Response) -> Ready:
    """Whether to send traffic, why not, and the age of each engine's last step."""
    engines: dict[str, AnyEngine] = request.app.state.engines
    states = [
        EngineState(model=name, ready=engine.alive, last_step_age_s=engine.age_s())
        for name, engine in sorted(engines.items())
    ]
    reasons = [f"the engine of {state.model} is not running" for state in states if not state.ready]
    if not states:
        reasons = ["no model is served"]
    if reasons:
        response.status_code = 503
    return Ready(status="not ready" if reasons else "ready", reasons=reasons, engines=states)


def _engine(request: Request, name: str | None) -> AnyEngine:
    """An engine by its model's name, looked up in memory."""
    engines: dict[str, AnyEngine] = request.app.state.engines
    if name is None and len(engines) == 1:
        return next(iter(engines.values()))
    served = ", ".join(sorted(engines))
    if name is None:
        raise InvalidRequest.at("/model", f"name one of the served models: {served}")
    if name not in engines:
        raise ModelNotFound(f"there is no such model; there are {served}")
    return engines[name]


def _list(texts: str | list[str], pointer: str, request: Request) -> list[str]:
    """One text or a list of texts, as a list within the limit."""
    listed = [texts] if isinstance(texts, str) else texts
    limit = request.app.state.settings.max_inputs
    if len(listed) > limit:
        raise InvalidRequest.at(pointer, f"too many texts; at most {limit} are allowed")
    return listed


def _check_choices(body: GenerateRequest, settings: Settings) -> None:
    if body.n > settings.max_n:
        raise InvalidRequest.at("/n", f"too many choices; at most {settings.max_n} are allowed")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop
    if len(stops) > settings.max_stop:
        limit = settings.max_stop
        raise InvalidRequest.at("/stop", f"too many stop strings; at most {limit} are allowed")
    if any(not 1 <= len(stop) <= settings.max_stop_chars for stop in stops):
        limit = settings.max_stop_chars
        raise InvalidRequest.at("/stop", f"a stop string has 1 to {limit} characters")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result. A client that goes away ends it, and its rows leave the batch."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client closed the connection")
        return working.result()
    finally:
        # Also where this request itself is cancelled: neither may outlive it.
        for task in (working, watching):
            task.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _json(size: int, build: Any) -> Response:
    """The answer as JSON, built and written in a thread where it is large."""

    def render() -> str:
        answer: BaseModel = build()
        return answer.model_dump_json()

    content = render() if size <= LARGE_CHARS else await asyncio.to_thread(render)
    return Response(content, media_type="application/json")
