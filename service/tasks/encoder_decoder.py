"""The tasks of an encoder-decoder on text: translate, and score pairs. No HTTP in here."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from service.bundle.encoder_decoder import EncoderDecoderBundle, TextSide
from service.bundle.manifest import Precision
from service.bundle.text import EOS_ID, UNK_ID, is_blank
from service.bundle.tokenization import Symbols, Tokenizer
from service.decoding.normal_form import normal_form
from service.decoding.search import Hypothesis, Search
from service.errors import InvalidRequest
from service.observe.metrics import Metrics
from service.observe.request_context import current_request
from service.runtime.encoder_decoder import EncoderDecoderSession
from service.runtime.threads import off_loop
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from service.scheduling.feed import Feed, News
from service.scheduling.workers import Workers
from service.settings import Settings
from service.tasks.engine import SCORE, TRANSLATE, Abilities
from service.tasks.limits import at_most, check_details
from service.tasks.seed import drawn_seed
from service.tasks.translations import (
    ALIGNMENT_SIZE,
    DEFAULT_BEAM_SIZE,
    TokenLogprob,
    Translated,
    TranslatedToken,
    TranslateOptions,
    Translation,
)
from service.tasks.values import (
    Scored,
    ScoreOptions,
    Unknown,
    UnknownPolicy,
    scored_tokens,
    unknown_text,
)
from service.tasks.vocabularies import ClientVocabulary, Vocabularies

# Steps of few rows cost what their Python costs, and threads take turns at that.
_PACKED_ROWS = 256
# At the ends of a text, where no white space is read.
_MAX_BLANKS = 1024
# What such a row counts among the details of an answer, in alternatives.
_ATTENTION_DETAILS = 20


@dataclass(frozen=True, slots=True)
class _Source:
    """A source on its way into the model."""

    text: str  # normalized, without what is skipped
    ids: npt.NDArray[np.uint16]  # eos the last
    unknown: Unknown  # skipped or not

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to translate."""
        return is_blank(self.text)


