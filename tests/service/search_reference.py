"""The search for one source's targets from its description: plain Python, one row at a time."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st

from service.bundle.arrays import Float32Array, Ids
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from service.decoding.sampling import NOISE_BLOCK, Sampler, SamplingParams, noise_block
from service.decoding.search import Search
from service.runtime.encoder_decoder import EncoderDecoderSession, Tensors
from service.runtime.runs import pad_sources

LONGEST_CYCLE, CYCLE_REPEATS, CYCLE_TOKENS, LOOK_EVERY = 16, 4, 24, 8


@dataclass(frozen=True)
class Found:
    """A hypothesis, to the bit."""

    tokens: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    logprob: float
    finish_reason: str
    attention: bytes | None


def found(search: Search) -> list[Found]:
    """What a search answers."""
    return [
        Found(
            x.tokens,
            x.token_logprobs,
            x.logprob,
            x.finish_reason,
            None if x.attention is None else x.attention.tobytes(),
        )
        for x in search.best()
    ]


@dataclass(frozen=True)
class _Row:
    """A target so far, and where the model stands."""

    states: Tensors
    tokens: tuple[int, ...] = ()
    token_logprobs: tuple[float, ...] = ()
    logprob: float = 0.0
    attention: tuple[Float32Array, ...] = ()

    def ended(self, reason: str, *, with_attention: bool) -> Found:
        weights = np.stack(self.attention).tobytes() if with_attention else None
        return Found(self.tokens, self.token_logprobs, self.logprob, reason, weights)


class _Source:
    """One source, read alone."""

    def __init__(self, session: EncoderDecoderSession, search: Search) -> None:
        self._session = session
        lengths = np.array([len(search.source)], np.int32)
        self._encoded = session.encode(pad_sources([search.source]), lengths)

    def start(self) -> _Row:
        return _Row(self._encoded.states)

    def step(self, row: _Row) -> tuple[Float32Array, Tensors, Any]:
        """log p [V] of the next token, the states after it was asked for, the weights."""
        last = row.tokens[-1] if row.tokens else BOS_ID
        step = self._session.step(
            np.array([last]), row.states, self._encoded.memory, attention=True
        )
        weights = None if step.attention is None else step.attention[0]
        return step.logprobs[0], step.states, weights


def _extended(row: _Row, token: int, step: tuple[Any, Tensors, Any]) -> _Row:
    logprobs, states, weights = step
    picked = float(logprobs[token])
    return _Row(
        states,
        (*row.tokens, token),
        (*row.token_logprobs, picked),
        row.logprob + picked,
        (*row.attention, weights),
    )


Wanted: TypeAlias = Collection[tuple[int, ...]] | None  # all targets that match, without eos


def alone(session: EncoderDecoderSession, search: Search, wanted: Wanted = None) -> list[Found]:
    """What the search must answer; with a constraint, its targets are among those wanted."""
    if search.given:
        return [_given(session, search)]
    if search.params is not None:
        return [_sample(session, search, choice, wanted) for choice in range(search.width)]
    return _beams(session, search, wanted)[0]


def rival_of(session: EncoderDecoderSession, search: Search, wanted: Wanted = None) -> float | None:
    """The rival that a beam search must note."""
    return _beams(session, search, wanted)[1]


def _allowed(row: "_Row", token: int, search: Search, wanted: Wanted) -> bool:
    """Whether a wanted target begins so, short enough that its end still fits."""
    if wanted is None:
        return True
    if token == EOS_ID:
        return row.tokens in wanted
    begun = (*row.tokens, token)
    return any(x[: len(begun)] == begun and len(x) < search.max_tokens for x in wanted)


def _given(session: EncoderDecoderSession, search: Search) -> Found:
    source = _Source(session, search)
    row = source.start()
    for token in search.forced:
        row = _extended(row, token, source.step(row))
    return row.ended("stop", with_attention=search.wants_attention)


def _sample(session: EncoderDecoderSession, search: Search, choice: int, wanted: Wanted) -> Found:
    assert search.params is not None
    source = _Source(session, search)
    row = source.start()
    reason = None
    while reason is None:
        position = len(row.tokens)
        step = source.step(row)
        if position < len(search.forced):
            row = _extended(row, search.forced[position], step)
        else:
            block, inside = divmod(position, NOISE_BLOCK)
            uniform = noise_block(search.seed, choice, block)[inside : inside + 1]
            sampler = Sampler([search.params], len(step[0]))
            counts = np.empty((0, len(step[0])), np.int64)
            logprobs = step[0].copy()
            for token in range(len(logprobs)):
                if not _allowed(row, token, search, wanted):
                    logprobs[token] = -np.inf
            row = _extended(row, int(sampler.choose(logprobs[None], uniform, counts)[0]), step)
            if wanted is None and _looks(row) and goes_round(row.tokens):
                reason = "repetition"
            elif row.tokens[-1] == EOS_ID:
                reason = "stop"
        if reason is None and len(row.tokens) == search.max_tokens:
            reason = "length"
    return row.ended(reason, with_attention=search.wants_attention)


def _beams(
    session: EncoderDecoderSession, search: Search, wanted: Wanted
) -> tuple[list[Found], float | None]:
    """Of the 2 K likeliest those that end, and rank among the first K, end; K others go on.

    And the rival of the best: the likeliest other one when nothing could beat it any more.
    """
    source = _Source(session, search)
    live, ended = [source.start()], []
    rival = None
    never = {PAD_ID, BOS_ID, *(() if search.writes_unknown else (UNK_ID,))}
    while live:
        position = len(live[0].tokens)
        steps = [source.step(row) for row in live]
        if position < len(search.forced):
            live = [_extended(live[0], search.forced[position], steps[0])]
        else:
            ranked = sorted(
                (-(row.logprob + float(x)), place, token)
                for place, (row, step) in enumerate(zip(live, steps, strict=True))
                for token, x in enumerate(step[0])
                if token not in never and _allowed(row, token, search, wanted)
            )[: 2 * search.width]
            extended = [_extended(live[place], token, steps[place]) for _, place, token in ranked]
            ended += [
                x.ended("stop", with_attention=search.wants_attention)
                for x in extended[: search.width]
                if x.tokens[-1] == EOS_ID
            ]
            live = [x for x in extended if x.tokens[-1] != EOS_ID][: search.width]
            circling = [x for x in live if wanted is None and _looks(x) and goes_round(x.tokens)]
            ended += [
                x.ended("repetition", with_attention=search.wants_attention) for x in circling
            ]
            live = [x for x in live if x not in circling]
        if position + 1 == search.max_tokens:
            ended += [x.ended("length", with_attention=search.wants_attention) for x in live]
            live = []
        if position >= len(search.forced) and rival is None:
            rival = _rival(search, ended, live)
        if search.width == 1 and ended:
            live = []  # one beam is greedy: it ends where the end is the likeliest token
    # Several beams never stop early here: to do so must not change an answer.
    return _ranked(search, ended)[: search.num_hypotheses], rival


def _ranked(search: Search, ended: Sequence[Found]) -> list[Found]:
    penalty = search.length_penalty
    ranks = [(x.finish_reason != "stop", -x.logprob / len(x.tokens) ** penalty) for x in ended]
    return [ended[i] for i in sorted(range(len(ended)), key=ranks.__getitem__)]


def _rival(search: Search, ended: Sequence[Found], live: Sequence[_Row]) -> float | None:
    """None while a live row may still beat the best."""
    ranked, nats = _ranked(search, ended), [row.logprob for row in live]
    if live:
        if not ranked or ranked[0].finish_reason != "stop":
            return None
        score = ranked[0].logprob / len(ranked[0].tokens) ** search.length_penalty
        if search.width > 1 and score < max(nats) / search.max_tokens**search.length_penalty:
            return None
    return max([*nats, *(x.logprob for x in ranked[1:])], default=-math.inf)


def _looks(row: _Row) -> bool:
    return len(row.tokens) % LOOK_EVERY == 0 and len(row.tokens) >= CYCLE_TOKENS


def goes_round(tokens: Sequence[int]) -> bool:
    """Whether the end is a cycle that came often enough."""
    for cycle in range(1, LONGEST_CYCLE + 1):
        span = max(CYCLE_TOKENS, CYCLE_REPEATS * cycle)
        tail = tokens[-span:]
        if len(tokens) >= span and tail[cycle:] == tail[:-cycle]:
            return True
    return False


# --- searches to try ------------------------------------------------------------------------------


def source_of(ids: Sequence[int]) -> Ids:
    """A source with its end."""
    return np.array([*ids, EOS_ID], np.uint16)


ids_of = st.integers(4, 9)
sources = st.lists(ids_of, max_size=40).map(source_of)
samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 3]),
    top_p=st.sampled_from([0.8, 1.0]),
)


@st.composite
def beam_searches(draw: st.DrawFn, *, min_width: int = 1) -> Search:
    width = draw(st.integers(min_width, 4))
    bound = draw(st.integers(1, 30))
    return Search(
        draw(sources),
        width,
        bound,
        forced=tuple(draw(st.lists(ids_of, max_size=min(5, bound - 1)))),
        num_hypotheses=draw(st.integers(1, width)),
        length_penalty=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        writes_unknown=draw(st.booleans()),
        wants_attention=draw(st.booleans()),
    )


@st.composite
def sample_searches(draw: st.DrawFn) -> Search:
    width = draw(st.integers(1, 4))
    bound = draw(st.integers(1, 30))
    return Search(
        draw(sources),
        width,
        bound,
        forced=tuple(draw(st.lists(ids_of, max_size=min(5, bound - 1)))),
        params=draw(samplings),
        seed=draw(st.integers(0, 2**63 - 1)),
        num_hypotheses=width,
        wants_attention=draw(st.booleans()),
    )


@st.composite
def given_searches(draw: st.DrawFn) -> Search:
    tokens = tuple(draw(st.lists(ids_of, max_size=30)))
    forced = (*tokens, EOS_ID) if not tokens or draw(st.booleans()) else tokens
    return Search(
        draw(sources),
        1,
        len(forced),
        forced=forced,
        given=True,
        detail_top=draw(st.sampled_from([None, 0, 2])),
        wants_attention=draw(st.booleans()),
    )


searches = st.one_of(beam_searches(), sample_searches(), given_searches())
