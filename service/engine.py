"""The tasks on text: generate and score. No HTTP in here.

Text becomes ids, ids become rows, the scheduler fills them in, and they become text again.
"""

import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    Bundle,
    Precision,
    normalize,
    special_ids,
)
from service.constraints import Constraint, ConstraintCompiler, Rule
from service.errors import InvalidRequest
from service.handles import Handle, NoisePlace, Seal
from service.prefixes import MIN_SHARED_TOKENS, PrefixCache, shared_prefixes
from service.rows import Continuation, ReadRow, TokenDetails, WriteRow
from service.sampling import SamplingParams
from service.session import Session, States
from service.settings import Settings
from service.streams import Feed
from service.text_runner import TextRunner, TextWork
from service.workers import Workers, at_most, drawn_seed, off_loop, worker_names

UnknownPolicy: TypeAlias = Literal["unk", "error", "skip"]
# A text, or the ids of one; bos comes before it by itself.
Prompt: TypeAlias = str | tuple[int, ...]

DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """What `/generate` may be asked for, besides the prompts."""

    max_tokens: int | None = None  # None: DEFAULT_MAX_TOKENS, or the limit where that is less
    sampling: SamplingParams = SamplingParams()
    logit_bias: Mapping[str, float] = field(default_factory=dict)  # by printed token
    seed: int | None = None  # None draws one
    stop: tuple[str, ...] = ()
    rule: Rule | None = None  # what the text may be
    n: int = 1
    echo: bool = False
    logprobs: int | None = None  # alternatives a token; None for none of it
    state: str | None = None  # a handle: every prompt is read after it, and begins no document
    return_state: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """What `/score` may be asked for, besides the texts."""

    tokens: bool = False
    top_logprobs: int = 0
    bos: bool = True  # the text begins a document
    eos: bool = False  # the text ends there, and that is counted
    unknown: UnknownPolicy = "unk"
    state: str | None = None  # a handle: every text is scored after it, `bos` means nothing then
    return_state: bool = False


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token and what the model thought of it. `None` where it had nothing to go by."""

    token: str
    logprob: float | None
    entropy_bits: float | None
    rank: int | None
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation of a prompt."""

    text: str
    finish_reason: Literal["stop", "length"]
    seed: int
    tokens: tuple[ScoredToken, ...] | None
    completion_tokens: int
    state: str | None = None  # a handle; None after eos
    matched: bool | None = None  # whether the text obeys the rule; None where there is none
    offsets: tuple[int, ...] = ()  # of each of `tokens`: characters of the text before it


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token of a choice that is being written, or what was echoed before it."""

    prompt: int
    choice: int
    text: str  # empty for what ends the text: eos, or a stop string's tokens
    offset: int  # characters of the choice's text before it
    token: ScoredToken | None  # None for an echoed prompt without log-probabilities


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """A choice has all its tokens."""

    prompt: int
    choice: int
    finish_reason: Literal["stop", "length"]
    seed: int
    completion_tokens: int
    state: str | None = None  # a handle; None after eos
    matched: bool | None = None  # whether the text obeys the rule; None where there is none


@dataclass(frozen=True, slots=True)
class StreamUsage:
    """All choices have; this is the last event."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


StreamEvent: TypeAlias = TokenEvent | ChoiceEnd | StreamUsage