class EncoderDecoderEngine:
    """One encoder-decoder: its bundle, its workers and the tasks on text."""

    def __init__(
        self,
        bundle: EncoderDecoderBundle,
        session: EncoderDecoderSession,
        settings: Settings,
        *,
        precision: Precision,
        threads: int = 1,
        metrics: Metrics | None = None,
    ) -> None:
        self.holds = 0
        self.manifest = bundle.manifest
        self.precision = precision
        self.settings = settings
        self._source = bundle.source
        self._target = bundle.target
        self.vocabularies: Vocabularies = {
            "source": self._client_vocabulary(bundle.manifest.source, bundle.source),
            "target": self._client_vocabulary(bundle.manifest.target, bundle.target),
        }
        self.abilities: Abilities = dict((TRANSLATE.given_by(self), SCORE.given_by(self)))
        limits = bundle.manifest.limits
        self._max_source_chars = _most_chars(limits.max_source_tokens, self._source)
        self._max_target_chars = _most_chars(settings.max_tokens, self._target)
        self.workers: Workers[Search] = Workers(
            lambda name: EncoderDecoderRunner(session, name=name),
            bundle.manifest.name,
            settings,
            threads=threads,
            max_rows=settings.max_search_rows,
            metrics=metrics,
            packed_rows=_PACKED_ROWS,
        )

    def _client_vocabulary(self, side: TextSide, tokenizer: Tokenizer) -> ClientVocabulary:
        return ClientVocabulary(
            tokenization=side.tokenization,
            normalization=side.normalization,
            tokenizer=tokenizer,
            join=tokenizer.join,
            max_length=self.manifest.limits.max_source_tokens,
        )

    def start(self) -> None:
        """Start the workers; call it in the event loop that requests run in."""
        self.workers.start()

    async def stop(self, timeout_s: float | None = None) -> None:
        """End the workers; one that hangs in a step is left after so long."""
        await self.workers.stop(timeout_s)

    def fits(self, text: str) -> bool:
        """Whether a source is within the model's limit."""
        if len(text) > self._max_source_chars:
            return False
        ids = self._source.encode(normal_form(text, self.manifest.source.normalization))
        return len(ids) <= self.manifest.limits.max_source_tokens

    # --- translate ------------------------------------------------------------------------------

    async def translate(
        self, texts: Sequence[str], prefixes: Sequence[str], options: TranslateOptions
    ) -> list[Translated]:
        """Targets of every source, each beginning with its prefix.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        self.workers.refuse_if_full()
        options, seed = self._checked(options)
        sources, searches = await self._planned(texts, prefixes, options, seed)
        await self._run([search for search in searches if search is not None])
        return await self._answer(sources, searches, options, seed)

    async def stream(
        self, texts: Sequence[str], prefixes: Sequence[str], options: TranslateOptions
    ) -> AsyncGenerator[TranslatedToken | list[Translated], None]:
        """What `translate` gives, which comes last; before it its tokens, as they become sure.

        A sample's tokens are sure at once. A token of a beam search is so when all that can still
        be the best translation begins with it. Raises what `translate` raises.
        """
        options, seed = self._checked(options)
        if options.copy_unknown:
            raise InvalidRequest.of_option("copy_unknown", "not together with stream")
        sources, searches = await self._planned(texts, prefixes, options, seed)
        feed: Feed[_StreamedSearch] = Feed()
        running = [(i, search) for i, search in enumerate(searches) if search is not None]
        for i, search in running:
            search.listener = _StreamedSearch(feed, self._target, i, search)

        work = self._run([search for _, search in running])
        async with aclosing(feed.during(work)) as told:
            async for streamed in told:
                for event in streamed.events():
                    yield event
        answer = await self._answer(sources, searches, options, seed)
        current_request().end_building()
        yield answer

    def _check_lengths(
        self, sources: Sequence[str], targets: Sequence[str], target_option: str
    ) -> None:
        """Raise InvalidRequest for texts that have too many tokens however they are cut.

        That is known before anything is spent on them.
        """
        longest = max(map(len, sources), default=0)
        at_most("source", longest, self._max_source_chars, "characters in a source")
        longest = max(map(len, targets), default=0)
        at_most(target_option, longest, self._max_target_chars, "characters in a target")

    def _checked(self, options: TranslateOptions) -> tuple[TranslateOptions, int | None]:
        """The options with what was left out, and the seed of samples. Raises InvalidRequest."""
        if options.beam_size is None:
            options = replace(
                options, beam_size=min(DEFAULT_BEAM_SIZE, self.settings.max_beam_size)
            )
        self._check(options)
        return options, None if options.sampling is None else drawn_seed(options.seed)

    async def _planned(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str],
        options: TranslateOptions,
        seed: int | None,
    ) -> tuple[list[_Source], list[Search | None]]:
        """A search for every source that is not blank, within the limits of one request."""
        at_most("source", len(texts), self.settings.max_inputs, "sources")
        size = sum(map(len, texts)) + sum(map(len, prefixes))
        self._check_lengths(texts, prefixes, "target_prefix")
        sources, planned = await off_loop(
            size, lambda: self._plan_searches(texts, prefixes, options, seed or 0)
        )
        searches = [search for search in planned if search is not None]
        cost = sum(search.width * search.max_tokens for search in searches)
        limit = self.settings.max_cost_tokens
        rows = "num_hypotheses" if options.sampling is not None else "beam_size"
        at_most("source", cost, limit, f"tokens: {rows} · max_tokens, over all sources")
        detailed = {
            "tokens": options.tokens,
            "return_alignments": options.return_alignments,
            "copy_unknown": options.copy_unknown,
        }
        if any(detailed.values()):
            told = sum(search.num_hypotheses * search.max_tokens for search in searches)
            attends = options.return_alignments or options.copy_unknown
            option = next(name for name, asked in detailed.items() if asked)
            check_details(option, told, _ATTENTION_DETAILS if attends else 0, self.settings)
        return sources, planned

    async def _answer(
        self,
        sources: Sequence[_Source],
        searches: Sequence[Search | None],
        options: TranslateOptions,
        seed: int | None,
    ) -> list[Translated]:
        written = sum(len(x.tokens) for search in searches if search for x in search.best())
        return await self.workers.built(
            written * (ALIGNMENT_SIZE if options.return_alignments else 1),
            lambda: [
                self._translated(source, search, options, seed)
                for source, search in zip(sources, searches, strict=True)
            ],
        )

    def _plan_searches(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str],
        options: TranslateOptions,
        seed: int,
    ) -> tuple[list[_Source], list[Search | None]]:
        sources = [self._read_source(text, options.unknown) for text in texts]
        # One prefix can stand before the targets of all sources.
        forced = {prefix: self._forced(prefix) for prefix in dict.fromkeys(prefixes)}
        searches = [
            None if source.is_blank else self._search(source, forced[prefix], options, seed)
            for source, prefix in zip(sources, prefixes, strict=True)
        ]
        return sources, searches

    def _check(self, options: TranslateOptions) -> None:
        settings = self.settings
        if options.sampling is None:
            at_most("beam_size", options.width, settings.max_beam_size, "beams")
            beams = "hypotheses: as many as beams (beam_size)"
            at_most("num_hypotheses", options.num_hypotheses, options.width, beams)
        elif options.copy_unknown:
            raise InvalidRequest.of_option("copy_unknown", "it needs temperature 0")
        at_most("num_hypotheses", options.num_hypotheses, settings.max_n, "hypotheses")
        if not self.manifest.memory and (options.return_alignments or options.copy_unknown):
            option = "return_alignments" if options.return_alignments else "copy_unknown"
            raise InvalidRequest.of_option(
                option, "this model has no attention, and so no alignment"
            )

    def _search(
        self, source: _Source, forced: tuple[int, ...], options: TranslateOptions, seed: int
    ) -> Search:
        bound = self.manifest.limits.max_tokens(len(source.ids))
        bound = min(bound, self.settings.max_tokens)
        max_tokens = bound if options.max_tokens is None else min(bound, options.max_tokens)
        if len(forced) >= max_tokens:
            raise InvalidRequest.of_option(
                "target_prefix",
                f"the prefix has {len(forced)} tokens; a target of this source has at most "
                f"{max_tokens}, with one for its end",
            )
        return Search(
            source.ids,
            options.width,
            max_tokens,
            forced=forced,
            params=options.sampling,
            seed=seed,
            num_hypotheses=options.num_hypotheses,
            length_penalty=options.length_penalty,
            writes_unknown=options.copy_unknown,
            wants_attention=options.return_alignments or options.copy_unknown,
        )

    def _forced(self, prefix: str) -> tuple[int, ...]:
        rules = self.manifest.target.normalization
        # A target does not begin with a blank; where the prefix ends, it goes on.
        text = normal_form(prefix, rules.model_copy(update={"strip": False}), "target_prefix")
        text = text.lstrip() if rules.strip else text
        ids = self._target.encode(text)
        unknown = _known_as(_unknown(ids, self._target, text))
        if unknown.count:
            raise unknown_text("target_prefix", unknown)
        return tuple(ids.tolist())

    def _translated(
        self, source: _Source, search: Search | None, options: TranslateOptions, seed: int | None
    ) -> Translated:
        if search is None:
            shown = (self._source.tokens[EOS_ID],) if options.return_alignments else None
            return Translated((_blank(options),), source.unknown, shown, seed, 0)
        places = self._places(source) if search.wants_attention else []
        names = [*places[:-1], places[-1] + self._source.tokens[EOS_ID]] if places else []
        return Translated(
            tuple(self._translation(places, found, options) for found in search.best()),
            source.unknown,
            tuple(names) if options.return_alignments else None,
            seed,
            len(source.ids) - 1,
        )

    def _places(self, source: _Source) -> list[str]:
        """The text that each position of the memory stands for; eos has none."""
        stride = self.manifest.memory_stride
        spans = self._source.spans(source.text)
        pieces = [source.text[start:end] for start, end in spans] + [""]
        # A span of a subword has the blank before it; symbols have none in theirs.
        blank = " " if isinstance(self._source, Symbols) else ""
        parts = [pieces[i : i + stride] for i in range(0, len(pieces), stride)]
        return [blank.join(x for x in part if x) for part in parts]

    def _translation(
        self, places: list[str], found: Hypothesis, options: TranslateOptions
    ) -> Translation:
        attention = None if found.attention is None else found.attention[:, : len(places)]
        pieces = [self._target.tokens[i] for i in found.tokens]
        if options.copy_unknown and attention is not None:
            pieces = _copied(places, found, pieces, attention)
        ended = found.tokens[-1:] == (EOS_ID,)
        text_pieces = pieces[:-1] if ended else pieces
        tokens = None
        if options.tokens:
            tokens = tuple(
                TokenLogprob(self._target.tokens[token], logprob)
                for token, logprob in zip(found.tokens, found.token_logprobs, strict=True)
            )
        return Translation(
            text=self._target.join(text_pieces),
            logprob=found.logprob,
            score=found.score(options.length_penalty),
            finish_reason=found.finish_reason,
            tokens=tokens,
            alignment=attention if options.return_alignments else None,
            completion_tokens=len(found.tokens),
        )

    # --- score ----------------------------------------------------------------------------------

    needs_sources = True

    async def score(
        self,
        texts: Sequence[str],
        options: ScoreOptions,
        *,
        contexts: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
    ) -> list[Scored]:
        """log P(text | source) of every pair; with `eos` its end is counted.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        sources = _checked_sources(options, contexts, sources)
        eos = options.eos is not False
        size = sum(map(len, sources)) + sum(map(len, texts))
        at_most("text", len(texts), self.settings.max_inputs, "texts")
        at_most("text", size, self.settings.max_queue_tokens, "characters, sources included")
        self._check_lengths(sources, texts, "text")
        if options.tokens:
            told = sum(map(len, texts))
            check_details("text", told, options.top_logprobs, self.settings)
        plans = await off_loop(
            size,
            lambda: [
                self._plan(source, text, options, eos=eos)
                for source, text in zip(sources, texts, strict=True)
            ],
        )
        await self._run([plan.search for plan in plans if plan.search.forced])
        return await self.workers.built(
            size * (1 + options.top_logprobs) if options.tokens else 0,
            lambda: [self._scored(plan, options, eos=eos) for plan in plans],
        )

    def _plan(self, source: str, target: str, options: ScoreOptions, *, eos: bool) -> "_PairPlan":
        read = self._read_source(source, options.unknown)
        if read.is_blank:
            raise InvalidRequest.of_option("source", "it is blank: a text is scored given a source")
        text, ids, positions = _read(
            target, self.manifest.target, self._target, options.unknown, "text"
        )
        forced = (*ids.tolist(), *([EOS_ID] if eos else []))
        at_most("text", len(forced), self.settings.max_tokens, "tokens in a target")
        detail_top = options.top_logprobs if options.tokens else None
        search = Search(
            read.ids, 1, max(1, len(forced)), forced=forced, given=True, detail_top=detail_top
        )
        return _PairPlan(search, len(text), positions, len(read.ids) - 1 + len(ids))

    def _scored(self, plan: "_PairPlan", options: ScoreOptions, *, eos: bool) -> Scored:
        search = plan.search
        tokens = None
        if options.tokens:
            tokens = scored_tokens(self._target.tokens, search.forced, search.details)
        return Scored(
            logprob=search.hypotheses[0].logprob if search.forced else 0.0,
            chars=plan.chars,
            bos=True,
            eos=eos,
            unknown=plan.unknown,
            tokens=tokens,
            prompt_tokens=plan.prompt_tokens,
            cached_tokens=0,
        )

    # --- shared ---------------------------------------------------------------------------------

    async def _run(self, searches: Sequence[Search]) -> None:
        """Run all the searches to their end."""
        async with self.workers.deadline():
            await self.workers.run(searches)
        given = sum(len(search.forced) for search in searches if search.given)
        written = [len(x.tokens) for search in searches if not search.given for x in search.best()]
        read = sum(len(search.source) - 1 for search in searches)
        self.workers.metrics.counted(prompt=read + given, completion=sum(written), cached=0)

    def _read_source(self, source: str, policy: UnknownPolicy) -> _Source:
        text, ids, positions = _read(source, self.manifest.source, self._source, policy, "source")
        at_most("source", len(ids), self.manifest.limits.max_source_tokens, "tokens in a source")
        return _Source(text, np.append(ids, np.uint16(EOS_ID)), positions)


