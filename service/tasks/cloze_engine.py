"""The engine of an encoder-decoder that was trained to fill blanks: it sees both sides of them."""

from collections.abc import Sequence

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.infill import Infill
from service.bundle.manifest import Precision
from service.decoding.cache_budget import CacheBudgets
from service.observe.metrics import Metrics
from service.runtime.encoder_decoder import EncoderDecoderSession
from service.runtime.threads import off_loop
from service.settings import Settings
from service.tasks.cloze import Cloze
from service.tasks.cloze_limits import check_texts, open_blank
from service.tasks.encoder_decoder import EncoderDecoderEngine
from service.tasks.engine import INFILL, PROPOSE, Abilities
from service.tasks.infill_values import Blanks, Infilled, InfillOptions, Proposal
from service.tasks.limits import at_most


class ClozeEngine(EncoderDecoderEngine):
    """One such model: it fills blanks and proposes texts for them, but does not translate."""

    def __init__(
        self,
        bundle: EncoderDecoderBundle,
        infill: Infill,
        session: EncoderDecoderSession,
        settings: Settings,
        *,
        precision: Precision,
        threads: int = 1,
        metrics: Metrics | None = None,
        budgets: CacheBudgets | None = None,
    ) -> None:
        super().__init__(
            bundle,
            session,
            settings,
            precision=precision,
            threads=threads,
            metrics=metrics,
            budgets=budgets,
        )
        self._infill = infill
        self.abilities: Abilities = dict((INFILL.given_by(self), PROPOSE.given_by(self)))

    async def infill(
        self,
        texts: Sequence[Blanks],
        options: InfillOptions,
        *,
        proposals: Sequence[Sequence[Proposal]] | None = None,  # noqa: ARG002 (it takes none)
    ) -> list[Infilled]:
        """Fill the blanks of every text with the likeliest texts.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        most = self._sides.settings.max_beam_size
        at_most(
            "num_proposals",
            options.num_proposals or 1,
            most,
            "proposals for a model that reads both sides",
        )
        cloze = await self._searched(texts, options)
        return await self.workers.built(cloze.size, cloze.results)

    async def propose(
        self, texts: Sequence[Blanks], options: InfillOptions
    ) -> list[list[Proposal]]:
        """The likeliest texts for the blanks of every text, at most as many as a beam may be wide.

        Raises what `infill` raises.
        """
        cloze = await self._searched(texts, options)
        return await self.workers.built(cloze.size, cloze.proposals)

    async def _searched(self, texts: Sequence[Blanks], options: InfillOptions) -> Cloze:
        """Check, read and run the request."""
        self.workers.refuse_if_full()
        settings = self._sides.settings
        check_texts(texts, options, settings)
        rule = await self._constraint(options.rule)
        blank = open_blank(self._infill, options, settings, rule)
        cloze = Cloze(self._sides, self._infill, texts, options, blank)
        await off_loop(cloze.size, cloze.read)
        await self._run(cloze.searches)
        return cloze
