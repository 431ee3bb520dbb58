"""The tasks of an encoder-decoder on text: translate, and score targets. No HTTP in here.

Sources and targets become ids, ids become searches, the scheduler runs them, and they become texts.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.manifest import Precision
from service.bundle.text_side import TextSide
from service.bundle.tokenization import Tokenizer
from service.decoding.cache_budget import CacheBudgets
from service.decoding.constraints import Constraint, ConstraintCompiler, Rule
from service.decoding.search import Search
from service.decoding.spelling import Writing
from service.errors import InvalidRequest
from service.observe.metrics import Metrics
from service.observe.request_context import current_request
from service.runtime.encoder_decoder import EncoderDecoderSession
from service.runtime.threads import off_loop
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from service.scheduling.feed import Feed
from service.scheduling.workers import Workers
from service.settings import Settings
from service.tasks.confidence import check_confidence
from service.tasks.engine import SCORE, TRANSLATE, Abilities
from service.tasks.searches import Searches
from service.tasks.sides import Sides
from service.tasks.target_scoring import TargetScoring
from service.tasks.translate_limits import checked_options, checked_sources
from service.tasks.translation_stream import StreamedSearch
from service.tasks.translations import Translated, TranslatedToken, TranslateOptions
from service.tasks.values import Scored, ScoreOptions
from service.tasks.vocabularies import ClientVocabulary, Vocabularies

# A step of few rows spends most of its time in Python, where threads take turns.
_PACKED_ROWS = 256


class EncoderDecoderEngine:
    """One encoder-decoder: its bundle, its workers and the tasks on text."""

    needs_sources = True
    adapts = False
    has_percentiles = False
    guess_curve = None

    def __init__(
        self,
        bundle: EncoderDecoderBundle,
        session: EncoderDecoderSession,
        settings: Settings,
        *,
        precision: Precision,
        threads: int = 1,
        metrics: Metrics | None = None,
        budgets: CacheBudgets | None = None,
    ) -> None:
        self.holds = 0
        self.manifest = bundle.manifest
        self.precision = precision
        self.vocabularies: Vocabularies = {
            "source": self._client_vocabulary(bundle.manifest.source, bundle.source),
            "target": self._client_vocabulary(bundle.manifest.target, bundle.target),
        }
        self.abilities: Abilities = dict((TRANSLATE.given_by(self), SCORE.given_by(self)))
        self._sides = Sides.of(bundle, settings)
        target = bundle.manifest.target
        self._constraints = ConstraintCompiler(
            Writing.of(bundle.target, target.tokenization),
            settings,
            (budgets or CacheBudgets.of(settings)).patterns,
            target.normalization,
        )
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
        self._constraints.close()

    # --- translate ------------------------------------------------------------------------------

    def fits(self, text: str) -> bool:
        """Whether a source is within the model's limit."""
        return self._sides.fits(text)

    async def translate(
        self, texts: Sequence[str], prefixes: Sequence[str], options: TranslateOptions
    ) -> list[Translated]:
        """Translate every source; each target begins with its prefix.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        self.workers.refuse_if_full()
        searches = await self._planned(texts, prefixes, checked_options(self._sides, options))
        await self._run([search for _, search in searches.running])
        return await self.workers.built(searches.answer_size, searches.results)

    async def stream(
        self, texts: Sequence[str], prefixes: Sequence[str], options: TranslateOptions
    ) -> AsyncGenerator[TranslatedToken | list[Translated], None]:
        """Stream tokens as they become certain; the result of `translate` comes last.

        A sampled token is certain at once. A token of a beam search is certain once every
        hypothesis that can still win begins with it. Raises what `translate` raises.
        """
        options = checked_options(self._sides, options)
        if options.copy_unknown:
            raise InvalidRequest.of_option("copy_unknown", "not together with stream")
        if options.min_confidence is not None:
            raise InvalidRequest.of_option(
                "min_confidence",
                "not together with stream, whose tokens are sent before the end; `done` has the "
                "confidence",
            )
        searches = await self._planned(texts, prefixes, options)
        feed: Feed[StreamedSearch] = Feed()
        for i, search in searches.running:
            search.listener = StreamedSearch(feed, self._sides.target.tokenizer, i, search)
        work = self._run([search for _, search in searches.running])
        async with aclosing(feed.during(work)) as told:
            async for streamed in told:
                for event in streamed.events():
                    yield event
        answer = await self.workers.built(searches.answer_size, searches.results)
        current_request().end_building()
        yield answer

    async def _planned(
        self, texts: Sequence[str], prefixes: Sequence[str], options: TranslateOptions
    ) -> Searches:
        """The request, read and within its limits."""
        check_confidence(self.manifest.confidence, prefixes, options)
        constraint = await self._constraint(options.rule)
        searches = Searches(self._sides, texts, prefixes, options, constraint)
        await off_loop(searches.size, searches.read)
        searches.check_costs()
        return searches

    async def _constraint(self, rule: Rule | None) -> Constraint | None:
        """A rule's constraint. Raises InvalidRequest, QueueFull and DeadlineExceeded."""
        if rule is None:
            return None
        with self.workers.deadline():
            return await self._constraints.compiled(rule)

    # --- score ----------------------------------------------------------------------------------

    async def score(
        self,
        texts: Sequence[str],
        options: ScoreOptions,
        *,
        contexts: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
    ) -> list[Scored]:
        """log P(text | source) of every pair; with `eos` the end counts, too.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        sources = checked_sources(self._sides, options, contexts, sources)
        scoring = TargetScoring(self._sides, sources, texts, options)
        await off_loop(scoring.size, scoring.read)
        await self._run(scoring.searches)
        return await self.workers.built(scoring.answer_size, scoring.results)

    # --- shared ---------------------------------------------------------------------------------

    async def _run(self, searches: Sequence[Search]) -> None:
        """Run all searches to their end."""
        with self.workers.deadline():
            await self.workers.run(searches)
        given = sum(len(search.forced) for search in searches if search.given)
        written = [len(x.tokens) for search in searches if not search.given for x in search.best()]
        read = sum(len(search.source) - 1 for search in searches)
        self.workers.metrics.counted(prompt=read + given, completion=sum(written), cached=0)
