"""What is read once: the usage says it, and nothing else in an answer does."""

import asyncio
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.bundle.arrays import Float32Array, Int32Array, Int64Array
from service.errors import ModelFailure, QueueFull
from service.runtime.language_model import States
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from service.tasks.values import GenerateOptions, ScoreOptions
from tests.bundles import ALPHABET, in_memory, plain_files
from tests.fakes import PATIENCE_S, AppClient, FakeSession, Gate, eventually

LONG = "the white rabbit put on his spectacles"
BAD = "?"  # token 11, which the fake sessions here stumble over where they are told to


@pytest.fixture
def fresh(models_dir: Any) -> Any:
    """A server that has read nothing yet."""
    with AppClient(create_app(Settings(models_dir=models_dir))) as running:
        yield running


def usage(client: AppClient, path: str, **body: Any) -> tuple[int, int]:
    """Prompt tokens, and how many of them were not run."""
    found = client.ask(path, model="tiny-lstm", **body)["usage"]
    return found["prompt_tokens"], found["cached_tokens"]


def test_a_prompt_that_comes_again_is_known(fresh: AppClient) -> None:
    ask = {"max_tokens": 3, "seed": 1}
    assert usage(fresh, "/generate", prompt=LONG, **ask) == (len(LONG), 0)
    assert usage(fresh, "/generate", prompt=LONG, **ask) == (len(LONG), len(LONG))
    assert usage(fresh, "/generate", prompt=LONG, max_tokens=0) == (len(LONG), len(LONG))


def test_a_longer_prompt_goes_on_where_a_known_one_ended(fresh: AppClient) -> None:
    usage(fresh, "/generate", prompt=LONG[:20], max_tokens=1)
    # bos is known, too, and counted nowhere.
    assert usage(fresh, "/generate", prompt=LONG, max_tokens=1) == (len(LONG), 21)
    assert usage(fresh, "/generate", prompt=LONG[:25], max_tokens=1) == (25, 21)
    assert usage(fresh, "/generate", prompt=LONG[:10], max_tokens=1) == (10, 0)


def test_prompts_of_one_request_read_what_they_share_once(fresh: AppClient) -> None:
    prompts = [LONG + "a", LONG + "b", LONG + "c"]
    total, cached = usage(fresh, "/generate", prompt=prompts, max_tokens=1)
    assert total == 3 * (len(LONG) + 1)
    assert cached == 2 * (len(LONG) + 1)  # bos is shared, too


def test_prompts_that_are_equal_share_all_but_their_last_token(fresh: AppClient) -> None:
    assert usage(fresh, "/generate", prompt=[LONG] * 4, max_tokens=1) == (
        4 * len(LONG),
        3 * len(LONG),
    )


def test_a_context_is_read_once_for_all_texts_and_for_the_next_request(fresh: AppClient) -> None:
    texts = ["abc", "abd", "xyz"]
    total, cached = usage(fresh, "/score", text=texts, context=LONG)
    assert total == 3 * (len(LONG) + 3)
    # The last token of a context is read by each text: the text's first is predicted there.
    assert cached == 2 * len(LONG)
    assert usage(fresh, "/score", text="hello", context=LONG) == (len(LONG) + 5, len(LONG))


def test_the_context_of_a_lone_text_is_known_to_the_next_request(fresh: AppClient) -> None:
    assert usage(fresh, "/score", text="abc", context=LONG) == (len(LONG) + 3, 0)
    assert usage(fresh, "/score", text="hello", context=LONG) == (len(LONG) + 5, len(LONG))
    # Too short to be worth a run of its own.
    for _ in range(2):
        assert usage(fresh, "/score", text="abc", context="xyz") == (6, 0)


def test_a_prompt_that_is_known_to_its_end_is_not_read_again_with_others(fresh: AppClient) -> None:
    known, other = LONG * 2, LONG[:30] + "zzz"
    usage(fresh, "/generate", prompt=known, max_tokens=1)
    # What the two share was not kept by itself: of both and their bos, these are run.
    total, cached = usage(fresh, "/generate", prompt=[known, other], max_tokens=1)
    assert total == len(known) + len(other)
    assert total + 2 - cached == 1 + 30 + 3


def test_what_is_counted_in_one_text_and_read_in_another_is_not_shared(fresh: AppClient) -> None:
    texts, contexts = [LONG + "abc", "abc"], ["", LONG]
    together = fresh.ask("/score", model="tiny-gru", text=texts, context=contexts)
    assert together["usage"]["cached_tokens"] == 0
    alone = [
        fresh.ask("/score", model="tiny-gru", text=text, context=context)["results"][0]
        for text, context in zip(texts, contexts, strict=True)
    ]
    assert together["results"] == alone