@dataclass(frozen=True, slots=True)
class Generated:
    """The continuations of one prompt."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    cached_tokens: int  # of those: read before, or with another input


@dataclass(frozen=True, slots=True)
class Scored:
    """The probability of one text."""

    logprob: float  # nats, over `chars` characters, and eos where it is counted
    chars: int
    bos: bool
    eos: bool
    unknown: tuple[int, ...]  # positions in the normalized text
    tokens: tuple[ScoredToken, ...] | None
    prompt_tokens: int
    cached_tokens: int  # of those: read before, or with another input
    state: str | None = None  # a handle; None after eos, and where nothing was read

    @property
    def bits(self) -> float:
        """Total surprisal."""
        # Not -0.0 for the empty text.
        return -self.logprob / math.log(2) + 0.0

    @property
    def bits_per_char(self) -> float | None:
        """Total bits over the counted characters; `None` where there are none."""
        return self.bits / self.chars if self.chars else None

    @property
    def perplexity_per_char(self) -> float | None:
        """2 ** bits_per_char; `None` where there are no characters or it overflows."""
        if not self.chars:
            return None
        exponent = -self.logprob / self.chars
        return math.exp(exponent) if exponent < math.log(np.finfo(np.float64).max) else None


class Engine(Workers[TextWork]):
    """One language model: its bundle, its workers and the tasks on text."""

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        settings: Settings,
        *,
        precision: Precision,
        threads: int = 1,
    ) -> None:
        self.manifest = bundle.manifest
        self.precision = precision
        self._vocab = bundle.vocab
        self._id_of_token = {token: i for i, token in enumerate(bundle.vocab.tokens)}
        self._constraints = ConstraintCompiler(bundle.vocab.tokens, settings)
        self._prefixes = PrefixCache(settings.prefix_cache_bytes)
        self._seal = _seal_of(bundle, precision, settings)
        names = worker_names(bundle.manifest.name, threads)
        runners = [TextRunner(session, settings.max_rows, name=name) for name in names]
        super().__init__(runners, names, settings, max_rows=settings.max_rows)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""
        return self._vocab.tokens

    def token_ids(self, text: str, _side: str = "") -> list[int]:
        """The ids of a text, in which printed special tokens are read as such."""
        normalized = normalize(text, self.manifest.normalization)
        return special_ids(self._vocab, normalized)

    def text_of(self, ids: Sequence[int], _side: str = "") -> str:
        """The printed tokens of ids, one after another."""
        return "".join(self._vocab.tokens[i] for i in ids)

    @property
    def max_tokens(self) -> int:
        """Most tokens that one choice may generate: the service's limit or the bundle's."""
        return min(self.settings.max_tokens, self.manifest.limits.max_tokens)

    # --- generate -------------------------------------------------------------------------------

    async def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions
    ) -> list[Generated]:
        """Continue every prompt. The same seed gives the same text, whatever runs beside it.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        options = self._checked(prompts, options)
        constraint = await self._constraint(options)
        begin = self._beginning(options)
        size = sum(map(len, prompts))
        works = await off_loop(
            size, lambda: self._generate_work(prompts, options, begin, constraint)
        )
        reused = await self._run(works)
        answer_size = size if options.echo else 0
        answer_size += sum(len(row.tokens) for work in works for row in work.write)
        answer_size *= 1 + (options.logprobs or 0)
        if options.return_state:
            answer_size += sum(len(work.write) for work in works) * self._seal.handle_chars
        return await off_loop(
            answer_size,
            lambda: [
                self._generated(prompt, work, options, begin, cached)
                for prompt, work, cached in zip(prompts, works, reused, strict=True)
            ],
        )

    async def stream(
        self, prompts: Sequence[Prompt], options: GenerateOptions
    ) -> AsyncGenerator[StreamEvent, None]:
        """What `generate` gives, token by token, as it is written; the usage comes last.

        What could still become a stop string is held back. Raises what `generate` raises; close it,
        and the rows leave before the next step.
        """
        options = self._checked(prompts, options)
        constraint = await self._constraint(options)
        begin = self._beginning(options)
        size = sum(map(len, prompts))
        works = await off_loop(
            size, lambda: self._generate_work(prompts, options, begin, constraint)
        )
        feed: Feed[tuple[_StreamedChoice, _Told | None]] = Feed()

        def sealed(work: TextWork, row: WriteRow) -> str | None:
            return self._sealed_choice(work, row, begin) if options.return_state else None

        choices = [
            _StreamedChoice(
                feed, self.tokens, (i, k), prompt if options.echo else None, work, row, sealed
            )
            for i, (prompt, work) in enumerate(zip(prompts, works, strict=True))
            for k, row in enumerate(work.write)
        ]
        reused: list[int] = []

        async def run() -> None:
            reused.extend(await self._run(works))

        async with aclosing(feed.during(run())) as told:
            async for choice, news in told:
                for event in choice.events(news):
                    yield event
        for choice in choices:
            if not choice.has_ended:  # it had no token to write
                for event in choice.events(None):
                    yield event
        prompt_tokens = [len(_read_ids(work)) for work in works]
        yield StreamUsage(
            prompt_tokens=sum(prompt_tokens),
            completion_tokens=sum(len(row.tokens) for work in works for row in work.write),
            cached_tokens=sum(map(min, reused, prompt_tokens)),
        )

    def _checked(self, prompts: Sequence[Prompt], options: GenerateOptions) -> GenerateOptions:
        """The options with what was left out. Raises InvalidRequest."""
        if options.max_tokens is None:
            options = replace(options, max_tokens=min(DEFAULT_MAX_TOKENS, self.max_tokens))
        self._check_generate(prompts, options)
        return replace(options, sampling=self._with_bias(options))

    async def _constraint(self, options: GenerateOptions) -> Constraint | None:
        """What the texts may be. Raises InvalidRequest, QueueFull and DeadlineExceeded."""
        if options.rule is None:
            return None
        async with self.deadline():
            constraint = await self._constraints.compiled(options.rule)
        if constraint.shortest > (options.max_tokens or 0):
            raise InvalidRequest.at(
                "/max_tokens",
                f"too few tokens; the shortest text that matches has {constraint.shortest}",
            )
        return constraint

    def _check_generate(self, prompts: Sequence[Prompt], options: GenerateOptions) -> None:
        settings = self.settings
        max_tokens = options.max_tokens or 0
        at_most("/max_tokens", max_tokens, self.max_tokens, "tokens")
        cost = len(prompts) * options.n * max_tokens
        at_most("/max_tokens", cost, settings.max_cost_tokens, "prompts · n · max_tokens")
        for prompt in prompts:
            at_most("/prompt", len(prompt), settings.max_prompt_chars, "characters a prompt")
        if options.logprobs is not None:
            # Every choice repeats its prompt.
            told = cost + (sum(map(len, prompts)) * options.n if options.echo else 0)
            at_most("/logprobs", told, settings.max_detail_chars, "tokens with logprobs")
        if options.return_state:
            at_most("/return_state", len(prompts) * options.n, settings.max_states, "states")
        if options.state is not None:
            sampling = options.sampling
            if sampling.presence_penalty or sampling.frequency_penalty:
                name = "presence" if sampling.presence_penalty else "frequency"
                raise InvalidRequest.at(
                    f"/{name}_penalty",
                    "after a state it is 0: a state does not know which tokens its choice has",
                )

    def _beginning(self, options: GenerateOptions) -> "_Beginning":
        """Where the choices begin, and their noise. Raises InvalidRequest."""
        if options.state is None:
            return _Beginning(NoisePlace(drawn_seed(options.seed), 0, 0))
        handle = self._seal.open(options.state, now=time.time())
        if options.seed is None and handle.noise is not None:
            return _Beginning(handle.noise, handle)
        return _Beginning(NoisePlace(drawn_seed(options.seed), 0, 0), handle)

    def _with_bias(self, options: GenerateOptions) -> SamplingParams:
        """The sampling options, with the bias by token id."""
        if not options.logit_bias:
            return options.sampling
        bias = []
        for token, gain in options.logit_bias.items():
            id_ = self._id_of_token.get(token, UNK_ID)
            if id_ in {PAD_ID, BOS_ID, UNK_ID}:
                raise InvalidRequest.at(
                    "/logit_bias", "every key is one character of the model's vocabulary, or U+E002"
                )
            bias.append((id_, gain))
        return replace(options.sampling, logit_bias=tuple(bias))

    def _generate_work(
        self,
        prompts: Sequence[Prompt],
        options: GenerateOptions,
        begin: "_Beginning",
        constraint: Constraint | None,
    ) -> list[TextWork]:
        stop = tuple(tuple(int(i) for i in self._encode(text)) for text in options.stop)
        # A stop string with a character that the model cannot write can never end a text.
        stop = tuple(sequence for sequence in stop if UNK_ID not in sequence)
        ended = _ended_before(options.max_tokens or 0, constraint)
        # One table for all of them.
        held = 0 if constraint is None else constraint.cells
        work: list[TextWork] = []
        for prompt in prompts:
            tokens = self._prompt_ids(prompt)
            if begin.after is None:
                tokens = np.append(np.uint16(BOS_ID), tokens)
            tells = options.echo and options.logprobs is not None
            counted = tokens if tells else np.full_like(tokens, PAD_ID)
            read = _read_after(begin.after, tokens, counted, options.logprobs if tells else None)
            rows = [
                WriteRow(
                    params=options.sampling,
                    seed=begin.noise.seed,
                    choice=begin.noise.choice + choice,
                    drawn=begin.noise.drawn,
                    wants_continuation=options.return_state,
                    max_tokens=options.max_tokens or 0,
                    stop=stop,
                    detail_top=options.logprobs,
                    constraint=constraint,
                    finish_reason=ended,
                )
                for choice in range(options.n)
            ]
            work.append(TextWork(read, rows, held=0 if work else held))
        return work

    def _generated(
        self,
        prompt: Prompt,
        work: TextWork,
        options: GenerateOptions,
        begin: "_Beginning",
        cached: int,
    ) -> Generated:
        prefix = _text_of(prompt, self.tokens) if options.echo else ""
        before: tuple[ScoredToken, ...] = ()
        pieces: tuple[str, ...] = ()
        if options.echo and options.logprobs is not None:
            before = scored_tokens(self._vocab.tokens, _read_ids(work), work.read.details)
            pieces = _pieces(prompt, self.tokens, len(before))
        choices = []
        for row in work.write:
            kept = len(row.tokens) - row.stop_tokens
            tokens: tuple[ScoredToken, ...] | None = None
            offsets: tuple[int, ...] = ()
            state = self._sealed_choice(work, row, begin) if options.return_state else None
            if options.logprobs is not None:
                tokens = before + scored_tokens(self._vocab.tokens, row.tokens, row.details)
                offsets = _offsets(prefix, pieces, len(row.tokens), kept)
            choices.append(
                Choice(
                    text=prefix + self._vocab.decode(row.tokens[:kept]),
                    finish_reason=row.finish_reason or "length",
                    seed=row.seed,
                    tokens=tokens,
                    completion_tokens=len(row.tokens),
                    state=state,
                    matched=_matched(row.constraint, row.tokens[:kept]),
                    offsets=offsets,
                )
            )
        prompt_tokens = len(_read_ids(work))
        # bos is read, too, and counted nowhere.
        return Generated(tuple(choices), prompt_tokens, min(cached, prompt_tokens))

    def _sealed_choice(self, work: TextWork, row: WriteRow, begin: "_Beginning") -> str | None:
        """The handle of a choice that has ended; None after eos."""
        read = work.read
        continuation = row.continuation if row.tokens else read.continuation
        if continuation is None:
            return None
        position = begin.position + len(read.tokens) + len(row.tokens)
        noise = NoisePlace(row.seed, row.choice, row.drawn + len(row.tokens))
        return self._seal.seal(Handle(continuation, position, noise), now=time.time())

    # --- score ----------------------------------------------------------------------------------

    async def score(
        self, texts: Sequence[str], contexts: Sequence[str], options: ScoreOptions
    ) -> list[Scored]:
        """The probability of every text after its context, which is read but not counted.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        size = sum(map(len, texts)) + sum(map(len, contexts))
        # One context can stand before every text of a list: the body does not bound this.
        limit = self.settings.max_queue_tokens
        at_most("/text", size, limit, "characters, contexts included")
        if options.tokens:
            limit = self.settings.max_detail_chars
            at_most("/text", sum(map(len, texts)), limit, "characters with tokens")
        if options.return_state:
            at_most("/return_state", len(texts), self.settings.max_states, "states")
        handle = None
        if options.state is not None:
            handle = self._seal.open(options.state, now=time.time())
        plans = await off_loop(
            size,
            lambda: [
                self._plan(text, context, options, handle)
                for text, context in zip(texts, contexts, strict=True)
            ],
        )
        reading = [plan for plan in plans if plan.row is not None]
        reused = await self._run([TextWork(plan.row) for plan in reading if plan.row is not None])
        cached = {id(plan): tokens for plan, tokens in zip(reading, reused, strict=True)}
        answer_size = size * (1 + options.top_logprobs) if options.tokens else 0
        if options.return_state:
            answer_size += len(texts) * self._seal.handle_chars
        return await off_loop(
            answer_size,
            lambda: [self._scored(plan, options, cached.get(id(plan), 0)) for plan in plans],
        )

    def _plan(
        self, text: str, context: str, options: ScoreOptions, handle: Handle | None
    ) -> "_ScorePlan":
        ids, positions = self._apply_policy(self._encode(text), options.unknown, "/text")
        before, _ = self._apply_policy(self._encode(context), options.unknown, "/context")
        start = [BOS_ID] if options.bos and handle is None else []
        end = [EOS_ID] if options.eos else []
        sequence = np.concatenate([start, before, ids, end]).astype(np.uint16)
        counted = sequence.copy()
        counted[: len(start) + len(before)] = PAD_ID
        # Nothing follows eos; else the last token is read only where somebody goes on from it.
        goes_on = options.return_state and not options.eos
        tokens = sequence if goes_on else sequence[:-1]
        row = None
        if handle is not None or (len(tokens) and (goes_on or counted[1:].any())):
            after = None if handle is None else handle.continuation
            detail_top = options.top_logprobs if options.tokens else None
            row = _read_after(after, tokens, counted, detail_top, goes_on=goes_on)
        lacks_first = handle is None and not (start or len(before))
        read_before = 0 if handle is None else handle.position
        return _ScorePlan(row, ids, positions, len(before), lacks_first, read_before)

    def _apply_policy(
        self, ids: npt.NDArray[np.uint16], policy: UnknownPolicy, pointer: str
    ) -> tuple[npt.NDArray[np.uint16], tuple[int, ...]]:
        unknown = np.flatnonzero(ids == UNK_ID)
        if policy == "error" and len(unknown):
            raise unknown_text(pointer, unknown.tolist())
        if policy == "skip":
            ids = ids[ids != UNK_ID]
        return ids, tuple(unknown.tolist())

    def _scored(self, plan: "_ScorePlan", options: ScoreOptions, cached: int) -> Scored:
        # Without bos and context the first character has nothing to be predicted from.
        uncounted = 1 if plan.lacks_first and len(plan.ids) else 0
        row = plan.row
        tokens: tuple[ScoredToken, ...] | None = None
        if options.tokens:
            # What is counted: the text, and eos where it is asked for.
            counted = np.append(plan.ids, np.uint16(EOS_ID)) if options.eos else plan.ids
            if row is None:
                counted = counted[:uncounted]
            first = tuple(
                ScoredToken(self._vocab.tokens[i], None, None, None, ())
                for i in counted[:uncounted]
            )
            details = [] if row is None else row.details
            tokens = first + scored_tokens(self._vocab.tokens, counted[uncounted:], details)
        return Scored(
            logprob=0.0 if row is None else row.logprob,
            chars=len(plan.ids) - uncounted,
            bos=options.bos and options.state is None,
            eos=options.eos and row is not None,
            unknown=plan.unknown,
            tokens=tokens,
            prompt_tokens=plan.context_tokens + len(plan.ids),
            cached_tokens=min(cached, plan.context_tokens + len(plan.ids)),
            state=self._sealed_text(plan) if options.return_state else None,
        )

    def ids_of(self, text: str) -> npt.NDArray[np.uint16]:
        """The ids of a text's normalized characters."""
        return self._encode(text)

    async def carry_on(
        self,
        carried: "CarriedScore",
        ids: npt.NDArray[np.uint16] | None,
        options: ScoreOptions,
    ) -> "CarriedScore":
        """The score of a text that comes in parts, with its next part; None is its end.

        However it is cut, it is bitwise the score of the whole. Raises what `score` raises.
        """
        unknown = 0 if ids is None else int(np.count_nonzero(ids == UNK_ID))
        if options.unknown == "error" and unknown:
            raise InvalidRequest(
                f"{unknown} characters are not in the model's vocabulary, among the "
                f"{len(ids) if ids is not None else 0} after the first {carried.read}"
            )
        coming = np.array([EOS_ID], np.uint16) if ids is None else ids
        if options.unknown == "skip":
            coming = coming[coming != UNK_ID]
        read = carried.read + (0 if ids is None else len(ids))
        unknown += carried.unknown
        last = carried.last if carried.read or not options.bos else BOS_ID
        # What is read, and what is counted after it: everything but the last, after which nothing
        # is known yet.
        sequence = coming if last is None else np.append(np.uint16(last), coming)
        if len(sequence) < 2:
            chars = carried.chars
            held = int(sequence[0]) if len(sequence) else last
            return replace(
                carried, last=held, chars=chars, read=read, unknown=unknown, bos=options.bos
            )
        row = ReadRow(sequence[:-1], sequence[1:], start=carried.states, wants_continuation=True)
        row.logprob = carried.logprob
        async with self.deadline():
            await self.run([TextWork(row)])
        states = None if row.continuation is None else row.continuation.states
        return CarriedScore(
            states=states,
            last=int(sequence[-1]),
            logprob=row.logprob,
            chars=carried.chars + (0 if ids is None else len(sequence) - 1),
            read=read,
            unknown=unknown,
            bos=options.bos,
            eos=ids is None,
        )

    def _sealed_text(self, plan: "_ScorePlan") -> str | None:
        """The handle of a text that was read to its end; None where none was asked for."""
        row = plan.row
        if row is None or row.continuation is None:
            return None
        position = plan.read_before + len(row.tokens)
        return self._seal.seal(Handle(row.continuation, position), now=time.time())

    # --- shared ---------------------------------------------------------------------------------

    def _prompt_ids(self, prompt: Prompt) -> npt.NDArray[np.uint16]:
        return self._encode(prompt) if isinstance(prompt, str) else np.array(prompt, np.uint16)

    def _encode(self, text: str) -> npt.NDArray[np.uint16]:
        return self._vocab.encode(normalize(text, self.manifest.normalization))

    async def _run(self, works: Sequence[TextWork]) -> list[int]:
        """Run all the work to its end; how many tokens of each read needed no run of its own.

        A caller that is cancelled takes its rows along.
        """
        async with self.deadline():
            size = sum(len(work.read.tokens) for work in works)
            levels = await off_loop(size, lambda: self._plan_prefixes(works))
            ran = [0] * len(works)  # tokens of prefixes, run for one of those that begin with them
            for level in levels:
                for prefix in level:
                    ran[prefix.members[0]] += prefix.work.read.remaining
                await self.run([x.work for x in level if x.work.read.remaining])
                for prefix in level:
                    prefix.hand_on()
                    self._remember(prefix.work.read)
            reused = [work.read.position - tokens for work, tokens in zip(works, ran, strict=True)]
            await self.run(works)
            for work in works:
                self._remember(work.read)
        return reused

    def _plan_prefixes(self, works: Sequence[TextWork]) -> "list[list[_Prefix]]":
        """What the works share, to be read before them, level by level; and what is known."""
        rows = [work.read for work in works]
        # A context that is long enough is a prefix of its own, so that the next request finds it.
        contexts = [row for row in rows if MIN_SHARED_TOKENS <= row.uncounted < len(row.tokens)]
        sequences = [_pairs(row, max(0, len(row.tokens) - 1)) for row in rows]
        sequences += [_pairs(row, row.uncounted) for row in contexts]
        prefixes: list[_Prefix] = []
        levels: list[list[_Prefix]] = []
        for shared in shared_prefixes(sequences):
            members = tuple(i for i in shared.members if i < len(rows))
            row = rows[members[0]]
            read = ReadRow(
                row.tokens[: shared.length],
                row.targets[: shared.length],
                detail_top=row.detail_top,
                wants_continuation=True,
                # One for all rows of a request.
                after=row.after,
                first=row.first,
            )
            prefix = _Prefix(TextWork(read), members, [])
            prefixes.append(prefix)
            if shared.parent is not None:
                prefixes[shared.parent].followers.append(read)
            levels += [[] for _ in range(shared.level + 1 - len(levels))]
            levels[shared.level].append(prefix)
        inside: dict[int, _Prefix] = {}
        for prefix in prefixes:  # parents first: the last one is the longest
            inside.update(dict.fromkeys(prefix.members, prefix))
        for i, prefix in inside.items():
            prefix.followers.append(rows[i])
        for row in [*(prefix.work.read for prefix in prefixes), *rows]:
            self._recall(row)
        return levels

    def _recall(self, row: ReadRow) -> None:
        """Start a row after the longest prefix that is known, of those it need not count."""
        if row.after is not None:
            # The cache knows texts from their beginnings.
            return
        known = self._prefixes.longest(row.tokens, row.uncounted)
        if known is None:
            return
        length, continuation = known
        row.resume(length, continuation.states)
        if length == len(row.tokens):
            row.continuation = continuation

    def _remember(self, row: ReadRow) -> None:
        """Keep where an uncounted text leads."""
        whole = row.after is None and row.uncounted == len(row.tokens)
        if whole and row.continuation is not None:
            self._prefixes.put(row.tokens, row.continuation)


