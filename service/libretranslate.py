"""LibreTranslate's interface over the encoder-decoders, under a prefix of its own."""

import asyncio
from typing import Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.answers import json_answer, problems_as, served_engines, texts_within, unless_gone
from service.body import LARGE_BYTES, body_documentation, field_errors, read_body, read_bytes
from service.errors import InvalidRequest
from service.request_context import current_request
from service.schemas import Answer, Problem, Texts
from service.translator import DEFAULT_BEAM_SIZE, Translated, TranslateOptions, Translator

AUTO = "auto"
STATUS = {422: 400}  # what their clients expect of a mistake
_FORM = "application/x-www-form-urlencoded"

router = APIRouter(prefix="/libretranslate", tags=["LibreTranslate"])


class LibreTranslateError(Answer):
    """An error in LibreTranslate's form."""

    error: str = Field(description="What was wrong and what is allowed.")


class LibreTranslateRequest(BaseModel):
    """Translate a text, or every text of a list."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    q: Texts = Field(description="A text or a list of texts.")
    source: str = Field(description=f'Language code, or "{AUTO}" where the target leaves one.')
    target: str = Field(description="Language code.")
    format: Literal["text"] = Field("text", description="HTML is not offered.")
    alternatives: int = Field(0, ge=0, description="Further translations of each text.")
    api_key: str = Field("", max_length=512, description="Accepted, and not looked at.")
    model: str | None = Field(
        None, description="An extension: which of several models for the same languages."
    )


class DetectedLanguage(Answer):
    """What "auto" stood for."""

    language: str = Field(description="Language code.")
    confidence: int = Field(description="100: no other is served for the target.")


class LibreTranslateResponse(Answer):
    """Answer of `/libretranslate/translate`."""

    translatedText: str | list[str] = Field(  # noqa: N815 (their name)
        description="The translation, or one a text."
    )
    alternatives: list[str] | list[list[str]] | None = Field(
        None, description="Where they were asked for."
    )
    detectedLanguage: DetectedLanguage | list[DetectedLanguage] | None = Field(  # noqa: N815
        None, description=f'Where the source was "{AUTO}".'
    )


class Language(Answer):
    """A language that is translated from."""

    code: str = Field(description="What requests call it.")
    name: str = Field(description="The same for people.")
    targets: list[str] = Field(description="What it is translated to.")


def libretranslate_error(problem: Problem) -> LibreTranslateError:
    """A problem in LibreTranslate's form."""
    pointer = problem.errors[0].pointer if problem.errors else ""
    where = f" ({pointer})" if pointer else ""
    return LibreTranslateError(error=f"{problem.detail}{where}")


@router.get("/languages")
async def languages(request: Request) -> list[Language]:
    """Every language that a served model translates from, and what to."""
    targets: dict[str, set[str]] = {}
    for engine in _translators(request):
        for code in _sources(engine):
            targets.setdefault(code, set()).add(engine.manifest.target.lang)
    return [
        Language(code=code, name=code, targets=sorted(found))
        for code, found in sorted(targets.items())
    ]


@router.post(
    "/translate",
    response_model=LibreTranslateResponse,
    responses=problems_as(libretranslate_error, STATUS),
    openapi_extra=body_documentation(LibreTranslateRequest),
)
async def translate(request: Request) -> Response:
    """Translate with the model for two languages; of several the one with most parameters."""
    body = await _read(request)
    engine = _chosen(request, body)
    texts = texts_within(body.q, "/q", request)
    count = 1 + body.alternatives
    limit = request.app.state.settings.max_n - 1
    if body.alternatives > limit:
        raise InvalidRequest.at("/alternatives", f"at most {limit} are allowed")
    beams = max(count, min(DEFAULT_BEAM_SIZE, request.app.state.settings.max_beam_size))
    options = TranslateOptions(beam_size=beams, num_hypotheses=count)
    results = await unless_gone(request, _translated(engine, texts, options))
    found = [[x.text for x in result.hypotheses] for result in results]
    alone = isinstance(body.q, str)
    first = [x[0] for x in found]
    rest = [x[1:] for x in found]
    detected = [DetectedLanguage(language=_sources(engine)[0], confidence=100)] * len(found)
    fields: dict[str, Any] = {"translatedText": first[0] if alone else first}
    if body.alternatives:
        fields["alternatives"] = rest[0] if alone else rest
    if body.source == AUTO:
        fields["detectedLanguage"] = detected[0] if alone else detected
    answer = LibreTranslateResponse(**fields)
    return await json_answer(
        sum(map(len, first)), lambda: answer, exclude=set(type(answer).model_fields) - set(fields)
    )


