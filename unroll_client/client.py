"""The client over httpx, in two forms: one blocks, the other is for asyncio.

Arguments have the names of the service's fields (see `/docs`); omitted ones are not sent.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Self, TypeVar, Unpack

import httpx

from unroll_client.errors import UnrollError
from unroll_client.exchange import (
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    GENERATE,
    LINES,
    TRANSLATE,
    EventReader,
    answer_of,
    body_of,
    connecting,
    connecting_async,
    content_of,
    headers_of,
    line_results,
    lines_of,
    model_headers,
    mounts_of,
    page_path,
    pages_of,
)
from unroll_client.options import (
    ClassifyLineOptions,
    ClassifyOptions,
    GenerateOptions,
    InfillOptions,
    LineOptions,
    ScoreOptions,
    TagLineOptions,
    TagOptions,
    Texts,
    TranslateOptions,
)
from unroll_client.results import (
    ClassifyAnswer,
    ClassifyResult,
    GenerateAnswer,
    GenerateDone,
    InfillAnswer,
    Model,
    ScoreAnswer,
    ScoreResult,
    StreamedToken,
    TagAnswer,
    TagResult,
    TranslateAnswer,
    TranslatedToken,
)

Answer = TypeVar("Answer")


class Unroll:
    """A client of one service. Use it as a context manager, or close it.

    Every method raises UnrollError: InvalidRequest, NotAllowed, NotFound, Overloaded, ServerError
    or ConnectionFailed.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=base_url,
            timeout=timeout_s,
            headers=headers_of(api_key),
            transport=transport,
            mounts=mounts_of(base_url),
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
        return self._post(GenerateAnswer, "/generate", body_of(options, prompt=prompt))

    def generate_stream(
        self, prompt: Texts | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[StreamedToken | GenerateDone]:
        """Stream choices token by token; the last event has the usage. Close it to stop."""
        return self._stream(GENERATE, "/generate", body_of(options, prompt=prompt, stream=True))

    def score(self, text: Texts, **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """The probability of a text, or of every text of a list."""
        return self._post(ScoreAnswer, "/score", body_of(options, text=text))

    def score_lines(
        self, texts: Iterable[str], **options: Unpack[LineOptions]
    ) -> Iterator[ScoreResult | UnrollError]:
        """The probability of every text of an endless list, in order, some hundreds a request.

        A refused text has its error in place of a result; the error is not raised.
        """
        return self._lines(ScoreResult, "/score", texts, options)

    def translate(self, source: Texts, **options: Unpack[TranslateOptions]) -> TranslateAnswer:
        """Translate a source, or every source of a list."""
        return self._post(TranslateAnswer, "/translate", body_of(options, source=source))

    def translate_stream(
        self, source: Texts, **options: Unpack[TranslateOptions]
    ) -> Iterator[TranslatedToken | TranslateAnswer]:
        """Stream a translation, each token once it is certain; the whole answer comes last."""
        return self._stream(TRANSLATE, "/translate", body_of(options, source=source, stream=True))

    def infill(
        self,
        prefix: Texts | None = None,
        suffix: Texts | None = None,
        **options: Unpack[InfillOptions],
    ) -> InfillAnswer:
        """Fill the blank between a prefix and a suffix, or the marked blanks of a `text`."""
        return self._post(InfillAnswer, "/infill", body_of(options, prefix=prefix, suffix=suffix))

    def classify(self, text: Texts, **options: Unpack[ClassifyOptions]) -> ClassifyAnswer:
        """The labels of a text, or of every text of a list."""
        return self._post(ClassifyAnswer, "/classify", body_of(options, text=text))

    def tag(self, text: Texts, **options: Unpack[TagOptions]) -> TagAnswer:
        """A label for each character of a text, or of every text of a list."""
        return self._post(TagAnswer, "/tag", body_of(options, text=text))

    def classify_lines(
        self, texts: Iterable[str], **options: Unpack[ClassifyLineOptions]
    ) -> Iterator[ClassifyResult | UnrollError]:
        """The labels of every text of an endless list, as `score_lines` gives their scores."""
        return self._lines(ClassifyResult, "/classify", texts, options)

    def tag_lines(
        self, texts: Iterable[str], **options: Unpack[TagLineOptions]
    ) -> Iterator[TagResult | UnrollError]:
        """The tags of every text of an endless list, as `score_lines` gives their scores."""
        return self._lines(TagResult, "/tag", texts, options)

    def models(self) -> tuple[Model, ...]:
        """Every served model."""
        return pages_of(self._pages())

    def _pages(self) -> Iterator[dict[str, Any]]:
        after: str | None = ""
        while after is not None:
            page = self._get(page_path(after))
            yield page
            after = page.get("next")

    def model(self, name: str) -> dict[str, Any]:
        """All that the service reports about a model, as JSON."""
        return self._get(f"/models/{name}", model_headers(name))

    def ready(self) -> bool:
        """Whether the service is ready for requests."""
        with connecting():
            return self._http.get("/readyz").status_code == 200

    def _get(self, path: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        with connecting():
            return content_of(self._http.get(path, headers=headers))

    def _post(self, kind: type[Answer], path: str, body: dict[str, Any]) -> Answer:
        with connecting():
            headers = model_headers(body.get("model"))
            return answer_of(kind, content_of(self._http.post(path, json=body, headers=headers)))

    def _lines(
        self, kind: type[Answer], path: str, texts: Iterable[str], options: Mapping[str, Any]
    ) -> Generator[Answer | UnrollError, None, None]:
        remaining = iter(texts)
        while batch := list(islice(remaining, LINES)):
            with connecting():
                answer = self._http.post(path, **lines_of(batch, options))
            yield from line_results(kind, answer)

    def _stream(
        self, kinds: dict[str, type[Any]], path: str, body: dict[str, Any]
    ) -> Generator[Any, None, None]:
        headers = model_headers(body.get("model"))
        with connecting(), self._http.stream("POST", path, json=body, headers=headers) as answer:
            if answer.status_code != 200:
                answer.read()
                content_of(answer)
            reader = EventReader(kinds)
            for text in answer.iter_text():
                yield from reader.feed(text)
            reader.end()


class AsyncUnroll:
    """The same client for asyncio."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=timeout_s,
            headers=headers_of(api_key),
            transport=transport,
            mounts=mounts_of(base_url),
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
        return await self._post(GenerateAnswer, "/generate", body_of(options, prompt=prompt))

    def generate_stream(
        self, prompt: Texts | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[StreamedToken | GenerateDone]:
        """Stream choices token by token; the last event has the usage. Close it to stop."""
        return self._stream(GENERATE, "/generate", body_of(options, prompt=prompt, stream=True))

    async def score(self, text: Texts, **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """The probability of a text, or of every text of a list."""
        return await self._post(ScoreAnswer, "/score", body_of(options, text=text))

    def score_lines(
        self, texts: Iterable[str], **options: Unpack[LineOptions]
    ) -> AsyncGenerator[ScoreResult | UnrollError, None]:
        """The probability of every text of an endless list, in order, some hundreds a request.

        A refused text has its error in place of a result; the error is not raised.
        """
        return self._lines(ScoreResult, "/score", texts, options)

    async def translate(
        self, source: Texts, **options: Unpack[TranslateOptions]
    ) -> TranslateAnswer:
        """Translate a source, or every source of a list."""
        return await self._post(TranslateAnswer, "/translate", body_of(options, source=source))

    def translate_stream(
        self, source: Texts, **options: Unpack[TranslateOptions]
    ) -> AsyncIterator[TranslatedToken | TranslateAnswer]:
        """Stream a translation, each token once it is certain; the whole answer comes last."""
        return self._stream(TRANSLATE, "/translate", body_of(options, source=source, stream=True))

    async def infill(
        self,
        prefix: Texts | None = None,
        suffix: Texts | None = None,
        **options: Unpack[InfillOptions],
    ) -> InfillAnswer:
        """Fill the blank between a prefix and a suffix, or the marked blanks of a `text`."""
        return await self._post(
            InfillAnswer, "/infill", body_of(options, prefix=prefix, suffix=suffix)
        )

    async def classify(self, text: Texts, **options: Unpack[ClassifyOptions]) -> ClassifyAnswer:
        """The labels of a text, or of every text of a list."""
        return await self._post(ClassifyAnswer, "/classify", body_of(options, text=text))

    async def tag(self, text: Texts, **options: Unpack[TagOptions]) -> TagAnswer:
        """A label for each character of a text, or of every text of a list."""
        return await self._post(TagAnswer, "/tag", body_of(options, text=text))

    def classify_lines(
        self, texts: Iterable[str], **options: Unpack[ClassifyLineOptions]
    ) -> AsyncGenerator[ClassifyResult | UnrollError, None]:
        """The labels of every text of an endless list, as `score_lines` gives their scores."""
        return self._lines(ClassifyResult, "/classify", texts, options)

    def tag_lines(
        self, texts: Iterable[str], **options: Unpack[TagLineOptions]
    ) -> AsyncGenerator[TagResult | UnrollError, None]:
        """The tags of every text of an endless list, as `score_lines` gives their scores."""
        return self._lines(TagResult, "/tag", texts, options)

    async def models(self) -> tuple[Model, ...]:
        """Every served model."""
        return pages_of([page async for page in self._pages()])

    async def _pages(self) -> AsyncIterator[dict[str, Any]]:
        after: str | None = ""
        while after is not None:
            page = await self._get(page_path(after))
            yield page
            after = page.get("next")

    async def model(self, name: str) -> dict[str, Any]:
        """All that the service reports about a model, as JSON."""
        return await self._get(f"/models/{name}", model_headers(name))

    async def ready(self) -> bool:
        """Whether the service is ready for requests."""
        async with connecting_async():
            return (await self._http.get("/readyz")).status_code == 200

    async def _get(self, path: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        async with connecting_async():
            return content_of(await self._http.get(path, headers=headers))

    async def _post(self, kind: type[Answer], path: str, body: dict[str, Any]) -> Answer:
        async with connecting_async():
            headers = model_headers(body.get("model"))
            answer = await self._http.post(path, json=body, headers=headers)
            return answer_of(kind, content_of(answer))

    async def _lines(
        self, kind: type[Answer], path: str, texts: Iterable[str], options: Mapping[str, Any]
    ) -> AsyncGenerator[Answer | UnrollError, None]:
        remaining = iter(texts)
        while batch := list(islice(remaining, LINES)):
            async with connecting_async():
                answer = await self._http.post(path, **lines_of(batch, options))
            for result in line_results(kind, answer):
                yield result

    async def _stream(
        self, kinds: dict[str, type[Any]], path: str, body: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        headers = model_headers(body.get("model"))
        asked = self._http.stream("POST", path, json=body, headers=headers)
        async with connecting_async(), asked as answer:
            if answer.status_code != 200:
                await answer.aread()
                content_of(answer)
            reader = EventReader(kinds)
            async for text in answer.aiter_text():
                for each in reader.feed(text):
                    yield each
            reader.end()