def _ended_before(
    max_tokens: int, constraint: Constraint | None
) -> Literal["stop", "length"] | None:
    """How a text ends that has no token to write."""
    if constraint is not None and constraint.is_closed[0]:
        return "stop"
    return None if max_tokens else "length"


def _matched(constraint: Constraint | None, tokens: Sequence[int]) -> bool | None:
    return None if constraint is None else constraint.matches(tokens)


def _text_of(prompt: Prompt, names: Sequence[str]) -> str:
    """A prompt as it is echoed: the text that came, or that of the ids that came."""
    return prompt if isinstance(prompt, str) else "".join(_pieces(prompt, names, len(prompt)))


def _pieces(prompt: Prompt, names: Sequence[str], count: int) -> tuple[str, ...]:
    """An echoed prompt, shared out to its tokens.

    A normalized text can have other characters than the one that is echoed: each token stands for
    one of the latter, and the last for what is left of them. An id of no text has none.
    """
    if not isinstance(prompt, str):
        return tuple(names[i] if i >= len(SPECIAL_TOKENS) else "" for i in prompt)
    if not count:
        return ()
    return (*(prompt[i : i + 1] for i in range(count - 1)), prompt[count - 1 :])


def _offsets(prefix: str, pieces: Sequence[str], written: int, kept: int) -> tuple[int, ...]:
    """Characters of a choice's text before each token of its prompt, and before each written one.

    What ends a text has no characters in it: eos, and the tokens of a stop string.
    """
    inside = accumulate(map(len, pieces[:-1]), initial=0) if pieces else ()
    return (*inside, *(len(prefix) + min(i, kept) for i in range(written)))


