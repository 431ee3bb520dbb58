"""LibreTranslate's interface over the encoder-decoders, under a prefix of its own.

Texts are translated line by line. A line too long for the model is translated sentence by sentence
(`pieces`). HTML keeps its tags.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service.endpoints.libretranslate_wire import (
    AUTO,
    FIELD_OF_OPTION,
    KEYLESS_BYTES,
    DetectedLanguage,
    DetectRequest,
    FrontendSettings,
    HealthOut,
    Language,
    LibreTranslateRequest,
    LibreTranslateResponse,
    SettingsLanguage,
    SettingsLanguages,
    libretranslate_error,
)
from service.endpoints.pieces import Piece, joined, pieces_of
from service.errors import (
    BodyTooLarge,
    EngineStopped,
    InvalidRequest,
    NotOffered,
    ServiceError,
    Unauthorized,
)
from service.http.answers import engine_with, json_answer, registry_of, unless_gone
from service.http.body import (
    LARGE_BYTES,
    body_documentation,
    check_values,
    field_errors,
    read_bytes,
)
from service.http.forms import MULTIPART, URL_ENCODED, form_fields
from service.http.gateway import admit
from service.http.json_values import holds_more_values
from service.http.option_names import named_by
from service.http.problems import problems_as
from service.http.wire import listed
from service.observe.request_context import current_request
from service.runtime.threads import in_thread, off_loop
from service.tasks.cards import Card
from service.tasks.engine import TRANSLATE, Translates
from service.tasks.limits import at_most
from service.tasks.translations import Translated, TranslateOptions, default_beam_size

STATUS = {422: 400}  # the status that their clients expect for an invalid request
_MOST_TEXTS = 4  # texts of the greatest length in one request
_MOST_LISTED = 8192  # values of a field that may be a list in JSON
_MEDIA_TYPES = ("application/json", URL_ENCODED, MULTIPART)
_ERRORS = problems_as(libretranslate_error, STATUS)

router = APIRouter(prefix="/libretranslate", tags=["LibreTranslate"])

Schema = TypeVar("Schema", LibreTranslateRequest, DetectRequest)


@router.get("/languages")
async def languages(request: Request) -> list[Language]:
    """Every source language of the served models, with its targets."""
    targets: dict[str, set[str]] = {}
    for card in _served(request):
        for code in card.sources:
            targets.setdefault(code, set()).add(card.target)
    return [
        Language(code=code, name=code, targets=sorted(found))
        for code, found in sorted(targets.items())
    ]


@router.get("/frontend/settings")
async def frontend_settings(request: Request) -> FrontendSettings:
    """The settings of a translation page."""
    state = request.app.state
    pairs = _pairs(_served(request)) or [("", "")]
    source, target = (SettingsLanguage(code=code, name=code) for code in pairs[0])
    return FrontendSettings(
        charLimit=-1,
        frontendTimeout=500,
        apiKeys=state.api_keys is not None,
        keyRequired=state.api_keys is not None,
        suggestions=False,
        filesTranslation=False,
        supportedFilesFormat=[],
        language=SettingsLanguages(source=source, target=target),
    )


@router.get("/health", responses={503: _ERRORS[503]})
async def health(request: Request) -> HealthOut:
    """Whether every encoder-decoder is ready."""
    registry, served = registry_of(request), _served(request)
    if not served or not all(registry.is_ready(card.name) for card in served):
        raise EngineStopped("no model can translate now", headers={"Retry-After": "1"})
    return HealthOut(status="ok")


@router.post(
    "/detect",
    responses=_ERRORS,
    openapi_extra=body_documentation(DetectRequest),
)
async def detect(request: Request) -> list[DetectedLanguage]:
    """The language of a text if all models have the same source language; refused otherwise."""
    await _read(request, DetectRequest)
    found = {code for card in _served(request) for code in card.sources}
    if len(found) != 1:
        raise InvalidRequest(
            "languages are not detected here; name the source of a translation: "
            + (", ".join(sorted(found)) or "there is none")
        )
    return [DetectedLanguage(language=found.pop(), confidence=100)]


@router.post("/suggest", include_in_schema=False)
async def suggest() -> None:
    """Always refused: suggestions are not accepted."""
    raise NotOffered("suggestions are not accepted")


@router.post("/translate_file", include_in_schema=False)
async def translate_file() -> None:
    """Always refused: files are not translated."""
    raise NotOffered("files are not translated; send their text to /libretranslate/translate")


@router.post(
    "/translate",
    response_model=LibreTranslateResponse,
    responses=_ERRORS,
    openapi_extra=body_documentation(LibreTranslateRequest),
)
async def translate(request: Request) -> Response:
    """Translate with the model for the two languages, or the largest one if there are several."""
    body = await _read(request, LibreTranslateRequest)
    engine, detected = await _chosen(request, body)
    texts = listed(body.q)
    settings = request.app.state.settings
    at_most("q", len(texts), settings.max_inputs, "texts")
    for text in texts:
        at_most("q", len(text), settings.max_prompt_chars, "characters a text")
    # Cutting a page takes time in proportion to its length: 50 ms for 100,000 characters of tags.
    whole = _MOST_TEXTS * settings.max_prompt_chars
    at_most("q", sum(map(len, texts)), whole, "characters in all texts")
    alternatives = body.alternatives or 0
    if alternatives > settings.max_n - 1:
        limit = settings.max_n - 1
        raise InvalidRequest.of_option("alternatives", f"at most {limit} are allowed")
    count = 1 + alternatives
    beams = max(count, default_beam_size(settings.max_beam_size))
    options = TranslateOptions(beam_size=beams, num_hypotheses=count)
    is_html, size = body.format == "html", sum(map(len, texts))
    cut = await off_loop(size, lambda: _cut(engine, texts, settings.max_inputs, html=is_html))
    sources = [piece.text for pieces in cut for piece in pieces if piece.is_source]
    results: list[Translated] = []
    if sources:
        with named_by(FIELD_OF_OPTION):
            translating = engine.translate(sources, [""] * len(sources), options)
            results = await unless_gone(request, translating)
    size += sum(len(x.text) for result in results for x in result.hypotheses)

    def answer() -> LibreTranslateResponse:
        found = [_joined(cut, results, place, html=is_html) for place in range(count)]
        alone = isinstance(body.q, str)
        fields: dict[str, Any] = {"translatedText": found[0][0] if alone else found[0]}
        if alternatives:
            others = [list(each) for each in zip(*found[1:], strict=True)]
            fields["alternatives"] = others[0] if alone else others
        if body.source.lower() == AUTO and detected is not None:
            told = DetectedLanguage(language=detected, confidence=100)
            fields["detectedLanguage"] = told if alone else [told] * len(texts)
        return LibreTranslateResponse(**fields)

    # Fields that were not asked for are left out.
    left_out = set() if alternatives else {"alternatives"}
    if body.source.lower() != AUTO or detected is None:
        left_out.add("detectedLanguage")
    return await json_answer(size, answer, exclude=left_out)


def _cut(engine: Translates, texts: Sequence[str], limit: int, *, html: bool) -> list[list[Piece]]:
    """The parts of every text. Raises InvalidRequest where there are too many to translate."""
    count = 0
    cut: list[list[Piece]] = []
    for text in texts:
        cut.append([])
        for piece in pieces_of(text, engine.fits, html=html):
            count += piece.is_source
            at_most("q", count, limit, "lines and sentences in all texts")
            cut[-1].append(piece)
    return cut


def _joined(
    cut: Sequence[Sequence[Piece]], results: Sequence[Translated], place: int, *, html: bool
) -> list[str]:
    """Each text with the hypotheses of one rank; a piece with fewer gives its best one."""
    found = iter(
        result.hypotheses[place if place < len(result.hypotheses) else 0].text for result in results
    )
    return [joined(pieces, found, html=html) for pieces in cut]


# --- bodies ---------------------------------------------------------------------------------------


async def _read(request: Request, schema: type[Schema]) -> Schema:
    """The body, as JSON or as a form. It may contain the API key."""
    content_type = request.headers.get("content-type", "")
    # One field for each text, and the other fields.
    limit = request.app.state.settings.max_inputs + len(schema.model_fields) - 1
    bound = KEYLESS_BYTES if current_request().owes_key else None
    try:
        body = await read_bytes(request, _MEDIA_TYPES, bound)
        if len(body) <= LARGE_BYTES:
            read = _parse(schema, content_type, body, limit)
        else:
            values: int = request.app.state.settings.max_values
            read = await in_thread(lambda: _parse_large(schema, content_type, body, limit, values))
    except BodyTooLarge:
        raise
    except ServiceError as error:
        try:
            admit(request, None)
        except Unauthorized as unauthorized:
            # A client without a key gets no other error.
            raise unauthorized from error
        raise
    admit(request, read.api_key)
    return read


def _parse_large(
    schema: type[Schema], content_type: str, body: bytes | bytearray, limit: int, values: int
) -> Schema:
    if _is_json(content_type):
        check_values(body, values)
    return _parse(schema, content_type, body, limit)


def _is_json(content_type: str) -> bool:
    return content_type.split(";", maxsplit=1)[0].strip().lower() == "application/json"


def _parse(schema: type[Schema], content_type: str, body: bytes | bytearray, limit: int) -> Schema:
    try:
        if _is_json(content_type):
            return schema.model_validate_json(body)
        return schema.model_validate(_form(content_type, body, limit))
    except ValidationError as error:
        raise field_errors(schema, error) from error


def _form(content_type: str, body: bytes | bytearray, limit: int) -> dict[str, Any]:
    """The fields of a form; only q may be repeated. Raises InvalidRequest."""
    fields: dict[str, Any] = {}
    for name, values in form_fields(content_type, body, limit).items():
        if len(values) > 1 and name != "q":
            raise InvalidRequest("each field of a form may be given once, except q")
        fields[name] = values if len(values) > 1 else values[0]
    if isinstance(fields.get("q"), str):
        fields["q"] = _listed(fields["q"])
    return fields


def _listed(text: str) -> str | list[str]:
    """A list of texts if the form's field holds a JSON list, else the text."""
    # A list with more values than a request may have texts is not parsed: that would cost too much.
    if not text.startswith("[") or holds_more_values(text.encode(), _MOST_LISTED):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(found, list) and found and all(isinstance(each, str) for each in found):
        return found
    return text


