"""The client: requests out of arguments, answers as dataclasses, in two shells over httpx.

Arguments have the names of the service's fields (its `/docs`); what is not given is not sent.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from itertools import islice
from typing import Any, Self, TypedDict, TypeVar, Unpack

import httpx

from unroll_client.errors import ConnectionFailed, ServerError, UnrollError, error_of
from unroll_client.events import Event, EventParser
from unroll_client.results import (
    GenerateAnswer,
    GenerateDone,
    Model,
    ScoreAnswer,
    ScoreResult,
    StreamedToken,
    TranslateAnswer,
    TranslatedToken,
    built,
)

# Lines of one request of `score_lines`: over HTTP/1.1 httpx writes all before it reads.
_LINES = 512

Answer = TypeVar("Answer")
Texts = str | list[str]


class GenerateOptions(TypedDict, total=False):
    """Fields of `/generate`, besides the prompt."""

    model: str
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    seed: int
    stop: Texts
    n: int
    echo: bool
    logprobs: int
    pattern: str
    choices: list[str]
    allowed_chars: str | list[str]
    unknown: str
    state: str
    return_state: bool


class ScoreOptions(TypedDict, total=False):
    """Fields of `/score`, besides the text."""

    model: str
    source: Texts
    context: Texts
    tokens: bool
    top_logprobs: int
    bos: bool
    eos: bool
    unknown: str
    state: str
    return_state: bool


class LineOptions(TypedDict, total=False):
    """Query parameters of a streamed `/score`."""

    model: str
    bos: bool
    eos: bool
    unknown: str


class TranslateOptions(TypedDict, total=False):
    """Fields of `/translate`, besides the source."""

    model: str
    beam_size: int
    num_hypotheses: int
    length_penalty: float
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    target_prefix: Texts
    tokens: bool
    return_alignments: bool
    unknown: str
    copy_unknown: bool


class Unroll:
    """A client of one service. Use it as a context manager, or close it.

    Every method raises UnrollError: InvalidRequest, NotAllowed, NotFound, Overloaded, ServerError
    or ConnectionFailed.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        timeout_s: float = 120.0,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=base_url,
            timeout=timeout_s,
            headers=_headers(api_key),
            transport=transport,
            mounts=_unproxied(base_url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self, prompt: Texts | None = None, **options: Unpack[GenerateOptions]
    ) -> GenerateAnswer:
        """Continue a prompt, or every prompt of a list."""
        return self._post(GenerateAnswer, "/generate", _body(options, prompt=prompt))

    def generate_stream(
        self, prompt: Texts | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[StreamedToken | GenerateDone]:
        """The same, token by token; the last one tells how it ended. Close it to stop."""
        return self._stream(_GENERATE, "/generate", _body(options, prompt=prompt, stream=True))

    def score(self, text: Texts, **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """The probability of a text, or of every text of a list."""
        return self._post(ScoreAnswer, "/score", _body(options, text=text))

    def score_lines(
        self, texts: Iterable[str], **options: Unpack[LineOptions]
    ) -> Iterator[ScoreResult | UnrollError]:
        """The probability of every text of an endless list, in its order, a few hundred a request.

        A text that is refused has its error in the place of a result; it is not raised.
        """
        remaining = iter(texts)
        while batch := list(islice(remaining, _LINES)):
            with _connecting():
                answer = self._http.post("/score", **_lines(batch, options))
            yield from _line_results(answer)

    def translate(self, source: Texts, **options: Unpack[TranslateOptions]) -> TranslateAnswer:
        """Translate a source, or every source of a list."""
        return self._post(TranslateAnswer, "/translate", _body(options, source=source))

    def translate_stream(
        self, source: Texts, **options: Unpack[TranslateOptions]
    ) -> Iterator[TranslatedToken | TranslateAnswer]:
        """The same, each token as it becomes sure; the whole answer comes last."""
        return self._stream(_TRANSLATE, "/translate", _body(options, source=source, stream=True))

    def models(self) -> tuple[Model, ...]:
        """Every served model."""
        return tuple(built(Model, each) for each in self._get("/models")["models"])

    def model(self, name: str) -> dict[str, Any]:
        """All that the service tells of a model, as JSON."""
        return self._get(f"/models/{name}")

    def ready(self) -> bool:
        """Whether to send traffic."""
        with _connecting():
            return self._http.get("/readyz").status_code == 200

    def _get(self, path: str) -> dict[str, Any]:
        with _connecting():
            return _content(self._http.get(path))

    def _post(self, kind: type[Answer], path: str, body: dict[str, Any]) -> Answer:
        with _connecting():
            return _answer(kind, _content(self._http.post(path, json=body)))

    def _stream(
        self, kinds: dict[str, type[Any]], path: str, body: dict[str, Any]
    ) -> Generator[Any, None, None]:
        with _connecting(), self._http.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                _content(answer)
            reader = _EventReader(kinds)
            for text in answer.iter_text():
                yield from reader.feed(text)
            reader.end()


class AsyncUnroll:
    """The same client for asyncio."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        timeout_s: float = 120.0,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=timeout_s,
            headers=_headers(api_key),
            transport=transport,
            mounts=_unproxied(base_url),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self, prompt: Texts | None = None, **options: Unpack[GenerateOptions]
    ) -> GenerateAnswer:
        """Continue a prompt, or every prompt of a list."""
        return await self._post(GenerateAnswer, "/generate", _body(options, prompt=prompt))

    def generate_stream(
        self, prompt: Texts | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[StreamedToken | GenerateDone]:
        """The same, token by token; the last one tells how it ended. Close it to stop."""
        return self._stream(_GENERATE, "/generate", _body(options, prompt=prompt, stream=True))

    async def score(self, text: Texts, **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """The probability of a text, or of every text of a list."""
        return await self._post(ScoreAnswer, "/score", _body(options, text=text))

    async def score_lines(
        self, texts: Iterable[str], **options: Unpack[LineOptions]
    ) -> AsyncGenerator[ScoreResult | UnrollError, None]:
        """The probability of every text of an endless list, in its order, a few hundred a request.

        A text that is refused has its error in the place of a result; it is not raised.
        """
        remaining = iter(texts)
        while batch := list(islice(remaining, _LINES)):
            async with _connecting_async():
                answer = await self._http.post("/score", **_lines(batch, options))
            for result in _line_results(answer):
                yield result

    async def translate(
        self, source: Texts, **options: Unpack[TranslateOptions]
    ) -> TranslateAnswer:
        """Translate a source, or every source of a list."""
        return await self._post(TranslateAnswer, "/translate", _body(options, source=source))

    def translate_stream(
        self, source: Texts, **options: Unpack[TranslateOptions]
    ) -> AsyncIterator[TranslatedToken | TranslateAnswer]:
        """The same, each token as it becomes sure; the whole answer comes last."""
        return self._stream(_TRANSLATE, "/translate", _body(options, source=source, stream=True))

    async def models(self) -> tuple[Model, ...]:
        """Every served model."""
        return tuple(built(Model, each) for each in (await self._get("/models"))["models"])

    async def model(self, name: str) -> dict[str, Any]:
        """All that the service tells of a model, as JSON."""
        return await self._get(f"/models/{name}")

    async def ready(self) -> bool:
        """Whether to send traffic."""
        async with _connecting_async():
            return (await self._http.get("/readyz")).status_code == 200

    async def _get(self, path: str) -> dict[str, Any]:
        async with _connecting_async():
            return _content(await self._http.get(path))

    async def _post(self, kind: type[Answer], path: str, body: dict[str, Any]) -> Answer:
        async with _connecting_async():
            return _answer(kind, _content(await self._http.post(path, json=body)))

    async def _stream(
        self, kinds: dict[str, type[Any]], path: str, body: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        async with _connecting_async(), self._http.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                _content(answer)
            reader = _EventReader(kinds)
            async for text in answer.aiter_text():
                for each in reader.feed(text):
                    yield each
            reader.end()


_GENERATE: dict[str, type[Any]] = {"token": StreamedToken, "done": GenerateDone}
_TRANSLATE: dict[str, type[Any]] = {"token": TranslatedToken, "done": TranslateAnswer}


class _EventReader:
    """Events as dataclasses; the error event is raised."""

    def __init__(self, kinds: dict[str, type[Any]]) -> None:
        self._kinds = kinds
        self._parser = EventParser()
        self._done = False

    def feed(self, text: str) -> Iterator[Any]:
        """What this text completes, one by one: an error comes after what came before it."""
        return (self._read(event) for event in self._parser.feed(text))

    def end(self) -> None:
        """Raise ConnectionFailed where the stream broke off."""
        if not self._done:
            raise ConnectionFailed("the stream ended before its last event")

    def _read(self, event: Event) -> Any:
        data = json.loads(event.data)
        if event.name not in self._kinds:
            raise error_of(int(data.get("status", 500)), data, {})
        self._done = event.name == "done"
        return _answer(self._kinds[event.name], data)


def _unproxied(base_url: str) -> dict[str, None]:
    """This machine's own addresses go without a proxy of the environment (`http_proxy`)."""
    host = httpx.URL(base_url).host
    try:
        is_here = ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost" or host.endswith(".localhost")
    return {"all://": None, "http://": None, "https://": None} if is_here else {}


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _body(options: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {name: x for name, x in {**fields, **options}.items() if x is not None}


def _lines(texts: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "params": {
            name: str(x).lower() if isinstance(x, bool) else x for name, x in options.items()
        },
        "headers": {"Content-Type": "application/x-ndjson"},
        "content": b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts),
    }


def _line_results(answer: httpx.Response) -> Iterator[ScoreResult | UnrollError]:
    if answer.status_code != 200:
        _content(answer)
    for line in answer.text.splitlines():
        told = json.loads(line)
        if "error" in told and "line" not in told:
            raise error_of(int(told["error"]["status"]), told["error"], {})
        if "error" in told:
            yield error_of(int(told["error"]["status"]), told["error"], {})
        else:
            yield _answer(ScoreResult, told)


def _content(answer: httpx.Response) -> dict[str, Any]:
    """An answer's JSON. Raises UnrollError for one that is an error, or no JSON."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if answer.status_code != 200:
        raise error_of(answer.status_code, content, answer.headers)
    if not isinstance(content, dict):
        raise ServerError("the answer is not JSON", status=answer.status_code)
    return content


def _answer(kind: type[Answer], content: Any) -> Answer:
    try:
        return built(kind, content)
    except (KeyError, TypeError) as error:
        raise ServerError("the answer is not of this kind of service") from error


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise _failed(error) from error


def _failed(error: httpx.HTTPError) -> ConnectionFailed:
    if isinstance(error, httpx.ConnectError):
        url = error.request.url
        where = f"{url.scheme}://{url.netloc.decode()}"
        return ConnectionFailed(f"nothing answers at {where} ({error}); is the server running?")
    return ConnectionFailed(f"{type(error).__name__}: {error}")


@asynccontextmanager
async def _connecting_async() -> AsyncIterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise _failed(error) from error
