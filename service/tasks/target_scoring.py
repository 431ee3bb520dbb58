"""The texts of one `score` request of an encoder-decoder: targets, each given its source."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.bundle.text import EOS_ID
from service.decoding.search import Search
from service.errors import InvalidRequest
from service.tasks.limits import at_most, check_details
from service.tasks.scored_tokens import scored_tokens
from service.tasks.scored_words import ScoredWords
from service.tasks.sides import Sides
from service.tasks.unknown import Unknown
from service.tasks.values import Scored, ScoreOptions


class TargetScoring:
    """Call `read`, run `searches`, and take the results."""

    def __init__(
        self, sides: Sides, sources: Sequence[str], texts: Sequence[str], options: ScoreOptions
    ) -> None:
        """Raises InvalidRequest and QueueFull."""
        settings = sides.settings
        self._sides = sides
        self._sources = sources
        self._texts = texts
        self._options = options
        self._eos = options.eos is not False
        self._plans: list[_Plan] = []
        self.size = sum(map(len, sources)) + sum(map(len, texts))
        at_most("text", len(texts), settings.max_inputs, "texts")
        at_most("text", self.size, settings.max_queue_tokens, "characters, sources included")
        sides.check_lengths(sources, texts, "text")
        if options.detail_top is not None:
            check_details("text", sum(map(len, texts)), options.detail_top, settings)

    def read(self) -> None:
        """Plan a search that follows each text. Raises InvalidRequest."""
        pairs = zip(self._sources, self._texts, strict=True)
        self._plans = [self._plan(source, text) for source, text in pairs]

    @property
    def searches(self) -> list[Search]:
        """The searches to run."""
        return [plan.search for plan in self._plans if plan.search.forced]

    @property
    def answer_size(self) -> int:
        """Roughly how many characters the answer has."""
        detail_top = self._options.detail_top
        return 0 if detail_top is None else self.size * (1 + detail_top)

    def results(self) -> list[Scored]:
        """The score of each text."""
        return [self._scored(plan) for plan in self._plans]

    def _plan(self, source: str, text: str) -> "_Plan":
        options = self._options
        read = self._sides.read_source(source, options.unknown)
        if read.is_blank:
            raise InvalidRequest.of_option("source", "must not be blank: a text is scored given it")
        target = self._sides.target.read(text, options.unknown, "text")
        forced = (*target.ids.tolist(), *([EOS_ID] if self._eos else []))
        at_most("text", len(forced), self._sides.settings.max_tokens, "tokens in a target")
        search = Search(
            read.ids,
            1,
            max(1, len(forced)),
            forced=forced,
            given=True,
            detail_top=options.detail_top,
        )
        prompt_tokens = len(read.ids) - 1 + len(target.ids)
        return _Plan(search, target.text, target.unknown, prompt_tokens)

    def _scored(self, plan: "_Plan") -> Scored:
        search = plan.search
        tokens = None
        if self._options.tokens:
            names = self._sides.target.tokenizer.tokens
            tokens = scored_tokens(names, search.forced, search.details)
        words = None
        if self._options.units is not None:
            words = ScoredWords(plan.text, search.details, uncounted=0, eos=self._eos)
        return Scored(
            logprob=search.hypotheses[0].logprob if search.forced else 0.0,
            chars=len(plan.text),
            bos=True,
            eos=self._eos,
            unknown=plan.unknown,
            tokens=tokens,
            prompt_tokens=plan.prompt_tokens,
            cached_tokens=0,
            words=words,
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """One text."""

    search: Search
    text: str  # normalized, without what is skipped
    unknown: Unknown
    prompt_tokens: int