def unknown_text(pointer: str, positions: Sequence[int]) -> InvalidRequest:
    """The error of a text that holds what the model does not know."""
    shown = ", ".join(map(str, positions[:16]))
    return InvalidRequest.at(
        pointer,
        f"{len(positions)} characters are not in the model's vocabulary, at positions "
        f"{shown}{', …' if len(positions) > 16 else ''} of the normalized text",
    )


def scored_tokens(
    names: Sequence[str], ids: Sequence[int] | npt.NDArray[np.uint16], parts: Sequence[TokenDetails]
) -> tuple[ScoredToken, ...]:
    """Tokens with what the model thought of them; `names` are the printed tokens."""
    if len(ids) == 0:
        return ()
    details = TokenDetails.joined(parts)
    columns = zip(
        ids,
        details.logprob.tolist(),
        (details.entropy / math.log(2)).tolist(),
        details.rank.tolist(),
        details.top_ids.tolist(),
        details.top_logprobs.tolist(),
        strict=True,
    )
    return tuple(
        ScoredToken(
            names[token],
            logprob,
            entropy_bits,
            rank,
            tuple(Alternative(names[i], x) for i, x in zip(top_ids, top_logprobs, strict=True)),
        )
        for token, logprob, entropy_bits, rank, top_ids, top_logprobs in columns
    )


