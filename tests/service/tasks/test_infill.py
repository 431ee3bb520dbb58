"""`infill` of language models, against all that a blank may be, read token by token."""

import asyncio
import itertools
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.store import read_language_model
from service.bundle.text import BOS_ID, EOS_ID
from service.decoding.constraints import AllowedChars, Pattern
from service.errors import DeadlineExceeded, InvalidRequest
from service.scheduling import language_model as runner
from service.settings import Settings
from service.tasks import proposing
from service.tasks.infill_values import Blanks, Infilled, InfillOptions, Proposal
from service.tasks.kinds import KINDS, Surroundings
from service.tasks.language_model import LanguageModelEngine
from service.tasks.values import ScoreOptions
from tests.bundles import in_memory, plain_files
from tests.end_to_end.server import ROOT
from tests.fakes import FakeSession, Gate, eventually

CHARACTERS = "abcdefgh"
VOCAB_SIZE = 4 + len(CHARACTERS)

texts = st.text(CHARACTERS, max_size=6)
some_pieces = st.lists(texts, min_size=2, max_size=3).map(lambda x: Blanks(tuple(x)))


def engine_of(session: FakeSession, **options: Any) -> LanguageModelEngine:
    bundle = in_memory(*plain_files("fake", CHARACTERS), CHARACTERS)
    return LanguageModelEngine(bundle, session, Settings(**options), precision="fp32")


def served(
    work: Callable[[LanguageModelEngine], Coroutine[Any, Any, Any]],
    session: FakeSession | None = None,
    **options: Any,
) -> Any:
    """The result of some work on a started engine."""

    async def main() -> Any:
        engine = engine_of(session or FakeSession(vocab_size=VOCAB_SIZE), **options)
        engine.start()
        try:
            return await work(engine)
        finally:
            await engine.stop()

    return asyncio.run(main())


