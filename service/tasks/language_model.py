"""The tasks of a language model on text: generate, score and infill. No HTTP in here.

Text becomes ids, ids become rows, the scheduler fills them in, and they become text again.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from service.bundle.arrays import Ids
from service.bundle.language_model import LanguageModelBundle, LanguageModelManifest
from service.bundle.manifest import Precision
from service.bundle.text import Normalization
from service.decoding.cache_budget import CacheBudgets
from service.decoding.constraints import Constraint, ConstraintCompiler, Rule
from service.decoding.spelling import Writing
from service.errors import InvalidRequest
from service.observe.metrics import Metrics
from service.observe.request_context import current_request
from service.runtime.language_model import LanguageModelSession
from service.runtime.threads import off_loop
from service.scheduling.feed import Feed
from service.scheduling.language_model import LanguageModelRunner, TextWork
from service.scheduling.workers import Workers
from service.settings import Settings
from service.tasks.carried_score import CarriedScore
from service.tasks.comparing import Compared
from service.tasks.engine import DECIDE, GENERATE, INFILL, SCORE, SCORE_IN_PARTS, Abilities
from service.tasks.generate_limits import checked_options
from service.tasks.generation import Generation
from service.tasks.infill_limits import checked_infill
from service.tasks.infill_values import Blanks, Infilled, InfillOptions, Proposal
from service.tasks.infilling import ROWS_IN_HAND, Infilling
from service.tasks.open_blanks import ANYTHING, OpenBlank, open_blank
from service.tasks.plans import run_together
from service.tasks.shared_reads import SharedReads
from service.tasks.text_model import TextModel
from service.tasks.text_scoring import TextScoring, check_score_options
from service.tasks.text_stream import StreamedChoice, read_ids
from service.tasks.values import (
    Generated,
    GenerateOptions,
    Prompt,
    Scored,
    ScoreOptions,
    StreamEvent,
)
from service.tasks.vocabularies import ClientVocabulary, Vocabularies

# Memory for the common prefixes of a request that adapts, until it has been answered.
MAX_SHARED_BYTES = 8 * 2**20


class LanguageModelEngine:
    """One language model: its bundle, its workers and the tasks on text."""

    needs_sources = False

    def __init__(
        self,
        bundle: LanguageModelBundle,
        session: LanguageModelSession,
        settings: Settings,
        *,
        precision: Precision,
        adapting: LanguageModelSession | None = None,
        threads: int = 1,
        metrics: Metrics | None = None,
        budgets: CacheBudgets | None = None,
    ) -> None:
        """`adapting` is the same model while it adapts; None if it cannot."""
        self.adapts = adapting is not None
        self.has_percentiles = bundle.manifest.percentiles is not None
        self.guess_curve = bundle.manifest.guesses
        budgets = budgets or CacheBudgets.of(settings)
        self.holds = 0
        self.manifest = bundle.manifest
        self.precision = precision
        self.vocabularies: Vocabularies = {None: _client_vocabulary(bundle, settings)}
        self.abilities: Abilities = dict(
            (
                GENERATE.given_by(self),
                SCORE.given_by(self),
                SCORE_IN_PARTS.given_by(self),
                INFILL.given_by(self),
                DECIDE.given_by(self),
            )
        )
        self._model = TextModel.of(bundle, precision, settings, adapts=self.adapts)
        self._constraints = ConstraintCompiler(
            Writing.of_characters(bundle.vocab.tokens),
            settings,
            budgets.patterns,
            bundle.manifest.normalization,
        )
        self.workers: Workers[TextWork] = Workers(
            lambda name: LanguageModelRunner(
                session, settings.max_rows, name=name, adapting=adapting
            ),
            bundle.manifest.name,
            settings,
            threads=threads,
            max_rows=settings.max_rows,
            metrics=metrics,
            # Beside other processes, a second thread is for the rows of one large request: two
            # batches of half the size take a third more processor time.
            packed_rows=settings.max_rows if (settings.workers or 1) > 1 else 0,
        )
        # By whether the texts adapt, since the states after a prefix then differ.
        self._reads = {False: SharedReads(budgets.prefixes, self.workers.metrics)}
        if adapting is not None:
            self._reads[True] = SharedReads(
                budgets.prefixes, self.workers.metrics, most_shared=_most_shared(bundle.manifest)
            )

    def start(self) -> None:
        """Start the workers; call it in the event loop that requests run in."""
        self.workers.start()

    async def stop(self, timeout_s: float | None = None) -> None:
        """End the workers; other models may use the room of its caches."""
        await self.workers.stop(timeout_s)
        for reads in self._reads.values():
            reads.prefixes.close()
        self._constraints.close()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""
        return self._model.tokens

    @property
    def normalization(self) -> Normalization:
        """How every text is normalized first."""
        return self.manifest.normalization

    @property
    def max_tokens(self) -> int:
        """Most tokens that one choice may generate: the service's limit or the bundle's."""
        return self._model.max_tokens

    # --- generate -------------------------------------------------------------------------------

    async def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions
    ) -> list[Generated]:
        """Continue every prompt. The same seed gives the same text, whatever runs beside it.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        generation = await self._prepared(prompts, options)
        reused = await self._run(generation.works, adapt=options.adapt)
        return await self.workers.built(generation.answer_size, lambda: generation.results(reused))

    async def stream(
        self, prompts: Sequence[Prompt], options: GenerateOptions
    ) -> AsyncGenerator[StreamEvent, None]:
        """Stream the choices of `generate` token by token; the usage comes last.

        Tokens that may begin a stop string are held back. Closing the stream removes its rows
        before the next step. Raises what `generate` raises.
        """
        generation = await self._prepared(prompts, options)
        current_request().keep_no_details()
        feed: Feed[StreamedChoice] = Feed()
        choices = [
            StreamedChoice(
                feed,
                self.tokens,
                (i, k),
                prompt if options.echo else None,
                work,
                row,
                generation.sealed,
            )
            for i, (prompt, work) in enumerate(zip(prompts, generation.works, strict=True))
            for k, row in enumerate(work.write)
        ]
        reused: list[int] = []

        async def run() -> None:
            reused.extend(await self._run(generation.works, adapt=options.adapt))

        async with aclosing(feed.during(run())) as told:
            async for choice in told:
                for event in choice.events():
                    yield event
        for choice in choices:
            if not choice.has_ended:  # it wrote no token
                for event in choice.end():
                    yield event
        yield generation.usage(reused)

    async def _prepared(self, prompts: Sequence[Prompt], options: GenerateOptions) -> Generation:
        """The request, checked and read."""
        self.workers.refuse_if_full()
        options = checked_options(self._model, prompts, options)
        constraint = None
        if options.rule is not None:
            constraint = await self._constraint(options.rule, options.max_tokens)
        generation = Generation(self._model, prompts, options, constraint)
        await off_loop(sum(map(len, prompts)), generation.read)
        return generation

    async def _constraint(
        self, rule: Rule, max_tokens: int | None, option: str = "max_tokens"
    ) -> Constraint:
        """The constraint of a rule. Raises InvalidRequest, QueueFull and DeadlineExceeded.

        `option` is the one that `max_tokens` was given as.
        """
        with self.workers.deadline():
            constraint = await self._constraints.compiled(rule)
        if constraint.shortest > (max_tokens or 0):
            raise InvalidRequest.of_option(
                option,
                f"too few tokens; the shortest text that matches has {constraint.shortest}",
            )
        return constraint

    # --- score ----------------------------------------------------------------------------------

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
        check_score_options(options, contexts, sources, has_percentiles=self.has_percentiles)
        self.workers.refuse_if_full()
        scoring = TextScoring(self._model, texts, contexts, options)
        await off_loop(scoring.size, scoring.read)
        reused = await self._run(scoring.works, adapt=options.adapt)
        return await self.workers.built(scoring.answer_size, lambda: scoring.results(reused))

    def ids_of(self, text: str) -> Ids:
        """The ids of a text's normalized characters."""
        return self._model.encode(text)

    async def carry_on(
        self, carried: CarriedScore, ids: Ids | None, options: ScoreOptions
    ) -> CarriedScore:
        """The score of a text in parts, including the next part; None ends the text.

        Raises what `score` raises.
        """
        self._model.seal(adapt=options.adapt)
        carried, row = carried.with_part(ids, options)
        if row is None:
            return carried
        with self.workers.deadline():
            await self.workers.run([TextWork(row, adapt=options.adapt)])
        self.workers.metrics.counted(prompt=len(row.tokens), completion=0, cached=0)
        return carried.after(row, is_end=ids is None)

    # --- infill ---------------------------------------------------------------------------------

    async def infill(
        self,
        texts: Sequence[Blanks],
        options: InfillOptions,
        *,
        proposals: Sequence[Sequence[Proposal]] | None = None,
    ) -> list[Infilled]:
        """Fill the blanks of every text; what is compared gets its exact probability.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        self.workers.refuse_if_full()
        options = checked_infill(self._model, texts, options)
        blank = None if options.candidates is not None else await self._open_blank(options)
        infilling = Infilling(self._model, texts, options, blank, proposals)
        await off_loop(infilling.size, infilling.read)
        reused = await self._run(infilling.prefixes, adapt=False)
        compared: list[Compared] = []
        with self.workers.deadline():
            for plans in infilling.groups():
                compared += await run_together(
                    plans, self.workers.run, rows=ROWS_IN_HAND, round_size=infilling.round_size
                )
        self.workers.metrics.counted(
            prompt=sum(x.read for x in compared),
            completion=sum(x.written for x in compared),
            cached=0,
        )
        size = sum(len(x.branches) for x in compared)
        return await off_loop(size, lambda: infilling.results(compared, reused))

    async def _open_blank(self, options: InfillOptions) -> OpenBlank:
        """What an open blank may be. Raises InvalidRequest, QueueFull and DeadlineExceeded."""
        named = "max_tokens" if options.length is None else "length"
        constraint = await self._constraint(options.rule or ANYTHING, options.max_tokens, named)
        return await off_loop(
            constraint.cells * (options.max_tokens or 1), partial(open_blank, options, constraint)
        )

    # --- shared ---------------------------------------------------------------------------------

    async def _run(self, works: Sequence[TextWork], *, adapt: bool) -> list[int]:
        """Run all work; for each, the number of prompt tokens that needed no run of their own.

        Cancelling the caller removes its rows.
        """
        with self.workers.deadline():
            reused = await self._reads[adapt].run(works, self.workers.run)
        prompt = [len(read_ids(work)) for work in works]
        self.workers.metrics.counted(
            prompt=sum(prompt),
            completion=sum(len(row.tokens) for work in works for row in work.write),
            cached=sum(map(min, reused, prompt)),
        )
        return reused


def _most_shared(manifest: LanguageModelManifest) -> int | None:
    """The most prefixes that a request which adapts reads for several of its texts."""
    return None if manifest.adapt is None else max(1, MAX_SHARED_BYTES // manifest.adapt.size_bytes)


def _client_vocabulary(bundle: LanguageModelBundle, settings: Settings) -> ClientVocabulary:
    return ClientVocabulary(
        tokenization=bundle.manifest.tokenization,
        normalization=bundle.manifest.normalization,
        tokenizer=bundle.vocab,
        join="".join,
        max_length=settings.max_prompt_chars,
    )