@dataclass(frozen=True, slots=True)
class CarriedScore:
    """The score of a text so far, and where to go on."""

    states: States | None = None  # None: nothing has been read
    last: int | None = None  # the last token, which has not been read yet
    logprob: float = 0.0  # nats
    chars: int = 0  # counted
    read: int = 0  # characters that came, counted or not
    unknown: int = 0  # of them, outside the vocabulary
    bos: bool = True
    eos: bool = False


_Told: TypeAlias = tuple[int, TokenDetails]  # a token that was written


class _StreamedChoice:
    """One choice's row on one side, its events on the other."""

    def __init__(  # noqa: PLR0917 (what a choice is made of)
        self,
        feed: "Feed[tuple[_StreamedChoice, _Told | None]]",
        names: Sequence[str],
        place: tuple[int, int],
        echoed: Prompt | None,
        work: TextWork,
        row: WriteRow,
        sealed: Callable[[TextWork, WriteRow], str | None],
    ) -> None:
        self._feed = feed
        self._names = names
        self._prompt, self._choice = place
        self._sealed = sealed
        self._echoed = echoed
        self._work = work
        self._row = row
        self._held: list[_Told] = []  # might be a stop string's tokens
        self._offset = 0
        self._began = False
        self._count = 0
        self._state = 0  # where the text has led, where it is constrained
        self.has_ended = False
        row.listener = self
        row.detail_top = row.detail_top or 0

    def wrote(self, token: int, details: TokenDetails) -> None:
        """From the worker: a token."""
        self._feed.put((self, (token, details)))

    def ended(self) -> None:
        """From the worker: no token follows."""
        self._feed.put((self, None))

    def events(self, told: _Told | None) -> Iterator[TokenEvent | ChoiceEnd]:
        """What a token, or the end, lets be known."""
        if not self._began:
            self._began = True
            yield from self._echo()
        if told is not None:
            self._count += 1
            self._held.append(told)
            held = self._stop_length()
            sure = len(self._held) - held
            yield from self._release(sure, with_text=sure)
            return
        self.has_ended = True
        yield from self._release(len(self._held), len(self._held) - self._row.stop_tokens)
        constraint = self._row.constraint
        yield ChoiceEnd(
            self._prompt,
            self._choice,
            self._row.finish_reason or "length",
            self._row.seed,
            self._count,
            self._sealed(self._work, self._row),
            None if constraint is None else constraint.accepts(self._state),
        )

    def _echo(self) -> Iterator[TokenEvent]:
        if self._echoed is None:
            return
        tokens: tuple[ScoredToken, ...] = ()
        if self._work.read.detail_top is not None:
            tokens = scored_tokens(self._names, _read_ids(self._work), self._work.read.details)
        if tokens:
            pieces = _pieces(self._echoed, self._names, len(tokens))
            for piece, token in zip(pieces, tokens, strict=True):
                yield TokenEvent(self._prompt, self._choice, piece, self._offset, token)
                self._offset += len(piece)
        elif text := _text_of(self._echoed, self._names):
            # Also of a text that is nothing when it is normalized.
            yield TokenEvent(self._prompt, self._choice, text, 0, None)
            self._offset = len(text)

    def _release(self, count: int, with_text: int) -> Iterator[TokenEvent]:
        """The first tokens that are held, of which so many have a text."""
        for i, (token, details) in enumerate(self._held[:count]):
            (scored,) = scored_tokens(self._names, [token], [details])
            text = scored.token if i < with_text else ""
            if text and self._row.constraint is not None:
                self._state = self._row.constraint.after_one(self._state, token)
            yield TokenEvent(self._prompt, self._choice, text, self._offset, scored)
            self._offset += len(text)
        del self._held[:count]

    def _stop_length(self) -> int:
        """How many tokens at the end of those that are held could begin a stop string."""
        tokens = tuple(token for token, _ in self._held)
        longest = max(map(len, self._row.stop), default=0)
        for length in range(min(longest, len(tokens)), 0, -1):
            end = tokens[-length:]
            if any(sequence[:length] == end for sequence in self._row.stop):
                return length
        # The end of the text has no text.
        return int(tokens[-1] == EOS_ID)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Where the choices of a request begin."""

    noise: NoisePlace  # of the first choice; the others have the next ones' noise
    handle: Handle | None = None

    @property
    def after(self) -> Continuation | None:
        """What every prompt is read after."""
        return None if self.handle is None else self.handle.continuation

    @property
    def position(self) -> int:
        """Tokens read before the prompt."""
        return 0 if self.handle is None else self.handle.position


@dataclass(frozen=True, slots=True)
class _ScorePlan:
    """A text on its way to be scored."""

    row: ReadRow | None  # None where nothing has to be read
    ids: npt.NDArray[np.uint16]  # of the text, unknown characters dropped where they are skipped
    unknown: tuple[int, ...]
    context_tokens: int
    lacks_first: bool  # nothing stands before the first token
    read_before: int  # tokens before the row's own


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A text that several rows begin with, on its way to be read once for all of them."""

    work: TextWork
    members: tuple[int, ...]  # the inputs that begin with it
    followers: list[ReadRow]  # longer prefixes and inputs that start where it ends

    def hand_on(self) -> None:
        """Let the followers start where this ends; one that starts later already stays there."""
        read = self.work.read
        if read.continuation is None:
            raise RuntimeError("read the prefix first")
        for row in self.followers:
            if row.position < len(read.tokens):
                row.resume(len(read.tokens), read.continuation.states)
                row.logprob = read.logprob
                row.details = list(read.details)


