"""The Python client: what it sends, what it makes of answers, and the same numbers as the wire."""

import ast
import asyncio
import dataclasses
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from service.bundle.store import write_bundle
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.end_to_end.server import NO_CERTIFICATES, ROOT, Server, free_port, serve
from tests.labelers import tiny_labeler_files, unstripped
from unroll_client import (
    AsyncUnroll,
    ConnectionFailed,
    GenerateDone,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Overloaded,
    ScoreResult,
    ServerError,
    StreamedToken,
    TagResult,
    TranslateAnswer,
    TranslatedToken,
    Unroll,
    UnrollError,
)

TEXT, PAIRS = "tiny-lstm", "tiny-pairs"
LABELS, TAGS = "tiny-forward", "tiny-chain"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_encoder_decoder_files(name=PAIRS))
    manifest, files = tiny_labeler_files("forward", name=LABELS)
    write_bundle(folder, unstripped(manifest), files)
    write_bundle(folder, *tiny_labeler_files("chain", name=TAGS))
    with serve(folder, engine_threads=1) as running:
        yield running


def wire(server: Server, path: str, **body: Any) -> Any:
    return httpx.post(server.url + path, json=body, timeout=60, verify=NO_CERTIFICATES).json()


def as_json(answer: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(answer)))


def test_answers_are_those_of_the_wire(server: Server) -> None:
    with Unroll(server.url) as client:
        generated = client.generate(
            ["a", "the "], model=TEXT, max_tokens=9, seed=3, n=2, logprobs=2, return_state=True
        )
        plain = wire(
            server, "/generate", prompt=["a", "the "], model=TEXT, max_tokens=9, seed=3, n=2,
            logprobs=2, return_state=True,
        )  # fmt: skip
        for answer in (plain, dumped := as_json(generated)):
            for result in answer["results"]:
                for choice in result["choices"]:
                    choice["state"] = bool(choice["state"])  # it has the time in it
            del answer["usage"]["cached_tokens"]  # of the second, more
        assert dumped == plain
        scored = client.score("a cat", model=TEXT, tokens=True, top_logprobs=1)
        assert (
            as_json(scored)["results"]
            == wire(server, "/score", text="a cat", model=TEXT, tokens=True, top_logprobs=1)[
                "results"
            ]
        )
        found = client.translate("a cat", model=PAIRS, return_alignments=True, tokens=True)
        assert as_json(found) == wire(
            server, "/translate", source="a cat", model=PAIRS, return_alignments=True, tokens=True
        )
        filled = client.infill("the c", ["t", " "], model=TEXT, candidates=["a", "u"], eos=True)
        body = {"prefix": "the c", "suffix": ["t", " "], "candidates": ["a", "u"], "eos": True}
        plain = wire(server, "/infill", model=TEXT, **body)
        for answer in (plain, dumped := as_json(filled)):
            del answer["usage"]["cached_tokens"]
        assert dumped == plain
        assert {model.name: model.fills for model in client.models()} == {
            **dict.fromkeys((LABELS, TAGS, PAIRS), False),
            TEXT: True,
        }
        assert client.model(TEXT)["vocab_size"] > 4
        assert client.ready()
        state = generated.results[0].choices[0].state
        assert state is not None
        assert client.generate(model=TEXT, state=state, max_tokens=2).results[0].choices


def test_labels_are_those_of_the_wire(server: Server) -> None:
    texts = ["a bad idea", "abide"]
    with Unroll(server.url) as client:
        options: dict[str, Any] = {"model": LABELS, "top": 2, "steps": True}
        classified = client.classify(texts, **options)
        assert as_json(classified) == wire(server, "/classify", text=texts, **options)
        names = [each.labels[1].label for each in classified.results]
        scored = client.score(texts, model=LABELS, label=names)
        assert [each.logprob for each in scored.results] == [
            each.labels[1].logprob for each in classified.results
        ]
        options = {"model": TAGS, "n": 2, "places": True, "top": 3}
        tagged = client.tag(texts, **options)
        assert as_json(tagged) == wire(server, "/tag", text=texts, **options)
        assert client.model(TAGS)["labels"]["scheme"] == "bio"
        state = client.classify("a bad ", model=LABELS, return_state=True).results[0].state
        assert state is not None
        resumed = client.classify("idea", model=LABELS, state=state).results[0]
        assert resumed.labels[:2] == classified.results[0].labels
        with pytest.raises(InvalidRequest, match="does not classify texts; it answers /tag"):
            client.classify("a", model=TAGS)


