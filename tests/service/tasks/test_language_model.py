"""The engine under faults, by itself and behind HTTP: queues, deadlines, failures, its end."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.errors import DeadlineExceeded, EngineStopped, InvalidRequest, ModelFailure
from service.runtime.threads import LARGE_CHARS, off_loop
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from service.tasks.values import GenerateOptions, ScoreOptions
from tests.bundles import ALPHABET, in_memory, plain_files
from tests.fakes import AppClient, FakeSession, Gate, eventually

VOCAB_SIZE = 4 + len(ALPHABET)
BAD = "?"  # token 11, which the fake sessions here stumble over


def session_of(**options: Any) -> FakeSession:
    return FakeSession(vocab_size=VOCAB_SIZE, **options)


def engine_of(session: FakeSession, **settings: Any) -> LanguageModelEngine:
    bundle = in_memory(*plain_files("fake", ALPHABET))
    return LanguageModelEngine(bundle, session, Settings(**settings), precision="fp32")


def serving(session: FakeSession, **settings: Any) -> AppClient:
    chosen = Settings(**settings)
    return AppClient(create_app(chosen, [engine_of(session, **settings)]))


def run(engine: LanguageModelEngine, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run some work with the engine started, and stop it."""

    async def main() -> None:
        engine.start()
        try:
            await work()
        finally:
            await engine.stop()

    asyncio.run(main())


async def at(gate: Gate) -> None:
    """Until a run stands at the gate, without holding the loop up."""
    await asyncio.to_thread(gate.wait)