def infill(
    asked: Sequence[Blanks],
    proposals: Sequence[Sequence[Proposal]] | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> list[Infilled]:
    async def work(engine: LanguageModelEngine) -> list[Infilled]:
        return await engine.infill(asked, InfillOptions(**options), proposals=proposals)

    results: list[Infilled] = served(work, **settings or {})
    return results


# --- the reference --------------------------------------------------------------------------------

SESSION = FakeSession(vocab_size=VOCAB_SIZE)


def logprob_of(before: Sequence[int], tokens: Sequence[int]) -> float:
    """log p(tokens | before); a token with nothing before it counts nothing."""
    whole = [*before, *tokens]
    total, states = 0.0, SESSION.initial_states(1)
    for place, token in enumerate(whole[:-1]):
        logprobs, states = SESSION.read(np.array([[token]]), np.array([1], np.int32), states)
        if place + 1 >= len(before):
            total += float(logprobs[0, 0, whole[place + 1]])
    return total


def ids_of(text: str) -> list[int]:
    return [4 + CHARACTERS.index(x) for x in text]


def figures(
    blanks: Blanks, fills: Sequence[str], *, bos: bool = True, eos: bool = False
) -> tuple[float, float]:
    """The logprob of the fills, and of the pieces after the first."""
    before = [*([BOS_ID] if bos else []), *ids_of(blanks.pieces[0])]
    of_fills = of_pieces = 0.0
    for i, (fill, piece) in enumerate(zip(fills, blanks.pieces[1:], strict=True)):
        of_fills += logprob_of(before, ids_of(fill))
        before += ids_of(fill)
        is_end = eos and i == len(fills) - 1
        after = [*ids_of(piece), *([EOS_ID] if is_end else [])]
        of_pieces += logprob_of(before, after)
        before += after
    return of_fills, of_pieces


def check(result: Infilled, blanks: Blanks, fills: Sequence[tuple[str, ...]], **how: bool) -> None:
    """The result has these fills, and their figures are brute force's."""
    found = {x: figures(blanks, x, **how) for x in dict.fromkeys(fills)}
    total = np.logaddexp.reduce([sum(x) for x in found.values()])
    assert result.compared == len(found)
    assert {x.texts for x in result.fills} == set(found)
    for fill in result.fills:
        of_fill, of_pieces = found[fill.texts]
        assert fill.logprob == pytest.approx(of_fill, abs=1e-9)
        assert fill.suffix_logprob == pytest.approx(of_pieces, abs=1e-9)
        assert fill.posterior == pytest.approx(math.exp(of_fill + of_pieces - total), abs=1e-9)
    posteriors = [fill.posterior for fill in result.fills]
    assert posteriors == sorted(posteriors, reverse=True)
    assert sum(posteriors) == pytest.approx(1.0)


def short(characters: str) -> list[str]:
    """All texts of one or two characters."""
    return ["".join(x) for n in (1, 2) for x in itertools.product(characters, repeat=n)]


def combinations(blanks: Blanks, candidates: Sequence[str]) -> list[tuple[str, ...]]:
    return list(itertools.product(candidates, repeat=len(blanks.pieces) - 1))


# --- candidates -----------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    st.lists(some_pieces, min_size=1, max_size=3),
    st.lists(texts, min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_the_posterior_of_candidates_is_brute_forces(
    asked: list[Blanks], candidates: list[str], bos: bool, eos: bool
) -> None:
    results = infill(asked, candidates=tuple(candidates), num_fills=100, bos=bos, eos=eos)
    for blanks, result in zip(asked, results, strict=True):
        check(result, blanks, combinations(blanks, candidates), bos=bos, eos=eos)
        assert result.found_mass is None
        assert result.seed is None


@pytest.mark.parametrize("options", [{}, {"length": 3}, {"candidates": ("abc", "", "d" * 40)}])
def test_the_figures_are_those_of_score(options: dict[str, Any]) -> None:
    """Bit for bit."""
    prefix, suffix = "abcadcb" * 20, "ddabca" * 20

    async def work(engine: LanguageModelEngine) -> None:
        chosen = InfillOptions(seed=1, eos=True, num_fills=100, **options)
        (result,) = await engine.infill([Blanks((prefix, suffix))], chosen)
        assert len(result.fills) == result.compared
        fills = [fill.texts[0] for fill in result.fills]
        before = await engine.score(fills, ScoreOptions(), contexts=[prefix] * len(fills))
        contexts = [prefix + fill for fill in fills]
        after = await engine.score([suffix] * len(fills), ScoreOptions(eos=True), contexts=contexts)
        for fill, one, other in zip(result.fills, before, after, strict=True):
            assert (fill.logprob, fill.suffix_logprob) == (one.logprob, other.logprob)

    served(work)


def test_many_combinations_are_a_beam_from_left_to_right() -> None:
    candidates = [x for n in range(4) for x in map("".join, itertools.product("abc", repeat=n))]
    blanks = Blanks(("a", "bc", "d", "ab"))
    (result,) = infill([blanks], candidates=tuple(candidates), settings={"max_choices": 100})
    assert result.compared == 64 * len(candidates) < len(candidates) ** 3
    for fill in result.fills:
        found = fill.logprob, fill.suffix_logprob
        assert found == pytest.approx(figures(blanks, fill.texts))


def test_what_is_held_at_once_does_not_show() -> None:
    """Bit for bit, where so few states fit in memory that candidates are read in parts."""
    blanks = Blanks(("ab", "c", "da"))
    options: dict[str, Any] = {"candidates": tuple(short("abc")), "num_fills": 1000}
    (result,) = infill([blanks], **options)
    assert result.compared == 144
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposing, "_MAX_FLOATS", 0)
        (parted,) = infill([blanks], **options)
        (few,) = infill([blanks], **{**options, "num_fills": 3})
    assert parted == result
    assert few == replace(result, fills=result.fills[:3])


def test_candidates_that_read_alike_are_one() -> None:
    (result,) = infill([Blanks(("a", "b"))], candidates=("a", "?", "a", "!", ""), num_fills=9)
    assert sorted(fill.texts[0] for fill in result.fills) == ["", "?", "a"]


def test_the_policy_on_unknown_characters_covers_pieces_and_candidates() -> None:
    asked = [Blanks(("a?b", "?", "c?"))]
    (result,) = infill(asked, candidates=("a",))
    assert result.unknown.positions == (1, 3, 5)
    (skipped,) = infill(asked, candidates=("?a",), unknown="skip")
    assert skipped.unknown.positions == (1, 3, 5)
    (plain,) = infill([Blanks(("ab", "", "c"))], candidates=("a",))
    assert skipped.fills[0].logprob == plain.fills[0].logprob
    for option, pieces, candidate in (
        ("prefix", ("?", ""), "a"),
        ("suffix", ("a", "?"), "a"),
        ("candidates", ("a", "b"), "?"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            infill([Blanks(pieces)], candidates=(candidate,), unknown="error")
        assert caught.value.errors[0].option == option


# --- open blanks ----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(some_pieces, st.booleans())
def test_a_blank_of_one_character_is_compared_with_every_one(blanks: Blanks, eos: bool) -> None:
    (result,) = infill([blanks], length=1, num_fills=100, eos=eos)
    fills = combinations(blanks, CHARACTERS)
    check(result, blanks, fills, eos=eos)
    mass = sum(math.exp(figures(blanks, x)[0]) for x in fills)
    assert result.found_mass == pytest.approx(mass)


@settings(max_examples=20)
@given(texts, texts, st.sampled_from([None, "[ab]?c*", "d|ad"]))
def test_a_search_that_finds_all_texts_is_exact(
    prefix: str, suffix: str, pattern: str | None
) -> None:
    blanks = Blanks((prefix, suffix))
    rule = None if pattern is None else Pattern(pattern)
    (result,) = infill([blanks], rule=rule, max_tokens=2, num_proposals=72, num_fills=100)
    known = {
        None: short(CHARACTERS),
        "[ab]?c*": ["a", "b", "c", "ac", "bc", "cc"],
        "d|ad": ["d", "ad"],
    }
    fills = [(x,) for x in known[pattern]]
    check(result, blanks, fills)
    mass = sum(math.exp(figures(blanks, x)[0]) for x in fills) / 2
    assert result.found_mass == pytest.approx(mass)


def test_two_open_blanks_are_exact_where_all_texts_are_found() -> None:
    blanks = Blanks(("ab", "c", "da"))
    options: dict[str, Any] = {"max_tokens": 2, "num_proposals": 400, "num_fills": 1000}
    (result,) = infill([blanks], rule=AllowedChars("bcdh"), **options)
    check(result, blanks, combinations(blanks, short("bcdh")))


@settings(max_examples=8)
@given(st.lists(some_pieces, min_size=2, max_size=3), st.integers(0, 2**63 - 1))
def test_a_text_is_filled_the_same_alone_in_a_batch_and_in_other_chunks(
    asked: list[Blanks], seed: int
) -> None:
    """Bit for bit."""
    options: dict[str, Any] = {"seed": seed, "max_tokens": 5, "num_proposals": 4}
    together = infill(asked, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "READ_CHUNK", 1)
        few = infill(asked, settings={"max_rows": 3, "engine_threads": 1}, **options)
    assert [x.fills for x in few] == [x.fills for x in together]
    alone = [infill([blanks], **options)[0] for blanks in asked]
    assert [x.fills for x in alone] == [x.fills for x in together]
    assert [x.found_mass for x in alone] == [x.found_mass for x in together]


def test_a_seed_that_is_drawn_asks_for_the_same_proposals_again() -> None:
    options: dict[str, Any] = {"num_proposals": 2, "num_fills": 2, "length": 6}
    asked = [Blanks(("abc", "dab"))]
    results = [infill(asked, **options)[0] for _ in range(8)]
    assert len({x.fills for x in results}) > 1
    for result in results[:2]:
        (again,) = infill(asked, seed=result.seed, **options)
        assert again == result


def test_a_long_blank_keeps_to_its_length_and_rule() -> None:
    (result,) = infill([Blanks(("a", "b"))], length=7, rule=Pattern("(ab|c|dd)*"), num_fills=99)
    assert result.compared == 64
    assert {len(fill.texts[0]) for fill in result.fills} == {7}
    for text in (fill.texts[0] for fill in result.fills):
        assert not text.replace("ab", "").replace("c", "").replace("dd", "")
    (result,) = infill([Blanks(("a", "b"))], rule=AllowedChars("ad"), max_tokens=6, num_fills=99)
    assert {x for fill in result.fills for x in fill.texts[0]} == {"a", "d"}


def test_proposals_of_another_model_are_compared_with_its_own() -> None:
    blanks = Blanks(("abc", "dab"))
    others = ("dcbadc", "dcbadc", "toolong", "cd?acd", "b")
    proposals = [[Proposal((x,), -1.0) for x in others]]
    options: dict[str, Any] = {"length": 6, "seed": 1, "num_proposals": 2, "num_fills": 9}
    (own,) = infill([blanks], **options)
    (both,) = infill([blanks], proposals, **options)
    assert {x.texts for x in both.fills} == {x.texts for x in own.fills} | {("dcbadc",)}
    check(both, blanks, [x.texts for x in both.fills])


@pytest.mark.parametrize("name", ["alice-ngram", "alice-lstm"])  # an n-gram, and a mixture with it
def test_one_character_is_exact_with_shipped_models(name: str) -> None:
    bundle = read_language_model(ROOT / "models" / name)
    prefix, suffix = "The Ra", "bit said to itself, Oh dear!"

    async def main() -> None:
        engine: Any = KINDS["language_model"](bundle, Surroundings(settings=Settings(), threads=1))
        engine.start()
        options = InfillOptions(length=1, num_fills=1000)
        (result,) = await engine.infill([Blanks((prefix, suffix))], options)
        characters = list(bundle.vocab.tokens[4:])
        each = [prefix] * len(characters)
        before = await engine.score(characters, ScoreOptions(), contexts=each)
        contexts = [prefix + x for x in characters]
        after = await engine.score([suffix] * len(contexts), ScoreOptions(), contexts=contexts)
        await engine.stop()
        scores = [(x.logprob, y.logprob) for x, y in zip(before, after, strict=True)]
        known = dict(zip(characters, scores, strict=True))
        total = np.logaddexp.reduce([sum(x) for x in scores])
        assert len(result.fills) == len(characters)
        for fill in result.fills:
            assert (fill.logprob, fill.suffix_logprob) == known[fill.texts[0]]
            posterior = math.exp(sum(known[fill.texts[0]]) - total)
            assert fill.posterior == pytest.approx(posterior, abs=1e-12)
        assert result.fills[0].texts == ("b",)

    asyncio.run(main())


# --- what is refused ------------------------------------------------------------------------------

ONE = [Blanks(("ab", "cd"))]


@pytest.mark.parametrize(
    ("option", "asked", "options", "limits"),
    [
        ("prefix", ONE * 3, {"candidates": ("a",)}, {"max_inputs": 2}),
        ("prefix", ONE, {"candidates": ("a",)}, {"max_queue_tokens": 3}),
        ("prefix", [Blanks(("a",))], {}, {}),
        ("prefix", [Blanks(("a",) * 34)], {}, {}),
        ("num_fills", ONE, {"num_fills": 6}, {"max_choices": 5}),
        ("candidates", ONE, {"candidates": ()}, {}),
        ("candidates", ONE, {"candidates": ("a", "b")}, {"max_choices": 1}),
        ("candidates", ONE, {"candidates": ("ab", "b")}, {"max_choices_chars": 2}),
        ("candidates", ONE, {"candidates": ("ab", "b")}, {"max_queue_tokens": 6}),
        ("max_tokens", ONE, {"max_tokens": 9}, {"max_tokens": 8}),
        ("max_tokens", ONE, {}, {"max_cost_tokens": 1000}),
        ("max_tokens", ONE, {"rule": Pattern("abcd"), "max_tokens": 3}, {}),
        ("length", ONE, {"length": 9}, {"max_tokens": 8}),
        ("length", ONE, {"length": 9, "max_tokens": 8}, {}),
        ("length", ONE, {"length": 3, "rule": Pattern("(ab)*")}, {}),
        ("length", ONE, {"length": 3, "rule": Pattern("abcd")}, {}),
        ("max_tokens", ONE, {"rule": Pattern("")}, {}),
        ("num_proposals", ONE, {"num_proposals": 1025}, {}),
        ("num_proposals", ONE, {}, {"max_queue_tokens": 3000}),
        ("bos", [Blanks(("", "a"))], {"bos": False}, {}),
        ("pattern", ONE, {"rule": Pattern("(")}, {}),
    ],
)
def test_what_is_too_much_is_refused_by_its_name(
    option: str, asked: list[Blanks], options: dict[str, Any], limits: dict[str, Any]
) -> None:
    session = FakeSession(vocab_size=VOCAB_SIZE)

    async def work(engine: LanguageModelEngine) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await engine.infill(asked, InfillOptions(**options))
        assert [x.option for x in caught.value.errors] == [option]

    served(work, session, **limits)
    assert not session.runs


def asking(engine: LanguageModelEngine) -> Coroutine[Any, Any, list[Infilled]]:
    return engine.infill(ONE * 3, InfillOptions(max_tokens=8))


@pytest.mark.parametrize("runs", [0, 1, 5])
def test_a_caller_that_leaves_takes_its_rows_along(runs: int) -> None:
    gate = Gate()

    async def work(engine: LanguageModelEngine) -> None:
        caller = asyncio.create_task(asking(engine))
        await asyncio.to_thread(gate.wait)
        await asyncio.to_thread(gate.step, runs)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.open()
        eventually(lambda: engine.workers.schedulers[0].free)
        assert engine.workers._waiting == {}

    served(work, FakeSession(vocab_size=VOCAB_SIZE, gate=gate))


def test_a_deadline_frees_the_rows() -> None:
    gate = Gate()

    async def work(engine: LanguageModelEngine) -> None:
        with pytest.raises(DeadlineExceeded):
            await asking(engine)
        gate.open()
        eventually(lambda: engine.workers.schedulers[0].free)

    served(work, FakeSession(vocab_size=VOCAB_SIZE, gate=gate), request_timeout_s=0.05)


def test_the_usage_counts_what_was_read_and_written() -> None:
    blanks = Blanks(("abca", "bcd", "ab"))
    (result,) = infill([blanks], candidates=("a", "bcd"))
    # The prefix; 2 candidates and the piece after each; 4 pairs of the second and what follows.
    assert result.prompt_tokens == 4 + (1 + 3 + 2 * 3) + 2 * (1 + 3) + 4 * 2
    assert result.completion_tokens == 0
    (result,) = infill([Blanks(("abca", "bcd"))], max_tokens=2)
    assert result.completion_tokens == 8 + 64
    assert result.prompt_tokens == 4 + 72 * 3 + 64 * 3  # a look at all 72, and 64 are compared