def test_lines_are_labelled_however_many(server: Server) -> None:
    texts = [f"a bad idea {'abc' * (i % 5)}" for i in range(700)]
    with Unroll(server.url) as client:
        wanted = client.classify(texts[:5], model=LABELS, top=1, steps=True).results
        found = list(client.classify_lines(iter(texts), model=LABELS, top=1, steps=True))
        assert found == [wanted[i % 5] for i in range(len(texts))]
        tags = client.tag(texts[:5], model=TAGS, n=2, places=True, top=2).results
        assert list(client.tag_lines(texts[:5], model=TAGS, n=2, places=True, top=2)) == list(tags)
        good, bad = client.tag_lines(["a", "\u2603"], model=TAGS, unknown="error")
        assert isinstance(good, TagResult)
        assert isinstance(bad, InvalidRequest)


def test_adapt_is_an_option_like_the_others(server: Server) -> None:
    with Unroll(server.url) as client:
        assert client.score("a", model=TEXT, adapt=False).adapt is False
        assert client.generate("a", model=TEXT, adapt=False, max_tokens=1).adapt is False
        assert not any(model.adapts for model in client.models())
        for ask in (client.score, client.generate):
            with pytest.raises(InvalidRequest) as refused:
                ask("a", model=TEXT, adapt=True)
            assert [error.pointer for error in refused.value.errors] == ["/adapt"]
        with pytest.raises(InvalidRequest, match="cannot adapt"):
            list(client.score_lines(["a"], model=TEXT, adapt=True))


def test_streams_say_what_answers_say(server: Server) -> None:
    with Unroll(server.url) as client:
        whole = client.generate("the ", model=TEXT, max_tokens=30, seed=1)
        *tokens, done = client.generate_stream("the ", model=TEXT, max_tokens=30, seed=1)
        assert isinstance(done, GenerateDone)
        text = "".join(token.text for token in tokens if isinstance(token, StreamedToken))
        assert text == whole.results[0].choices[0].text
        assert done.choices[0].finish_reason == whole.results[0].choices[0].finish_reason
        *pieces, answer = client.translate_stream("a cat", model=PAIRS)
        assert isinstance(answer, TranslateAnswer)
        assert answer == client.translate("a cat", model=PAIRS)
        joined = "".join(x.text for x in pieces if isinstance(x, TranslatedToken))
        assert joined == answer.results[0].hypotheses[0].text


def test_lines_are_scored_however_many(server: Server) -> None:
    texts = [f"line {i % 7}" for i in range(1300)]
    with Unroll(server.url) as client:
        results = list(client.score_lines(iter(texts), model=TEXT, eos=True))
        wanted = client.score(texts[:7], model=TEXT, eos=True).results
        assert len(results) == len(texts)
        for i, result in enumerate(results):
            assert isinstance(result, ScoreResult)
            assert result.logprob == wanted[i % 7].logprob
        good, bad = client.score_lines(["a", "\u2603"], model=TEXT, unknown="error")
        assert isinstance(good, ScoreResult)
        assert isinstance(bad, InvalidRequest)
        with pytest.raises(NotFound):
            list(client.score_lines(["a"], model="nothing"))