def _checked_sources(
    options: ScoreOptions, contexts: Sequence[str] | None, sources: Sequence[str] | None
) -> Sequence[str]:
    """The sources. Raises InvalidRequest for what an encoder-decoder does not take."""
    if sources is None:
        raise InvalidRequest.of_option(
            "source", "an encoder-decoder scores a text given its source"
        )
    if contexts is not None or options.bos is False:
        option = "context" if contexts is not None else "bos"
        raise InvalidRequest.of_option(
            option, "an encoder-decoder scores a target from its beginning"
        )
    if options.state is not None or options.return_state:
        option = "state" if options.state is not None else "return_state"
        raise InvalidRequest.of_option(option, "an encoder-decoder has no states to go on from")
    return sources


def _most_chars(tokens: int, tokenizer: Tokenizer) -> int:
    """More characters than so many tokens stand for.

    Normalization makes one character of four at most, and takes blanks away at the ends.
    """
    longest = max(map(len, tokenizer.tokens)) + 1  # a blank between symbols
    return 4 * tokens * longest + _MAX_BLANKS


def _read(
    text: str, side: TextSide, tokenizer: Tokenizer, policy: UnknownPolicy, option: str
) -> tuple[str, npt.NDArray[np.uint16], Unknown]:
    """The normalized text with what the policy leaves of it, its ids, and what is unknown.

    What is left is normalized again: a blank beside a skipped character may stand at an end now.
    """
    text = normal_form(text, side.normalization, option)
    ids = tokenizer.encode(text)
    spans = unknown = _unknown(ids, tokenizer, text)
    if policy == "error" and unknown:
        raise unknown_text(option, _known_as(unknown))
    while policy == "skip" and spans:
        text = normal_form(_without(text, spans), side.normalization, option)
        ids = tokenizer.encode(text)
        spans = _unknown(ids, tokenizer, text)
    return text, ids, _known_as(unknown)