def test_texts_that_are_counted_are_shared_and_not_kept(fresh: AppClient) -> None:
    texts = [LONG + "a", LONG + "b"]
    assert usage(fresh, "/score", text=texts) == (2 * (len(LONG) + 1), len(LONG))
    assert usage(fresh, "/score", text=texts) == (2 * (len(LONG) + 1), len(LONG))
    assert usage(fresh, "/score", text=LONG) == (len(LONG), 0)


def test_of_two_long_prompts_with_parts_in_common_each_part_is_read_once(fresh: AppClient) -> None:
    """A tree: one beginning for all four, and one more for each two."""
    prompts = [LONG + half + end for half in ("x" * 20, "y" * 20) for end in ("a", "b")]
    total, cached = usage(fresh, "/generate", prompt=prompts, max_tokens=1)
    begin, half = len(LONG) + 1, 20  # with bos
    assert total == 4 * (len(LONG) + 20 + 1)
    assert total + 4 - cached == begin + 2 * half + 4
    # Each of the parts is known from now on.
    assert usage(fresh, "/generate", prompt=LONG + "x" * 20 + "z", max_tokens=1) == (
        len(LONG) + 21,
        begin + half,
    )


def test_an_echo_with_details_reads_its_prompt_again(fresh: AppClient) -> None:
    """What is counted is not kept."""
    ask = {"prompt": LONG, "max_tokens": 1, "seed": 1, "echo": True, "logprobs": 0}
    for _ in range(2):
        assert usage(fresh, "/generate", **ask) == (len(LONG), 0)


def test_without_memory_for_it_nothing_is_known(models_dir: Any) -> None:
    settings = Settings(models_dir=models_dir, prefix_cache_bytes=0)
    with AppClient(create_app(settings)) as client:
        for _ in range(2):
            assert usage(client, "/generate", prompt=LONG, max_tokens=1) == (len(LONG), 0)


@pytest.mark.parametrize("path", ["/generate", "/score"])
@pytest.mark.parametrize("model", ["tiny-rnn", "tiny-gru", "tiny-lstm"])
@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize(
    "texts", [[LONG, LONG[:30], LONG + " and", LONG + " or", "", "a", LONG], [LONG] * 3]
)
def test_an_answer_is_the_same_cold_warm_and_shared(
    fresh: AppClient, models_dir: Any, *, model: str, path: str, details: bool, texts: list[str]
) -> None:
    body: dict[str, Any]
    if path == "/generate":
        body = {"prompt": texts, "max_tokens": 9, "n": 2, "seed": 3}
        body |= {"echo": True, "logprobs": 2} if details else {}
    else:
        body = {"text": texts, "context": LONG, "eos": True}
        body |= {"tokens": True, "top_logprobs": 2} if details else {}
    cold, warm = (fresh.ask(path, model=model, **body)["results"] for _ in range(2))
    settings = Settings(models_dir=models_dir, prefix_cache_bytes=0, engine_threads=1)
    key = "prompt" if path == "/generate" else "text"
    with AppClient(create_app(settings)) as plain:
        alone = [plain.ask(path, model=model, **{**body, key: x})["results"][0] for x in texts]
    assert cold == warm == alone


# --- the phases of a request ----------------------------------------------------------------------


def engine_of(session: FakeSession, threads: int = 1, **settings: Any) -> LanguageModelEngine:
    bundle = in_memory(*plain_files("fake", ALPHABET), ALPHABET)
    session.vocab_size = bundle.manifest.vocab.size
    session.__post_init__()
    options = Settings(**settings)
    return LanguageModelEngine(bundle, session, options, precision="fp32", threads=threads)


def test_who_gives_up_while_the_shared_part_is_read_leaves_nothing_behind() -> None:
    gate = Gate()
    engine = engine_of(FakeSession(gate=gate))

    async def work() -> None:
        engine.start()
        texts = [LONG * 4 + "a", LONG * 4 + "b"]
        caller = asyncio.create_task(engine.score(texts, ScoreOptions()))
        await asyncio.to_thread(gate.wait)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.open()
        await asyncio.to_thread(eventually, lambda: all(x.free for x in engine.workers.schedulers))
        assert engine.workers._waiting == {}
        await engine.stop()

    asyncio.run(work())


def test_a_share_that_a_full_queue_refuses_takes_the_others_along() -> None:
    gate = Gate()
    engine = engine_of(FakeSession(gate=gate), threads=2, max_queue_rows=4, max_rows=1)

    async def work() -> None:
        engine.start()
        loop = asyncio.get_running_loop()
        others = [loop.create_task(engine.score(["abc"], ScoreOptions())) for _ in range(3)]
        await asyncio.to_thread(gate.wait)
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull):
            await engine.score(["abc", "abd", "abe", "abf", "abg", "abh"], ScoreOptions())
        gate.open()
        assert len(await asyncio.gather(*others)) == 3
        await asyncio.to_thread(eventually, lambda: all(x.free for x in engine.workers.schedulers))
        assert engine.workers._waiting == {}
        await engine.stop()

    asyncio.run(work())


