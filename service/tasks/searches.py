"""The sources of one `translate` request, from texts to searches to targets."""

from collections.abc import Sequence

from service.decoding.constraints import Constraint
from service.decoding.normal_form import normal_form
from service.decoding.search import Search
from service.errors import InvalidRequest
from service.tasks.hypotheses import HypothesisTexts
from service.tasks.limits import at_most
from service.tasks.seed import drawn_seed
from service.tasks.sides import Sides, SideText, unknown_at
from service.tasks.translate_limits import check_costs
from service.tasks.translations import ALIGNMENT_SIZE, Translated, TranslateOptions
from service.tasks.unknown import unknown_text


class Searches:
    """Call `read`, run the `running` ones, and take the results."""

    def __init__(
        self,
        sides: Sides,
        sources: Sequence[str],
        prefixes: Sequence[str],
        options: TranslateOptions,
        constraint: Constraint | None = None,
    ) -> None:
        """`options` must be checked. Raises InvalidRequest for too many or too long texts."""
        self._sides = sides
        self._sources = sources
        self._prefixes = prefixes
        self._options = options
        self._constraint = constraint
        self._seed = None if options.sampling is None else drawn_seed(options.seed)
        self._read: list[SideText] = []
        self._planned: list[Search | None] = []  # None for a blank source
        at_most("source", len(sources), sides.settings.max_inputs, "sources")
        sides.check_lengths(sources, prefixes, "target_prefix")

    @property
    def size(self) -> int:
        """Characters to read."""
        return sum(map(len, self._sources)) + sum(map(len, self._prefixes))

    def read(self) -> None:
        """Plan a search for every source that is not blank. Raises InvalidRequest."""
        self._read = [self._sides.read_source(x, self._options.unknown) for x in self._sources]
        # One prefix can stand before the targets of all sources.
        forced = {prefix: self._forced(prefix) for prefix in dict.fromkeys(self._prefixes)}
        self._planned = [
            None if source.is_blank else self._search(source, forced[prefix])
            for source, prefix in zip(self._read, self._prefixes, strict=True)
        ]
        if self._constraint is not None:
            # All sources share one table of the constraint.
            for _, search in self.running[:1]:
                search.held = self._constraint.cells

    def check_costs(self) -> None:
        """Raise InvalidRequest or QueueFull if the searches together exceed a limit."""
        check_costs(self._sides, [search for _, search in self.running], self._options)

    @property
    def running(self) -> list[tuple[int, Search]]:
        """The searches to run, each with the index of its source."""
        return [(i, search) for i, search in enumerate(self._planned) if search is not None]

    @property
    def answer_size(self) -> int:
        """Roughly how many characters the answer has."""
        written = sum(len(x.tokens) for _, search in self.running for x in search.best())
        return written * (ALIGNMENT_SIZE if self._options.return_alignments else 1)

    def results(self) -> list[Translated]:
        """The targets of each source."""
        texts = HypothesisTexts(self._sides, self._options, self._seed, self._constraint)
        pairs = zip(self._read, self._planned, strict=True)
        return [texts.of_blank(x) if y is None else texts.of(x, y) for x, y in pairs]

    def _search(self, source: SideText, forced: tuple[int, ...]) -> Search:
        options = self._options
        bound = self._sides.manifest.limits.max_tokens(len(source.ids))
        bound = min(bound, self._sides.settings.max_tokens)
        max_tokens = bound if options.max_tokens is None else min(bound, options.max_tokens)
        if len(forced) >= max_tokens:
            raise InvalidRequest.of_option(
                "target_prefix",
                f"the prefix has {len(forced)} tokens; a target of this source has at most "
                f"{max_tokens}, the end included",
            )
        if self._constraint is not None:
            _check_reachable(self._constraint, forced, max_tokens)
        return Search(
            source.ids,
            options.width,
            max_tokens,
            forced=forced,
            params=options.sampling,
            seed=self._seed or 0,
            num_hypotheses=options.num_hypotheses,
            length_penalty=options.length_penalty,
            writes_unknown=options.copy_unknown,
            constraint=self._constraint,
            wants_attention=options.attends,
        )

    def _forced(self, prefix: str) -> tuple[int, ...]:
        """The ids of a prefix. Raises InvalidRequest."""
        target = self._sides.target
        rules = target.rules.normalization
        # A target does not begin with a blank; where the prefix ends, it goes on.
        text = normal_form(prefix, rules.model_copy(update={"strip": False}), "target_prefix")
        text = text.lstrip() if rules.strip else text
        ids = target.tokenizer.encode(text)
        unknown = unknown_at(target.unknown_spans(ids, text))
        if unknown.count:
            raise unknown_text("target_prefix", unknown)
        return tuple(ids.tolist())


def _check_reachable(constraint: Constraint, forced: Sequence[int], max_tokens: int) -> None:
    """Raise InvalidRequest if no match begins with the prefix, or none of them is short enough."""
    shortest = constraint.shortest_after(forced)
    if shortest is None:
        raise InvalidRequest.of_option("target_prefix", "no match begins with the prefix")
    shortest += len(forced) + 1
    if shortest > max_tokens:
        raise InvalidRequest.of_option(
            "max_tokens",
            f"too few tokens: a target of this source has at most {max_tokens}, and the shortest "
            f"{'match that begins with the prefix' if forced else 'match'} has {shortest}, the end "
            "included",
        )