def _unknown(ids: npt.NDArray[np.uint16], tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Where in the text the characters stand that the vocabulary does not have."""
    unknown = ids == UNK_ID
    if not unknown.any():
        return []
    spans = tokenizer.spans(text)
    return [spans[i] for i in np.flatnonzero(unknown).tolist()]


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text outside of the spans, which are in order."""
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def _blank(options: TranslateOptions) -> Translation:
    """What a blank source has: nothing, for certain. No such pair was trained on."""
    return Translation(
        text="",
        logprob=0.0,
        score=0.0,
        finish_reason="stop",
        tokens=() if options.tokens else None,
        alignment=np.empty((0, 1), np.float32) if options.return_alignments else None,
        completion_tokens=0,
    )


class _StreamedSearch:
    """One source's search on one side, its events on the other."""

    def __init__(
        self,
        feed: "Feed[_StreamedSearch]",
        target: Tokenizer,
        source: int,
        search: Search,
    ) -> None:
        self._feed = feed
        self._target = target
        self._source = source
        self._search = search
        self._news = News()
        self._pieces: dict[int, list[str]] = {}  # of each place, as printed
        self._texts: dict[int, str] = {}  # what they join to
        self._counts: dict[int, int] = {}

    def wrote(
        self, place: int, tokens: npt.NDArray[np.uint16], logprobs: npt.NDArray[np.float32]
    ) -> None:
        """From the worker: tokens."""
        if self._news.add((np.full(len(tokens), place, np.uint16), tokens, logprobs)):
            self._feed.put(self)

    def ended(self) -> None:
        """From the worker: the hypotheses are there."""
        if self._news.end():
            self._feed.put(self)

    def events(self) -> Iterator[TranslatedToken]:
        """What the tokens since the last time, and the end, let be known."""
        columns, has_ended = self._news.take()
        if columns:
            for place, token, logprob in zip(*(x.tolist() for x in columns), strict=True):
                yield from self._tokens(place, [token], [logprob])
        if not has_ended:
            return
        found = self._search.best()
        # Of beams the best alone is told.
        for place, hypothesis in enumerate(found if self._search.params else found[:1]):
            rest = slice(self._counts.get(place, 0), None)
            logprobs = list(hypothesis.token_logprobs[rest])
            yield from self._tokens(place, list(hypothesis.tokens[rest]), logprobs)

    def _tokens(
        self, place: int, tokens: list[int], logprobs: list[float]
    ) -> Iterator[TranslatedToken]:
        pieces = self._pieces.setdefault(place, [])
        self._counts[place] = self._counts.get(place, 0) + len(tokens)
        for token, logprob in zip(tokens, logprobs, strict=True):
            before = self._texts.get(place, "")
            name = self._target.tokens[token]
            if token != EOS_ID:
                pieces.append(name)
            # A text begins with the texts of its first tokens, in every kind of vocabulary.
            whole = self._texts[place] = self._target.join(pieces)
            told = TokenLogprob(name, logprob)
            yield TranslatedToken(self._source, place, whole[len(before) :], len(before), told)


def _copied(
    places: Sequence[str],
    found: Hypothesis,
    pieces: Sequence[str],
    attention: npt.NDArray[np.float32],
) -> list[str]:
    """The pieces, with what the source has where the model attends for every unknown one."""
    likeliest = attention.argmax(axis=1).tolist()
    copied = [
        places[place] if token == UNK_ID else piece
        for token, piece, place in zip(found.tokens, pieces, likeliest, strict=True)
    ]
    # The end of the source has no text to copy.
    return [piece for piece in copied if piece]


def _known_as(spans: Sequence[tuple[int, int]]) -> Unknown:
    """Unknown characters by their spans in the text."""
    return Unknown.at([start for start, _ in spans])


@dataclass(frozen=True, slots=True)
class _PairPlan:
    """A pair on its way to be scored."""

    search: Search
    chars: int
    unknown: Unknown
    prompt_tokens: int