def test_the_inputs_of_a_request_are_dealt_out_to_every_thread() -> None:
    gate = Gate()
    session = FakeSession(gate=gate)
    engine = engine_of(session, threads=3)

    async def work() -> None:
        engine.start()
        prompts = [letter * 3 for letter in "abcdef"]
        asked = asyncio.create_task(engine.generate(prompts, GenerateOptions(max_tokens=2, seed=1)))
        await asyncio.to_thread(gate.wait)
        await asyncio.sleep(0.05)
        assert [x.load for x in engine.workers.schedulers] == [2, 2, 2]
        gate.open()
        assert len(await asked) == 6
        await engine.stop()

    asyncio.run(work())


@dataclass
class Counting(FakeSession):
    """Counts the tokens of every run."""

    tokens_run: int = 0

    def _run(
        self, kind: str, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[Float32Array, States]:
        self.tokens_run += int(lengths.sum())
        return super()._run(kind, tokens, lengths, states)


beginnings = st.sampled_from(["", "a" * 15, "a" * 16, "a" * 40, "a" * 20 + "b" * 20, "b" * 33])
pieces = st.tuples(beginnings, beginnings, st.text("abc", min_size=1, max_size=4)).map("".join)
asks = st.lists(st.tuples(pieces, beginnings), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(asks, min_size=1, max_size=3), room=st.sampled_from([0, 2000, 10**6]))
def test_what_is_not_cached_is_run_and_nothing_else(
    requests: list[list[tuple[str, str]]], room: int
) -> None:
    session = Counting()
    engine = engine_of(session, prefix_cache_bytes=room)
    plain = engine_of(FakeSession(), prefix_cache_bytes=0)
    options = ScoreOptions(tokens=True, top_logprobs=1)

    async def work() -> None:
        engine.start()
        plain.start()
        for request in requests:
            texts, contexts = zip(*request, strict=True)
            session.tokens_run = 0
            scored = await engine.score(texts, options, contexts=contexts)
            told = sum(x.prompt_tokens - x.cached_tokens for x in scored)
            assert session.tokens_run == told
            assert engine._reads[False].prefixes.size_bytes <= room
            alone = [(await plain.score([x], options, contexts=[y]))[0] for x, y in request]
            assert [replace(x, cached_tokens=0) for x in scored] == alone
        await engine.stop()
        await plain.stop()

    asyncio.run(work())


def test_a_shared_part_that_fails_fails_the_request_and_is_not_kept() -> None:
    session = FakeSession(nan_at=11)
    engine = engine_of(session)

    async def work() -> None:
        engine.start()
        for ask in ([BAD + LONG + "a", BAD + LONG + "b"], [BAD]):
            with pytest.raises(ModelFailure):
                await engine.generate(ask, GenerateOptions(max_tokens=1))
        await asyncio.to_thread(eventually, lambda: all(x.free for x in engine.workers.schedulers))
        assert engine.workers._waiting == {}
        assert len(engine._reads[False].prefixes) == 0
        await engine.generate([LONG + "a", LONG + "b"], GenerateOptions(max_tokens=1))
        assert len(engine._reads[False].prefixes) == 3
        await engine.stop()

    asyncio.run(work())


@dataclass
class Held(FakeSession):
    """Stands still in every step until it is released; a read that fails waits for the first."""

    began: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    steps: int = 0

    def _run(
        self, kind: str, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[Float32Array, States]:
        if tokens.shape[1] == 1:
            self.steps += 1
            self.began.set()
            assert self.released.wait(PATIENCE_S)
        elif self.nan_at in tokens:
            assert self.began.wait(PATIENCE_S)
        return super()._run(kind, tokens, lengths, states)


def test_a_share_that_fails_takes_the_others_along_and_leaves_other_requests() -> None:
    session = Held(nan_at=11)
    engine = engine_of(session, threads=2)
    options = GenerateOptions(max_tokens=40, seed=3, logit_bias={"\ue002": -1000.0, BAD: -1000.0})

    async def work() -> None:
        engine.start()
        with pytest.raises(ModelFailure):
            await engine.generate(["abc", "ab" + BAD], options)
        # The first prompt stands in its first step, on the other thread; its row goes next.
        beside = asyncio.create_task(engine.generate(["xyz", "zyx"], options))
        await asyncio.to_thread(
            eventually, lambda: any(x.load > 1 for x in engine.workers.schedulers)
        )
        session.released.set()
        found = [x.choices for x in await beside]
        await asyncio.to_thread(eventually, lambda: all(x.free for x in engine.workers.schedulers))
        assert engine.workers._waiting == {}
        # Two choices of 40 tokens, each on a thread of its own, and one step for nothing.
        assert session.steps <= 2 * 39 + 1
        assert found == [x.choices for x in await engine.generate(["xyz", "zyx"], options)]
        await engine.stop()

    asyncio.run(work())
