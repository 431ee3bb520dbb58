"""The texts of one `infill` request of a model that sees both sides of a blank.

Blanks that are near each other share a source, and their texts share a target: these texts are
searched for, or scored, together. Blanks that are further apart than the model reads are filled
independently.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from service.bundle.infill import Infill
from service.bundle.text import EOS_ID
from service.decoding.blank_constraint import BlankTexts, blank_constraint
from service.decoding.constraints import Constraint
from service.decoding.search import Search
from service.errors import InvalidRequest
from service.tasks.cloze_limits import beam_width
from service.tasks.infill_values import Blanks, Fill, Infilled, InfillOptions, Proposal
from service.tasks.limits import at_most
from service.tasks.sides import Sides
from service.tasks.unknown import Unknown

# A rule for several blanks of several lengths has many states: at most 16 MiB of them.
_MAX_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class _Group:
    """Blanks that share a source."""

    searches: tuple[Search, ...]  # one, or one for each combination of candidates
    combinations: tuple[tuple[str, ...], ...] | None  # None: the blanks are open


@dataclass(frozen=True, slots=True)
class _Text:
    """A text with blanks that has been read."""

    groups: tuple[_Group, ...]
    unknown: Unknown

    @property
    def searches(self) -> list[Search]:
        """Of all groups."""
        return [search for group in self.groups for search in group.searches]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A text that a blank may have."""

    text: str  # as the client wrote it
    normalized: str


