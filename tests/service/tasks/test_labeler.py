"""The engine of labelers by itself: limits before work, cancels, deadlines, failures."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from service.app import create_app
from service.bundle.labeler import LabelerBundle
from service.bundle.text import SideNormalization
from service.bundle.tokenization import Subwords
from service.errors import DeadlineExceeded, InvalidRequest, ModelFailure, QueueFull
from service.observe.request_context import RequestContext, enter_request
from service.runtime.labeler import OnnxLabelerSession
from service.settings import Settings
from service.tasks.label_values import ClassifyOptions, TagOptions
from service.tasks.labeler import LabelerEngine
from service.tasks.values import ScoreOptions
from tests.bundles import TEXTS
from tests.fakes import PATIENCE_S, AppClient, FakeLabelerSession, Gate
from tests.labelers import Sort, labeler_in_memory, tiny_labeler_files

LIMITS: dict[str, Any] = {
    "max_inputs": 3,
    "max_queue_tokens": 300,
    "max_details": 100,
    "max_n": 2,
    "max_states": 1,
}


@cache
def bundle_of(sort: Sort) -> LabelerBundle:
    manifest, files = tiny_labeler_files(sort)
    if sort == "forward":
        side = manifest.text.model_copy(update={"normalization": SideNormalization(strip=False)})
        manifest = manifest.model_copy(update={"text": side})
    return labeler_in_memory(manifest, files)


def engine_of(
    sort: Sort, gate: Gate | None = None, **settings: Any
) -> tuple[LabelerEngine, FakeLabelerSession]:
    bundle = bundle_of(sort)
    session = FakeLabelerSession(
        num_labels=len(bundle.manifest.labels.names),
        labels_places=sort not in {"text", "several"},
        reads_forward=sort == "forward",
        gate=gate,
    )
    return LabelerEngine(bundle, session, Settings(**settings), precision="fp32"), session


@contextmanager
def idle(sort: Sort) -> Iterator[LabelerEngine]:
    engine, session = engine_of(sort, **LIMITS)
    yield engine
    assert session.runs == []


@pytest.mark.parametrize(
    ("sort", "texts", "options", "option", "limit"),
    [
        ("text", ["a"] * 4, ClassifyOptions(), "text", 3),
        ("text", ["a" * 150] * 3, ClassifyOptions(), "text", 300),
        ("text", ["a" * 201], ClassifyOptions(), "text", 200),
        ("forward", ["a" * 26], ClassifyOptions(steps=True), "text", 100),
        ("forward", ["a", "b"], ClassifyOptions(return_state=True), "return_state", 1),
    ],
)
def test_what_is_asked_of_classify_is_within_the_limits(
    sort: Sort, texts: list[str], options: ClassifyOptions, option: str, limit: int
) -> None:
    with idle(sort) as engine:
        with pytest.raises(InvalidRequest, match=rf"\b{limit}\b") as refused:
            asyncio.run(engine.classify(texts, options))
        assert [x.option for x in refused.value.errors] == [option]


@pytest.mark.parametrize(
    ("sort", "texts", "options", "option", "limit"),
    [
        ("plain", ["a"] * 4, TagOptions(), "text", 3),
        ("plain", ["a" * 26], TagOptions(), "text", 100),
        ("chain", ["a"], TagOptions(n=3), "n", 2),
    ],
)
def test_what_is_asked_of_tag_is_within_the_limits(
    sort: Sort, texts: list[str], options: TagOptions, option: str, limit: int
) -> None:
    with idle(sort) as engine:
        with pytest.raises(InvalidRequest, match=rf"\b{limit}\b") as refused:
            asyncio.run(engine.tag(texts, options))
        assert [x.option for x in refused.value.errors] == [option]


def test_searches_of_a_chain_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, session = engine_of("chain")
    monkeypatch.setattr("service.tasks.tagging._MAX_CHAIN_SUMS", 10 * 5**2)
    with pytest.raises(InvalidRequest, match="sums"):
        asyncio.run(engine.tag(["a" * 11], TagOptions()))
    monkeypatch.setattr("service.tasks.tagging._MAX_TEXT_SUMS", 6 * 5**2)
    with pytest.raises(InvalidRequest, match=r"sums.*of a text"):
        asyncio.run(engine.tag(["a" * 3, "a" * 7], TagOptions()))
    monkeypatch.setattr("service.tasks.tagging._MAX_STEP_SUMS", 2 * 5**2)
    with pytest.raises(InvalidRequest, match="sums") as refused:
        asyncio.run(engine.tag(["a"], TagOptions(n=3)))
    assert [x.option for x in refused.value.errors] == ["n"]
    assert session.runs == []


def test_a_text_that_is_read_forward_may_have_any_length() -> None:
    async def classified() -> Any:
        engine, session = engine_of("forward")
        engine.start()
        try:
            (found,) = await engine.classify(["ab" * 5000], ClassifyOptions())
            assert session.runs[0].places == 64
            return found
        finally:
            await engine.stop()

    assert asyncio.run(classified()).prompt_tokens == 10_000


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def test_whoever_gives_up_leaves_the_queue_and_the_batch() -> None:
    async def run() -> None:
        gate = Gate()
        engine, session = engine_of("text", gate, engine_threads=1)
        engine.start()
        try:
            first = asyncio.create_task(engine.classify(["a"], ClassifyOptions()))
            await asyncio.to_thread(gate.wait)
            others = [
                asyncio.create_task(engine.classify(["a" * 20] * 5, ClassifyOptions()))
                for _ in range(3)
            ]
            await until(lambda: engine.workers.gauges().queued_rows == 15)
            for given_up in (others[0], others[2]):
                given_up.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await given_up
            gate.open()
            (found,), five = await first, await others[1]
            assert len(five) == 5
            assert found.labels
            await until(lambda: all(x.free for x in engine.workers.schedulers))
            assert sum(run.texts for run in session.runs) == 6
        finally:
            gate.open()
            await engine.stop()

    asyncio.run(run())


def test_a_deadline_frees_the_rows() -> None:
    async def run() -> None:
        gate = Gate()
        engine, session = engine_of("text", gate, engine_threads=1)
        engine.start()
        try:
            first = asyncio.create_task(engine.classify(["a"], ClassifyOptions()))
            await asyncio.to_thread(gate.wait)

            async def late() -> None:
                enter_request(RequestContext(timeout_s=0.05))
                await engine.classify(["b"], ClassifyOptions())

            with pytest.raises(DeadlineExceeded):
                await asyncio.create_task(late())
            gate.open()
            await first
            assert [run.texts for run in session.runs] == [1]
        finally:
            gate.open()
            await engine.stop()

    asyncio.run(run())


def test_a_full_queue_refuses_before_anything_is_read() -> None:
    async def run() -> None:
        gate = Gate()
        engine, _ = engine_of("text", gate, engine_threads=1, max_queue_requests=1)
        engine.start()
        tasks = []
        try:
            tasks.append(asyncio.create_task(engine.classify(["a"], ClassifyOptions())))
            await asyncio.to_thread(gate.wait)
            tasks.append(asyncio.create_task(engine.classify(["a"], ClassifyOptions())))
            await until(lambda: engine.workers.gauges().queued_requests == 1)
            with pytest.raises(QueueFull):
                await engine.classify(["a"], ClassifyOptions())
            with pytest.raises(QueueFull):
                await engine.score_labels(["a"], ["de"], ScoreOptions())
        finally:
            gate.open()
            await asyncio.gather(*tasks)
            await engine.stop()

    asyncio.run(run())


def test_a_run_that_fails_is_told_and_the_next_request_is_answered() -> None:
    engine, session = engine_of("text")
    with AppClient(create_app(Settings(), [engine])) as client:
        sound, session.reads_forward = session.reads_forward, True  # which the fake refuses
        failed = client.post("/classify", json={"text": "a"})
        assert failed.status_code == ModelFailure.status
        assert failed.json()["type"] == ModelFailure.type
        session.reads_forward = sound
        assert client.ask("/classify", text="a")["results"][0]["labels"]


def test_a_model_of_subwords_counts_them() -> None:
    tokenizer = Subwords.learn(TEXTS, vocab_size=64, min_count=1)
    plain = bundle_of("text")
    side = plain.manifest.text.model_copy(update={"tokenization": "bpe"})
    manifest = plain.manifest.model_copy(update={"text": side})
    bundle = LabelerBundle(manifest, tokenizer, plain.graphs)
    session = FakeLabelerSession(num_labels=3)

    async def classified() -> Any:
        engine = LabelerEngine(bundle, session, Settings(), precision="fp32")
        engine.start()
        try:
            return await engine.classify(["alice was late", "x\u2603"], ClassifyOptions())
        finally:
            await engine.stop()

    known, unknown = asyncio.run(classified())
    assert known.prompt_tokens == len(tokenizer.encode("alice was late"))
    assert known.unknown.count == 0
    assert 1 in unknown.unknown.positions


def test_a_handle_belongs_to_the_labels_that_it_was_made_with() -> None:
    bundle = bundle_of("forward")
    names = [*bundle.manifest.labels.names][::-1]
    labels = bundle.manifest.labels.model_copy(update={"names": names})
    other = LabelerBundle(
        bundle.manifest.model_copy(update={"labels": labels}), bundle.text, bundle.graphs
    )
    key = Settings(state_key="a key of some length")

    async def run() -> None:
        engines = []
        for each in (bundle, other):
            session = OnnxLabelerSession(bundle, "fp32")
            engines.append(LabelerEngine(each, session, key, precision="fp32"))
            engines[-1].start()
        own, foreign = engines
        try:
            (found,) = await own.classify(["ab"], ClassifyOptions(return_state=True))
            goes_on = ClassifyOptions(state=found.state)
            (whole,) = await own.classify(["abc"], ClassifyOptions())
            (rest,) = await own.classify(["c"], goes_on)
            assert rest.labels == whole.labels
            with pytest.raises(InvalidRequest, match="does not belong"):
                await foreign.classify(["c"], goes_on)
        finally:
            for engine in engines:
                await engine.stop()

    asyncio.run(run())