def test_asyncio_gives_the_same(server: Server) -> None:
    async def main() -> None:
        async with AsyncUnroll(server.url) as client:
            with Unroll(server.url) as plain:
                options: dict[str, Any] = {"model": TEXT, "max_tokens": 20, "seed": 2}
                wanted = plain.generate("a", **options).results
                assert (await client.generate("a", **options)).results == wanted
                text = ""
                async for event in client.generate_stream("a", **options):
                    text += event.text if isinstance(event, StreamedToken) else ""
                assert text == wanted[0].choices[0].text
                assert await client.score("a", model=TEXT) == plain.score("a", model=TEXT)
                lines = [x async for x in client.score_lines(["a", "b"], model=TEXT)]
                assert lines == list(plain.score_lines(["a", "b"], model=TEXT))
                blank: dict[str, Any] = {"model": TEXT, "text": "c___t", "seed": 1, "max_tokens": 2}
                filled = (await client.infill(**blank)).results
                assert filled == plain.infill(**blank).results
                assert filled[0].fills[0].text
                translated = await client.translate("a", model=PAIRS)
                assert translated == plain.translate("a", model=PAIRS)
                *_, last = [x async for x in client.translate_stream("a", model=PAIRS)]
                assert last == translated
                labelled = await client.classify("abide", model=LABELS)
                assert labelled == plain.classify("abide", model=LABELS)
                tagged = await client.tag("abide", model=TAGS)
                assert tagged == plain.tag("abide", model=TAGS)
                streamed = [x async for x in client.classify_lines(["abide"], model=LABELS)]
                assert streamed == list(labelled.results)
                assert [x async for x in client.tag_lines(["abide"], model=TAGS)] == list(
                    tagged.results
                )
                assert await client.models() == plain.models()
                assert await client.model(PAIRS) == plain.model(PAIRS)
                assert await client.ready()
            with pytest.raises(InvalidRequest):
                async for _ in client.generate_stream("a", model=TEXT, max_tokens=-1):
                    pass

    asyncio.run(main())


def test_errors_say_where_and_what_is_allowed(server: Server) -> None:
    with Unroll(server.url) as client:
        with pytest.raises(InvalidRequest) as found:
            client.generate("a", model=TEXT, max_tokens=-1)
        assert found.value.status == 422
        assert found.value.errors[0].pointer == "/max_tokens"
        assert found.value.request_id
        with pytest.raises(NotFound):
            client.score("a", model="nothing")
        with pytest.raises(InvalidRequest):
            next(iter(client.generate_stream("a", model=TEXT, n=1000)))
    nobody = f"http://127.0.0.1:{free_port()}"
    with Unroll(nobody) as client, pytest.raises(ConnectionFailed, match=f"answers at {nobody} "):
        client.models()


def answering(status: int, content: bytes, headers: dict[str, str] | None = None) -> Unroll:
    def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=content, headers=headers)

    return Unroll(transport=httpx.MockTransport(handle))


@pytest.mark.parametrize(
    ("kind", "status", "content"),
    [
        (Overloaded, 429, b'{"detail": "full"}'),
        (Overloaded, 503, b""),
        (ServerError, 500, b"<html>"),
        (ServerError, 502, b'["a list"]'),
        (ServerError, 200, b"not json"),
        (ServerError, 200, b'{"results": 7}'),
        (ServerError, 200, b"[]"),
    ],
)
def test_what_is_no_answer_is_an_error(
    kind: type[UnrollError], status: int, content: bytes
) -> None:
    with pytest.raises(kind) as found:
        answering(status, content, {"retry-after": "7"}).score("a")
    if kind is Overloaded:
        assert found.value.retry_after_s == 7


def test_a_stream_that_breaks_is_an_error() -> None:
    data = {"index": 0, "choice": 0, "text": "a", "offset": 0, "token": "a", "logprob": -1.0}
    token = b"event: token\ndata: " + json.dumps(data).encode() + b"\n\n"
    broken = answering(200, token).generate_stream("a")
    assert isinstance(next(broken), StreamedToken)
    with pytest.raises(ConnectionFailed, match="before its last event"):
        next(broken)
    problem = json.dumps({"status": 504, "detail": "too long"}).encode()
    told = answering(200, token + b"event: error\ndata: " + problem + b"\n\n").generate_stream("a")
    next(told)
    with pytest.raises(ServerError, match="too long"):
        next(told)