def _seal_of(bundle: Bundle, precision: Precision, settings: Settings) -> Seal:
    key = settings.signing_key().get_secret_value().encode()
    return Seal(key, bundle.manifest, precision, max_age_s=settings.state_max_age_s)


def _read_after(
    after: Continuation | None,
    tokens: npt.NDArray[np.uint16],
    counted: npt.NDArray[np.uint16],
    detail_top: int | None,
    *,
    goes_on: bool = True,
) -> ReadRow:
    """The read of `tokens`, from the beginning or after a text.

    `counted` has what is counted of them, pad elsewhere, and one more where the last is not read.
    """
    targets = np.append(counted[1:], np.uint16(PAD_ID))[: len(tokens)]
    first = int(counted[0]) if after is not None and len(counted) else PAD_ID
    return ReadRow(
        tokens,
        targets,
        detail_top=detail_top,
        wants_continuation=goes_on,
        after=after,
        first=first,
    )


def _read_ids(work: TextWork) -> npt.NDArray[np.uint16]:
    """The prompt's own tokens: bos is read before them where nothing else was."""
    read = work.read
    return read.tokens if read.after is not None else read.tokens[1:]


def _pairs(row: ReadRow, length: int) -> npt.NDArray[np.uint32]:
    """What a row reads and what it counts there: equal where two rows can be read as one."""
    tokens, targets = row.tokens[:length], row.targets[:length]
    return tokens.astype(np.uint32) << np.uint32(16) | targets