# --- languages ------------------------------------------------------------------------------------


def _served(request: Request) -> list[Card]:
    """Every model that translates, open or not."""
    return registry_of(request).cards_with(TRANSLATE)


def _pairs(served: Sequence[Card]) -> list[tuple[str, str]]:
    return sorted({(source, card.target) for card in served for source in card.sources})


async def _chosen(request: Request, body: LibreTranslateRequest) -> tuple[Translates, str | None]:
    """The model for the two languages, and the source language if it is the only one.

    Raises InvalidRequest, which lists the served languages.
    """
    served = _served(request)
    shown = ", ".join(f"{source} to {target}" for source, target in _pairs(served)) or "none"
    target = _looked_up(body.target, {x.target for x in served})
    fitting = [x for x in served if x.target == target]
    sources = {code for x in fitting for code in x.sources}
    if body.source.lower() == AUTO:
        source = next(iter(sources)) if len(sources) == 1 else None
        if len(sources) > 1 and len(fitting) > 1:
            raise InvalidRequest.of_option(
                "source", f"name it: several translate to this target; the pairs are {shown}"
            )
    else:
        source = _looked_up(body.source, sources)
        fitting = [x for x in fitting if source in x.sources]
    if not fitting:
        raise InvalidRequest.of_option(
            "target", f"no model is served for these languages; the pairs are {shown}"
        )
    if body.model is not None:
        fitting = [x for x in fitting if x.name == body.model]
        if not fitting:
            raise InvalidRequest.of_option("model", "no such model is served for these languages")
    chosen = max(fitting, key=lambda x: x.parameters)
    return await engine_with(request, chosen.name, TRANSLATE), source


def _looked_up(tag: str, known: set[str]) -> str | None:
    """The language that a tag stands for: itself, or without its last subtags (RFC 4647, 3.4).

    `en-US` and `EN_us` match a known `en`. A known language with a region matches no other region.
    """
    by_tag = {code.lower(): code for code in sorted(known)}
    subtags = tag.lower().replace("_", "-").split("-")
    while subtags:
        found = by_tag.get("-".join(subtags))
        if found is not None:
            return found
        subtags.pop()
        # A lone letter only introduces the subtags after it.
        while subtags and len(subtags[-1]) == 1:
            subtags.pop()
    return None