def problem_of(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["X-Request-Id"]
    return problem


def test_the_bad_character_is_the_bad_token() -> None:
    assert in_memory(*plain_files("fake", ALPHABET)).vocab.encode(BAD).tolist() == [11]


# --- by itself ------------------------------------------------------------------------------------


def test_a_caller_that_is_cancelled_takes_its_rows_along() -> None:
    gate = Gate()
    engine = engine_of(session_of(gate=gate))

    async def work() -> None:
        caller = asyncio.create_task(engine.score(["abc" * 500], ScoreOptions()))
        await at(gate)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.open()
        assert (await engine.score(["abc"], ScoreOptions()))[0].chars == 3
        eventually(lambda: engine.workers.schedulers[0].free)
        assert engine.workers._waiting == {}

    run(engine, work)


def test_a_caller_that_is_cancelled_in_the_queue_is_never_scheduled() -> None:
    gate = Gate()
    session = session_of(gate=gate)
    engine = engine_of(session, max_rows=1)

    async def work() -> None:
        first = asyncio.create_task(engine.score(["abc"], ScoreOptions()))
        await at(gate)
        second = asyncio.create_task(engine.score(["abcabc"], ScoreOptions()))
        await asyncio.sleep(0)
        assert len(engine.workers._waiting) == 2
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open()
        await first
        eventually(lambda: engine.workers.schedulers[0].free)
        assert len(session.runs) == 1

    run(engine, work)


def test_a_deadline_frees_the_rows() -> None:
    gate = Gate()
    engine = engine_of(session_of(gate=gate), request_timeout_s=0.05)

    async def work() -> None:
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await engine.generate(["abc"], GenerateOptions(max_tokens=1000))
        gate.open()
        eventually(lambda: engine.workers.schedulers[0].free)
        assert engine.workers._waiting == {}
        assert engine.workers.schedulers[0].alive

    run(engine, work)


def test_stopping_fails_what_runs_and_what_comes() -> None:
    gate = Gate()
    engine = engine_of(session_of(gate=gate))

    async def work() -> None:
        caller = asyncio.create_task(
            engine.generate(["abc"], GenerateOptions(max_tokens=1000, seed=1))
        )
        await at(gate)
        stopping = asyncio.create_task(engine.stop())
        await asyncio.to_thread(eventually, lambda: not engine.workers.schedulers[0].alive)
        gate.open()
        await stopping
        with pytest.raises(EngineStopped):
            await caller
        with pytest.raises(EngineStopped):
            await engine.score(["abc"], ScoreOptions())
        assert engine.workers._waiting == {}
        assert engine.workers.schedulers[0]._cancelling == []

    run(engine, work)


def test_an_engine_that_was_not_started_says_so() -> None:
    engine = engine_of(session_of())
    with pytest.raises(RuntimeError, match="start the engine first"):
        asyncio.run(engine.score(["abc"], ScoreOptions()))


def test_a_score_of_nothing_needs_no_model() -> None:
    session = session_of(raises_at=1)

    async def work() -> None:
        (scored,) = await engine.score([""], ScoreOptions(), contexts=["context"])
        assert (scored.logprob, scored.bits, scored.chars) == (0.0, 0.0, 0)

    engine = engine_of(session)
    run(engine, work)
    assert session.runs == []


def test_work_on_large_texts_leaves_the_event_loops_thread_and_on_small_ones_stays() -> None:
    async def threads() -> list[int]:
        return [await off_loop(size, threading.get_ident) for size in (0, LARGE_CHARS, 10**6)]

    here = threading.get_ident()
    assert [thread == here for thread in asyncio.run(threads())] == [True, True, False]


def test_the_bundles_limit_holds_beside_the_services() -> None:
    manifest, files = plain_files("fake", ALPHABET, limits={"max_tokens": 7})
    bundle = in_memory(manifest, files)
    for setting, expected in ((5, 5), (9, 7)):
        engine = LanguageModelEngine(
            bundle, session_of(), Settings(max_tokens=setting), precision="fp32"
        )
        assert engine.max_tokens == expected
    with pytest.raises(InvalidRequest, match="at most 7"):
        asyncio.run(engine.generate(["a"], GenerateOptions(max_tokens=8)))


# --- behind HTTP ----------------------------------------------------------------------------------


def test_a_full_queue_is_told_at_once_with_when_to_come_back() -> None:
    gate = Gate()
    with serving(session_of(gate=gate), max_rows=1, max_queue_rows=3) as client:

        async def burst(http: httpx.AsyncClient) -> list[httpx.Response]:
            body = {"text": "abc"}
            first = asyncio.create_task(http.post("/score", json=body))
            await at(gate)
            others = [asyncio.create_task(http.post("/score", json=body)) for _ in range(50)]
            # 47 refusals come while the gate is closed, and nothing else.
            for answer in itertools.islice(asyncio.as_completed(others), 47):
                assert (await answer).status_code == 429
            gate.open()
            return await asyncio.gather(first, *others)

        answers = client.run(burst)
        good = [x for x in answers if x.status_code == 200]
        assert len(good) == 1 + 3
        assert len({x.content for x in good}) == 1
        for answer in answers:
            if answer.status_code != 200:
                problem = problem_of(answer, 429)
                assert problem["type"] == "queue-full"
                assert int(answer.headers["Retry-After"]) >= 1
                assert "3 rows" in problem["detail"]
        assert client.ask("/score", text="abc")
        assert client.app.state.registry.engines["fake"].workers.schedulers[0].free


def test_a_burst_of_1000_is_answered_or_refused_and_nothing_else() -> None:
    with serving(session_of(max_rows=4), max_rows=4, max_queue_rows=100) as client:
        answers = client.together("/score", [{"text": "abc"}] * 1000)
        codes = [x.status_code for x in answers]
        assert set(codes) <= {200, 429}
        assert codes.count(200) >= 100
        assert len({x.content for x in answers if x.status_code == 200}) == 1
        eventually(lambda: client.app.state.registry.engines["fake"].workers.schedulers[0].free)


def test_a_deadline_is_told_and_the_next_request_is_answered() -> None:
    gate = Gate()
    with serving(session_of(gate=gate), request_timeout_s=0.4) as client:
        answer = client.post("/generate", json={"prompt": "abc", "max_tokens": 1000})
        problem = problem_of(answer, 504)
        assert problem["type"] == "deadline-exceeded"
        assert "0.4 s" in problem["detail"]
        gate.open()
        eventually(lambda: client.app.state.registry.engines["fake"].workers.schedulers[0].free)
        assert client.ask("/score", text="abc")["results"][0]["chars"] == 3


@pytest.mark.parametrize("fault", ["raises_at", "nan_at"])
@pytest.mark.parametrize("path", ["/score", "/generate"])
def test_a_run_that_fails_is_a_500_for_that_request_alone(
    path: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    field = "text" if path == "/score" else "prompt"
    with serving(session_of(**{fault: 11})) as client:
        with caplog.at_level(logging.ERROR):
            answer = client.post(path, json={field: ["abc", f"a{BAD}c", "abc"]})
        problem = problem_of(answer, 500)
        assert problem["type"] == "model-failure"
        assert "broke" not in answer.text  # the exception's words are for the log
        assert ("the run broke" in caplog.text) == (fault == "raises_at")
        good = client.ask(path, **{field: "abc"}, **({} if path == "/score" else {"seed": 1}))
        assert client.app.state.registry.engines["fake"].workers.schedulers[0].free
    with serving(session_of()) as client:
        again = client.ask(path, **{field: "abc"}, **({} if path == "/score" else {"seed": 1}))
    assert good == again


def test_nan_in_one_request_leaves_those_beside_it_bit_for_bit() -> None:
    bodies = [{"text": f"the queen {BAD if i == 3 else '!'} of hearts"} for i in range(8)]
    with serving(session_of(nan_at=11)) as client:
        answers = client.together("/score", bodies)
    with serving(session_of()) as client:
        alone = [client.post("/score", json=body) for body in bodies]
    for i, (answer, expected) in enumerate(zip(answers, alone, strict=True)):
        if i == 3:
            problem_of(answer, 500)
        else:
            assert answer.content == expected.content


def test_infinities_among_alternatives_are_a_500_and_never_in_the_json() -> None:
    with serving(session_of(minus_infinity_at=11)) as client:
        body = {"text": f"a{BAD}c", "tokens": True, "top_logprobs": 20}
        problem = problem_of(client.post("/score", json=body), 500)
        assert "not finite" in problem["detail"]


def test_a_defect_of_ours_is_a_500_without_its_words() -> None:
    """The connection logs it: tests/service/http/test_protocol.py."""
    with serving(session_of()) as client:
        registry = client.app.state.registry
        served, registry.engines = registry.engines, {"fake": object()}  # no engine at all
        answer = client.get("/models", headers={"X-Request-Id": "mine"})
        registry.engines = served
        problem = problem_of(answer, 500)
        assert problem["request_id"] == "mine"
        assert "attribute" not in answer.text


def test_failures_are_of_their_classes() -> None:
    engine = engine_of(session_of(nan_at=11))

    async def work() -> None:
        with pytest.raises(ModelFailure):
            await engine.generate([f"a{BAD}"], GenerateOptions())

    run(engine, work)