def test_what_a_newer_service_adds_is_left_out() -> None:
    answer = {
        "model": "m", "precision": "int9", "new": 1,
        "results": [{"hypotheses": [{"text": "x", "logprob": -1, "score": -1,
                                     "finish_reason": "stop", "newer": {}}], "unknown": []}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0, "more": 1},
    }  # fmt: skip
    found = answering(200, json.dumps(answer).encode()).translate("a")
    assert found.results[0].hypotheses[0].text == "x"


def test_the_key_and_what_is_given_are_sent_and_nothing_else() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(404, json={"detail": "no"})

    client = Unroll(api_key="secret", transport=httpx.MockTransport(handle))
    with pytest.raises(NotFound):
        client.generate("a", seed=0, echo=False)
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert json.loads(seen[0].content) == {"prompt": "a", "seed": 0, "echo": False}


def listing(seen: list[httpx.Request]) -> Callable[[httpx.Request], httpx.Response]:
    """Notes requests; lists three models in two pages."""
    pages = {None: (["a", "b&c"], "b&c"), "b&c": (["d"], None)}

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path != "/models":
            return httpx.Response(404, json={"detail": "no"})
        names, following = pages[request.url.params.get("after")]
        about = {"task": "language_model", "description": "", "precision": "int8"}
        models = [{"name": name, **about} for name in names]
        return httpx.Response(200, json={"models": models, "next": following})

    return handle


@pytest.mark.parametrize(
    ("name", "header"),
    [("alice-gru", "alice-gru"), ("a/b ü%\n", "a%2Fb%20%C3%BC%25%0A"), (None, None)],
)
def test_a_proxy_can_read_the_model_of_every_request(name: str | None, header: str | None) -> None:
    seen: list[httpx.Request] = []
    transport = httpx.MockTransport(listing(seen))
    named: Any = {} if name is None else {"model": name}

    async def asynchronously() -> None:
        async with AsyncUnroll(transport=transport) as client:
            with pytest.raises(NotFound):
                await client.score("a", **named)
            with pytest.raises(NotFound):
                await anext(aiter(client.generate_stream("a", **named)))
            with pytest.raises(NotFound):
                await anext(aiter(client.score_lines(["a"], **named)))

    with Unroll(transport=transport) as client:
        with pytest.raises(NotFound):
            client.score("a", **named)
        with pytest.raises(NotFound):
            next(client.generate_stream("a", **named))
        with pytest.raises(NotFound):
            next(client.score_lines(["a"], **named))
    asyncio.run(asynchronously())
    assert [request.headers.get("X-Unroll-Model") for request in seen] == [header] * 6


def test_all_pages_of_models_are_asked_for() -> None:
    seen: list[httpx.Request] = []
    transport = httpx.MockTransport(listing(seen))

    async def asynchronously() -> list[str]:
        async with AsyncUnroll(transport=transport) as client:
            return [model.name for model in await client.models()]

    with Unroll(transport=transport) as client:
        assert [model.name for model in client.models()] == ["a", "b&c", "d"]
    assert asyncio.run(asynchronously()) == ["a", "b&c", "d"]
    assert [request.url.query for request in seen] == [b"", b"after=b%26c"] * 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, NotAllowed), (403, NotAllowed), (421, NotAllowed), (404, NotFound), (418, UnrollError)],
)
def test_an_answer_that_is_no_permission_has_a_class_of_its_own(
    status: int, kind: type[UnrollError]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer mine"
        return httpx.Response(status, json={"detail": "no", "request_id": "7"})

    with (
        Unroll(api_key="mine", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(kind) as refused,
    ):
        client.score("a")
    assert (refused.value.status, refused.value.request_id) == (status, "7")


def test_the_extra_brings_all_that_the_client_imports() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    installed = {re.match(r"[a-z0-9-]+", line)[0] for line in extras["client"]}  # type: ignore[index]
    imported = set()
    for path in (ROOT / "unroll_client").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) - {"unroll_client"} == installed