class Cloze:
    """Call `read`, run the `searches`, and take `proposals` or `results`."""

    def __init__(
        self,
        sides: Sides,
        infill: Infill,
        texts: Sequence[Blanks],
        options: InfillOptions,
        blank: BlankTexts,
    ) -> None:
        """`options` must be checked; `blank` restricts the text of every open blank."""
        self._sides = sides
        self._infill = infill
        self._blanks = texts
        self._options = options
        self._blank = blank
        self._constraints: dict[int, Constraint] = {}  # by the number of blanks
        self._texts: list[_Text] = []
        self.size = sum(len(piece) for text in texts for piece in text.pieces)

    def read(self) -> None:
        """Plan the searches of every text. Raises InvalidRequest."""
        candidates = None
        if self._options.candidates is not None:
            candidates = self._listed(self._options.candidates)
        self._texts = [self._text(text, candidates) for text in self._blanks]
        if candidates is None:
            cost = sum(search.width * search.max_tokens for search in self.searches)
            unit = "tokens: num_proposals · max_tokens, over all texts"
            at_most("prefix", cost, self._sides.settings.max_cost_tokens, unit)

    @property
    def searches(self) -> list[Search]:
        """The searches to run."""
        return [search for text in self._texts for search in text.searches]

    def proposals(self) -> list[list[Proposal]]:
        """What was found for each text, likeliest first."""
        most = beam_width(self._options, self._sides.settings)
        return [
            [Proposal(texts, logprob) for texts, logprob in _best(self._found(text), most)]
            for text in self._texts
        ]

    def results(self) -> list[Infilled]:
        """The fills of each text."""
        return [self._result(text) for text in self._texts]

    # --- reading --------------------------------------------------------------------------------

    def _listed(self, candidates: Sequence[str]) -> list[_Candidate]:
        """The candidates, without those that are equal once normalized."""
        known: dict[str, _Candidate] = {}
        for text in candidates:
            read = self._sides.target.read(
                self._infill.unmarked(text), self._options.unknown, "candidates"
            )
            known.setdefault(read.text, _Candidate(text, read.text))
        return list(known.values())

    def _text(self, blanks: Blanks, candidates: Sequence[_Candidate] | None) -> _Text:
        pieces: list[str] = []
        unknown: list[int] = []
        position, skips = 0, self._options.unknown == "skip"
        for i, piece in enumerate(blanks.pieces):
            option = "suffix" if i else "prefix"
            read = self._sides.source.read(
                self._infill.unmarked(piece), self._options.unknown, option
            )
            pieces.append(read.text)
            unknown += [position + place for place in read.unknown.positions]
            position += len(read.text) + read.unknown.count * skips
        groups = tuple(
            self._group(pieces[first : last + 1], first == 0, last == len(pieces) - 1, candidates)
            for first, last in self._neighbours(pieces)
        )
        return _Text(groups, Unknown.at(unknown))

    def _neighbours(self, pieces: Sequence[str]) -> Iterator[tuple[int, int]]:
        """The first and the last piece of each group of blanks."""
        infill, first = self._infill, 0
        for last in range(1, len(pieces)):
            if last < len(pieces) - 1 and len(pieces[last]) <= infill.context:
                continue
            if last - first > infill.max_blanks:
                raise InvalidRequest.of_option(
                    "text",
                    f"this model reads at most {infill.max_blanks} blanks that have at most "
                    f"{infill.context} characters between them",
                )
            yield first, last
            first = last

    def _group(
        self,
        pieces: Sequence[str],
        begins: bool,
        ends: bool,
        candidates: Sequence[_Candidate] | None,
    ) -> _Group:
        sides, options = self._sides, self._options
        text = self._infill.source(pieces, begins=begins and options.bos, ends=ends and options.eos)
        ids = np.append(sides.source.tokenizer.encode(text), np.uint16(EOS_ID))
        count = len(pieces) - 1
        if candidates is None:
            constraint = self._constraint(count)
            width = beam_width(options, sides.settings)
            search = Search(
                ids,
                width,
                max_tokens=count * (self._blank.most + 1),  # with marks, and eos
                num_hypotheses=width,
                length_penalty=0.0,  # likeliest as a whole
                constraint=constraint,
            )
            return _Group((search,), None)
        combinations = len(candidates) ** count
        chars = sum(len(x.normalized) for x in candidates) // len(candidates)
        at_most(
            "candidates",
            combinations * (len(ids) + count * (chars + 1)),
            sides.settings.max_queue_tokens,
            "characters to read: the text around the blanks, for each combination of candidates",
        )
        chosen = list(product(candidates, repeat=count))
        targets = [self._infill.target([x.normalized for x in each]) for each in chosen]
        forced = [(*sides.target.tokenizer.encode(x).tolist(), EOS_ID) for x in targets]
        searches = tuple(Search(ids, 1, len(x), forced=x, given=True) for x in forced)
        return _Group(searches, tuple(tuple(x.text for x in each) for each in chosen))

    def _constraint(self, count: int) -> Constraint:
        """What the target of `count` open blanks must match. Raises InvalidRequest."""
        if count not in self._constraints:
            blank, tokens = self._blank, self._sides.target.tokenizer.tokens
            cells = 1 if blank.rule is None else blank.rule.cells
            unit = "states, for all lengths and blanks together"
            at_most("pattern", count * (blank.most + 1) * cells, _MAX_CELLS, unit)
            found = blank_constraint(tokens, self._infill, count, blank)
            if found is None:
                detail = f"no text of {blank.least} to {blank.most} characters matches it"
                raise InvalidRequest.of_option("pattern", detail)
            self._constraints[count] = found
        return self._constraints[count]

    # --- results --------------------------------------------------------------------------------

    def _found(self, text: _Text) -> "list[_Found]":
        return [self._found_of(group) for group in text.groups]

    def _found_of(self, group: _Group) -> "_Found":
        """What was found or scored for a group, likeliest first."""
        if group.combinations is not None:
            scores = [search.hypotheses[0].logprob for search in group.searches]
            pairs = list(zip(group.combinations, scores, strict=True))
        else:
            decode = self._sides.target.tokenizer.decode
            pairs = [
                (self._infill.texts(decode(x.tokens)), x.logprob)
                for x in group.searches[0].best()
                if x.finish_reason == "stop"
            ]
        return sorted(pairs, key=lambda pair: -pair[1])

    def _result(self, text: _Text) -> Infilled:
        found = self._found(text)
        mass = sum(_log_sum(logprob for _, logprob in pairs) for pairs in found)
        fills = [
            Fill(texts, logprob, None, math.exp(logprob - mass))
            for texts, logprob in _best(found, self._options.num_fills)
        ]
        is_open = self._options.candidates is None
        searches = text.searches
        given = sum(len(x.forced) for x in searches)
        written = sum(len(x.tokens) for search in searches for x in search.best())
        return Infilled(
            tuple(fills),
            compared=math.prod(map(len, found)),
            found_mass=min(1.0, math.exp(mass)) if is_open else None,
            seed=None,
            unknown=text.unknown,
            prompt_tokens=given + sum(len(x.source) - 1 for x in searches),
            completion_tokens=written if is_open else 0,
            cached_tokens=0,
        )


# Texts of blanks with their log-probability, likeliest first.
_Found = list[tuple[tuple[str, ...], float]]


def _best(groups: Sequence[_Found], most: int) -> _Found:
    """The likeliest combinations of what was found for independent groups."""
    best: _Found = [((), 0.0)]
    for found in groups:
        nearest = found[:most]
        sums = np.add.outer([x for _, x in best], [x for _, x in nearest])  # one a combination
        order = np.argsort(-sums.ravel(), kind="stable")[:most]
        pairs = [divmod(place, len(nearest)) for place in order.tolist()]
        best = [(best[i][0] + nearest[j][0], float(sums[i, j])) for i, j in pairs]
    return best


def _log_sum(logprobs: Iterable[float]) -> float:
    """The log of the sum of the exponentials."""
    values = list(logprobs)
    top = max(values)
    return top + math.log(math.fsum(math.exp(x - top) for x in values))
