"""The tasks on text: generate and score. No HTTP in here.

Text becomes ids, ids become rows, the scheduler fills them in, and they become text again.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.bundle.language_model import LanguageModelBundle
from service.bundle.manifest import Precision
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Normalization
from service.decoding.cache_budget import CacheBudgets
from service.decoding.constraints import Constraint, ConstraintCompiler
from service.decoding.normal_form import normal_form
from service.decoding.rows import Continuation, ReadRow, WriteRow
from service.decoding.sampling import SamplingParams
from service.errors import InvalidRequest
from service.observe.metrics import Metrics
from service.observe.request_context import current_request
from service.runtime.language_model import LanguageModelSession
from service.scheduling.feed import Feed
from service.scheduling.language_model import LanguageModelRunner, TextWork
from service.scheduling.workers import Workers, at_most, check_details, drawn_seed, off_loop
from service.settings import Settings
from service.tasks.engine import GENERATE, SCORE, SCORE_IN_PARTS, Abilities
from service.tasks.handles import Handle, NoisePlace, Seal
from service.tasks.shared_reads import SharedReads
from service.tasks.text_stream import StreamedChoice, offsets_of, pieces_of, read_ids, text_of
from service.tasks.values import (
    DEFAULT_MAX_TOKENS,
    CarriedScore,
    Choice,
    Generated,
    GenerateOptions,
    Prompt,
    Scored,
    ScoredToken,
    ScoreOptions,
    StreamEvent,
    StreamUsage,
    Unknown,
    UnknownPolicy,
    scored_tokens,
    unknown_text,
)
from service.tasks.vocabularies import ClientVocabulary, Vocabularies


class LanguageModelEngine:
    """One language model: its bundle, its workers and the tasks on text."""

    def __init__(
        self,
        bundle: LanguageModelBundle,
        session: LanguageModelSession,
        settings: Settings,
        *,
        precision: Precision,
        threads: int = 1,
        metrics: Metrics | None = None,
        budgets: CacheBudgets | None = None,
    ) -> None:
        budgets = budgets or CacheBudgets.of(settings)
        self.holds = 0
        self.manifest = bundle.manifest
        self.precision = precision
        self.settings = settings
        self.vocabularies: Vocabularies = {None: _client_vocabulary(bundle, settings)}
        self.abilities: Abilities = dict(
            (GENERATE.given_by(self), SCORE.given_by(self), SCORE_IN_PARTS.given_by(self))
        )
        self._vocab = bundle.vocab
        self._id_of_token = {token: i for i, token in enumerate(bundle.vocab.tokens)}
        self._constraints = ConstraintCompiler(
            bundle.vocab.tokens, settings, budgets.patterns, bundle.manifest.normalization
        )
        self._seal = _seal_of(bundle, precision, settings)
        self.workers: Workers[TextWork] = Workers(
            lambda name: LanguageModelRunner(session, settings.max_rows, name=name),
            bundle.manifest.name,
            settings,
            threads=threads,
            max_rows=settings.max_rows,
            metrics=metrics,
        )
        self._reads = SharedReads(budgets.prefixes, self.workers.metrics)

    def start(self) -> None:
        """Start the workers; call it in the event loop that requests run in."""
        self.workers.start()

    async def stop(self, timeout_s: float | None = None) -> None:
        """End the workers; what the caches keep is other models' to use."""
        await self.workers.stop(timeout_s)
        self._reads.prefixes.close()
        self._constraints.close()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""
        return self._vocab.tokens

    @property
    def normalization(self) -> Normalization:
        """What is done to every text first."""
        return self.manifest.normalization

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
        options, begin, works, unknown = await self._prepared(prompts, options)
        reused = await self._run(works)
        answer_size = sum(map(len, prompts)) if options.echo else 0
        answer_size += sum(len(row.tokens) for work in works for row in work.write)
        answer_size *= 1 + (options.logprobs or 0)
        if options.return_state:
            answer_size += sum(len(work.write) for work in works) * self._seal.handle_chars
        return await self.workers.built(
            answer_size,
            lambda: [
                replace(self._generated(prompt, work, options, begin, cached), unknown=places)
                for prompt, work, cached, places in zip(
                    prompts, works, reused, unknown, strict=True
                )
            ],
        )

    async def stream(
        self, prompts: Sequence[Prompt], options: GenerateOptions
    ) -> AsyncGenerator[StreamEvent, None]:
        """What `generate` gives, token by token, as it is written; the usage comes last.

        What could still become a stop string is held back. Raises what `generate` raises; close it,
        and the rows leave before the next step.
        """
        options, begin, works, unknown = await self._prepared(prompts, options)
        current_request().keep_no_details()
        feed: Feed[StreamedChoice] = Feed()

        def sealed(work: TextWork, row: WriteRow) -> str | None:
            return self._sealed_choice(work, row, begin) if options.return_state else None

        choices = [
            StreamedChoice(
                feed, self.tokens, (i, k), prompt if options.echo else None, work, row, sealed
            )
            for i, (prompt, work) in enumerate(zip(prompts, works, strict=True))
            for k, row in enumerate(work.write)
        ]
        reused: list[int] = []

        async def run() -> None:
            reused.extend(await self._run(works))

        async with aclosing(feed.during(run())) as told:
            async for choice in told:
                for event in choice.events():
                    yield event
        for choice in choices:
            if not choice.has_ended:  # it had no token to write
                for event in choice.end():
                    yield event
        prompt_tokens = [len(read_ids(work)) for work in works]
        yield StreamUsage(
            prompt_tokens=sum(prompt_tokens),
            completion_tokens=sum(len(row.tokens) for work in works for row in work.write),
            cached_tokens=sum(map(min, reused, prompt_tokens)),
            unknown=tuple(unknown),
        )

    async def _prepared(
        self, prompts: Sequence[Prompt], options: GenerateOptions
    ) -> tuple[GenerateOptions, "_Beginning", list[TextWork], list[Unknown]]:
        """The options with what was left out, where choices begin, the work, what is unknown."""
        self.workers.refuse_if_full()
        options = self._checked(prompts, options)
        constraint = await self._constraint(options)
        begin = self._beginning(options)
        size = sum(map(len, prompts))
        read = await off_loop(
            size, lambda: [self._read_prompt(prompt, options.unknown) for prompt in prompts]
        )
        ids = [each for each, _ in read]
        works = await off_loop(size, lambda: self._generate_work(ids, options, begin, constraint))
        return options, begin, works, [places for _, places in read]

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
        async with self.workers.deadline():
            constraint = await self._constraints.compiled(options.rule)
        if constraint.shortest > (options.max_tokens or 0):
            raise InvalidRequest.of_option(
                "max_tokens",
                f"too few tokens; the shortest text that matches has {constraint.shortest}",
            )
        return constraint

    def _check_generate(self, prompts: Sequence[Prompt], options: GenerateOptions) -> None:
        settings = self.settings
        at_most("prompt", len(prompts), settings.max_inputs, "prompts")
        at_most("n", options.n, settings.max_n, "choices")
        at_most("stop", len(options.stop), settings.max_stop, "stop strings")
        longest = settings.max_stop_chars
        if any(not 1 <= len(stop) <= longest for stop in options.stop):
            raise InvalidRequest.of_option("stop", f"a stop string has 1 to {longest} characters")
        max_tokens = options.max_tokens or 0
        at_most("max_tokens", max_tokens, self.max_tokens, "tokens")
        cost = len(prompts) * options.n * max_tokens
        at_most("max_tokens", cost, settings.max_cost_tokens, "prompts · n · max_tokens")
        for prompt in prompts:
            at_most("prompt", len(prompt), settings.max_prompt_chars, "characters a prompt")
        if options.logprobs is not None:
            # Every choice repeats its prompt.
            told = cost + (sum(map(len, prompts)) * options.n if options.echo else 0)
            check_details("logprobs", told, options.logprobs, settings)
        if options.return_state:
            at_most("return_state", len(prompts) * options.n, settings.max_states, "states")
        if options.state is not None:
            sampling = options.sampling
            if sampling.presence_penalty or sampling.frequency_penalty:
                name = "presence" if sampling.presence_penalty else "frequency"
                raise InvalidRequest.of_option(
                    f"{name}_penalty",
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
        bias: dict[int, float] = {}
        for token, gain in options.logit_bias.items():
            character = normal_form(token, self.manifest.normalization, "logit_bias")
            id_ = self._id_of_token.get(character, UNK_ID)
            if id_ in {PAD_ID, BOS_ID, UNK_ID}:
                raise InvalidRequest.of_option(
                    "logit_bias", "every key is one character of the model's vocabulary, or U+E002"
                )
            if id_ in bias:
                raise InvalidRequest.of_option(
                    "logit_bias", "two keys are one character to the model"
                )
            bias[id_] = gain
        return replace(options.sampling, logit_bias=tuple(bias.items()))

    def _generate_work(
        self,
        prompts: Sequence[npt.NDArray[np.uint16]],
        options: GenerateOptions,
        begin: "_Beginning",
        constraint: Constraint | None,
    ) -> list[TextWork]:
        stop = tuple(tuple(int(i) for i in self._encode(text, "stop")) for text in options.stop)
        # A stop string with a character that the model cannot write can never end a text.
        stop = tuple(sequence for sequence in stop if UNK_ID not in sequence)
        ended = _ended_before(options.max_tokens or 0, constraint)
        # One table for all of them.
        held = 0 if constraint is None else constraint.cells
        work: list[TextWork] = []
        for tokens in prompts:
            if begin.after is None:
                tokens = np.append(np.uint16(BOS_ID), tokens)  # noqa: PLW2901
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
        prefix = text_of(prompt, self.tokens) if options.echo else ""
        before: Sequence[ScoredToken] = ()
        pieces: tuple[str, ...] = ()
        if options.echo and options.logprobs is not None:
            before = scored_tokens(self._vocab.tokens, read_ids(work), work.read.details)
            pieces = pieces_of(prompt, self.tokens, len(before))
        choices = []
        for row in work.write:
            kept = len(row.tokens) - row.stop_tokens
            tokens: Sequence[ScoredToken] | None = None
            offsets: tuple[int, ...] = ()
            state = self._sealed_choice(work, row, begin) if options.return_state else None
            if options.logprobs is not None:
                tokens = scored_tokens(self._vocab.tokens, row.tokens, row.details).after(before)
                offsets = offsets_of(prefix, pieces, len(row.tokens), kept)
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
        prompt_tokens = len(read_ids(work))
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

    needs_sources = False

    async def score(
        self,
        texts: Sequence[str],
        options: ScoreOptions,
        *,
        contexts: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
    ) -> list[Scored]:
        """The probability of every text after its context, which is read but not counted.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        _check_score(options, contexts, sources)
        options = replace(
            options,
            bos=options.bos is not False and options.state is None,
            eos=bool(options.eos),
        )
        contexts = contexts or [""] * len(texts)
        self.workers.refuse_if_full()
        size = sum(map(len, texts)) + sum(map(len, contexts))
        # One context can stand before every text of a list: the body does not bound this.
        at_most("text", len(texts), self.settings.max_inputs, "texts")
        limit = self.settings.max_queue_tokens
        at_most("text", size, limit, "characters, contexts included")
        if options.tokens:
            check_details("text", sum(map(len, texts)), options.top_logprobs, self.settings)
        if options.return_state:
            at_most("return_state", len(texts), self.settings.max_states, "states")
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
        return await self.workers.built(
            answer_size,
            lambda: [self._scored(plan, options, cached.get(id(plan), 0)) for plan in plans],
        )

    def _plan(
        self, text: str, context: str, options: ScoreOptions, handle: Handle | None
    ) -> "_ScorePlan":
        ids, unknown = self._apply_policy(self._encode(text, "text"), options.unknown, "text")
        before, _ = self._apply_policy(self._encode(context, "context"), options.unknown, "context")
        start = [BOS_ID] if options.bos else []
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
        return _ScorePlan(row, ids, unknown, len(before), lacks_first, read_before)

    def _apply_policy(
        self, ids: npt.NDArray[np.uint16], policy: UnknownPolicy, option: str
    ) -> tuple[npt.NDArray[np.uint16], Unknown]:
        unknown = Unknown.of(ids)
        if policy == "error" and unknown.count:
            raise unknown_text(option, unknown)
        if policy == "skip":
            ids = ids[ids != UNK_ID]
        return ids, unknown

    def _scored(self, plan: "_ScorePlan", options: ScoreOptions, cached: int) -> Scored:
        # Without bos and context the first character has nothing to be predicted from.
        uncounted = 1 if plan.lacks_first and len(plan.ids) else 0
        row = plan.row
        tokens: Sequence[ScoredToken] | None = None
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
            tokens = scored_tokens(self._vocab.tokens, counted[uncounted:], details).after(first)
        return Scored(
            logprob=0.0 if row is None else row.logprob,
            chars=len(plan.ids) - uncounted,
            bos=bool(options.bos),
            eos=bool(options.eos) and row is not None,
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
        coming = np.array([EOS_ID], np.uint16) if ids is None else ids
        unknown = int(np.count_nonzero(coming == UNK_ID))
        if options.unknown == "error" and unknown:
            raise InvalidRequest(
                f"{unknown} characters are not in the model's vocabulary, among the {len(coming)} "
                f"after the first {carried.read}"
            )
        begins = not carried.read and carried.bos
        read = carried.read + (0 if ids is None else len(ids))
        carried = replace(carried, read=read, unknown=carried.unknown + unknown)
        if options.unknown == "skip":
            coming = coming[coming != UNK_ID]
        last = BOS_ID if begins else carried.last
        sequence = coming if last is None else np.append(np.uint16(last), coming)
        if len(sequence) < 2:
            # Nothing is counted yet: a lone token is what the next one will follow.
            return replace(carried, last=int(sequence[0]) if len(sequence) else None)
        row = ReadRow(sequence[:-1], sequence[1:], start=carried.states, wants_continuation=True)
        row.logprob = carried.logprob
        async with self.workers.deadline():
            await self.workers.run([TextWork(row)])
        self.workers.metrics.counted(prompt=len(row.tokens), completion=0, cached=0)
        return replace(
            carried,
            states=None if row.continuation is None else row.continuation.states,
            last=int(sequence[-1]),
            logprob=row.logprob,
            chars=carried.chars + (0 if ids is None else len(sequence) - 1),
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

    def _read_prompt(
        self, prompt: Prompt, policy: UnknownPolicy
    ) -> tuple[npt.NDArray[np.uint16], Unknown]:
        """The ids of a prompt and its unknown characters; ids that came are as meant."""
        if isinstance(prompt, str):
            return self._apply_policy(self._encode(prompt, "prompt"), policy, "prompt")
        return np.array(prompt, np.uint16), Unknown()

    def _encode(self, text: str, option: str = "") -> npt.NDArray[np.uint16]:
        return self._vocab.encode(normal_form(text, self.manifest.normalization, option))

    async def _run(self, works: Sequence[TextWork]) -> list[int]:
        """Run all the work to its end; how many tokens of each read needed no run of its own.

        A caller that is cancelled takes its rows along.
        """
        async with self.workers.deadline():
            reused = await self._reads.run(works, self.workers.run)
        prompt = [len(read_ids(work)) for work in works]
        self.workers.metrics.counted(
            prompt=sum(prompt),
            completion=sum(len(row.tokens) for work in works for row in work.write),
            cached=sum(map(min, reused, prompt)),
        )
        return reused


def _check_score(
    options: ScoreOptions, contexts: Sequence[str] | None, sources: Sequence[str] | None
) -> None:
    """Raise InvalidRequest for what a language model does not take together, or not at all."""
    if sources is not None:
        raise InvalidRequest.of_option("source", "a language model takes `context`, and no source")
    if options.state is not None:
        if contexts is not None:
            raise InvalidRequest.of_option("context", "a state stands in its place; leave it out")
        if options.bos:
            raise InvalidRequest.of_option("bos", "a text after a state begins no document")


def _ended_before(
    max_tokens: int, constraint: Constraint | None
) -> Literal["stop", "length"] | None:
    """How a text ends that has no token to write."""
    if constraint is not None and constraint.is_closed[0]:
        return "stop"
    return None if max_tokens else "length"


def _matched(constraint: Constraint | None, tokens: Sequence[int]) -> bool | None:
    return None if constraint is None else constraint.matches(tokens)


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
    unknown: Unknown
    context_tokens: int
    lacks_first: bool  # nothing stands before the first token
    read_before: int  # tokens before the row's own


def _seal_of(bundle: LanguageModelBundle, precision: Precision, settings: Settings) -> Seal:
    key = settings.signing_key().get_secret_value().encode()
    return Seal(key, bundle.manifest, precision, max_age_s=settings.state_max_age_s)


def _client_vocabulary(bundle: LanguageModelBundle, settings: Settings) -> ClientVocabulary:
    return ClientVocabulary(
        tokenization=bundle.manifest.tokenization,
        normalization=bundle.manifest.normalization,
        tokenizer=bundle.vocab,
        join="".join,
        max_length=settings.max_prompt_chars,
    )


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