async def _translated(
    engine: Translator, texts: list[str], options: TranslateOptions
) -> list[Translated]:
    try:
        return await engine.translate(texts, [""] * len(texts), options)
    except InvalidRequest as error:
        # The engine points at its source, which is a language here.
        raise InvalidRequest.at("/q", error.detail) from error


async def _read(request: Request) -> LibreTranslateRequest:
    """The body, as JSON or as a form."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != _FORM:
        return await read_body(request, LibreTranslateRequest)
    body = await read_bytes(request, (_FORM,))
    # A text a field, and the other fields.
    limit = request.app.state.settings.max_inputs + len(LibreTranslateRequest.model_fields) - 1
    if len(body) <= LARGE_BYTES:
        return _parse_form(body, limit)
    return await asyncio.to_thread(_parse_form, body, limit)


def _parse_form(body: bytes, limit: int) -> LibreTranslateRequest:
    """A form of so many fields at most. Raises InvalidRequest."""
    try:
        form = parse_qs(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=limit,
        )
    except ValueError as error:
        detail = f"the body is not a form in UTF-8 with at most {limit} fields"
        raise InvalidRequest(detail) from error
    fields: dict[str, Any] = {}
    for name, values in form.items():
        if len(values) > 1 and name != "q":
            raise InvalidRequest("a field stands once in a form, but for q")
        fields[name] = values if len(values) > 1 else values[0]
    if str(fields.get("alternatives", "")).isdecimal() and len(fields["alternatives"]) < 10:
        fields["alternatives"] = int(fields["alternatives"])
    try:
        return LibreTranslateRequest.model_validate(fields)
    except ValidationError as error:
        raise field_errors(LibreTranslateRequest, error) from error


def _translators(request: Request) -> list[Translator]:
    return [x for x in served_engines(request) if isinstance(x, Translator)]


def _sources(engine: Translator) -> list[str]:
    """The languages that a model translates from: some read several."""
    return [code.strip() for code in engine.manifest.source.lang.split(",")]


def _chosen(request: Request, body: LibreTranslateRequest) -> Translator:
    """The model for the two languages. Raises InvalidRequest with those that there are."""
    served = _translators(request)
    pairs = {(source, x.manifest.target.lang) for x in served for source in _sources(x)}
    shown = ", ".join(f"{source} to {target}" for source, target in sorted(pairs)) or "none"
    target, source = body.target.lower(), body.source.lower()
    fitting = [x for x in served if x.manifest.target.lang.lower() == target]
    if source != AUTO:
        fitting = [x for x in fitting if source in [code.lower() for code in _sources(x)]]
    if not fitting:
        raise InvalidRequest.at(
            "/target", f"no model is served for these languages; there are {shown}"
        )
    if source == AUTO and len({code for x in fitting for code in _sources(x)}) > 1:
        raise InvalidRequest.at(
            "/source", f"name it: several lead to this target; there are {shown}"
        )
    if body.model is not None:
        fitting = [x for x in fitting if x.manifest.name == body.model]
        if not fitting:
            raise InvalidRequest.at("/model", "no such model is served for these languages")
    chosen = max(fitting, key=lambda x: x.manifest.model.parameters)
    current_request().hold(chosen)
    return chosen
