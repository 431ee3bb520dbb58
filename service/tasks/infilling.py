"""The texts of one `infill` request of a language model, from texts to plans to fills."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.text import BOS_ID, PAD_ID
from service.decoding.rows import ReadRow
from service.scheduling.language_model import TextWork
from service.tasks.branches import Branch, Piece, extended
from service.tasks.infill_limits import kept_between_blanks
from service.tasks.infill_values import Blanks, Fill, Infilled, InfillOptions, Proposal
from service.tasks.plans import Plan
from service.tasks.text_model import TextModel, read_after
from service.tasks.unknown import MAX_POSITIONS, Unknown

# Branches that the texts which run together hold at most: each has the states of its own.
ROWS_IN_HAND = 1024


class Infilling:
    """Call `read`, run `prefixes` and then the plans, group by group, and take the results."""

    def __init__(
        self,
        model: TextModel,
        texts: Sequence[Blanks],
        options: InfillOptions,
        proposals: Sequence[Sequence[Proposal]] | None = None,
    ) -> None:
        """`options` must be checked."""
        self._proposals = proposals or [()] * len(texts)
        self._model = model
        self._options = options
        self._blanks = texts
        self._texts: list[_Text] = []
        self._candidates: list[_Candidate] = []
        self.size = sum(len(piece) for text in texts for piece in text.pieces)

    def read(self) -> None:
        """Turn the texts into ids. Raises InvalidRequest."""
        self._candidates = self._listed(self._options.candidates or ())
        pairs = zip(self._blanks, self._proposals, strict=True)
        self._texts = [self._text(*pair) for pair in pairs]

    @property
    def prefixes(self) -> list[TextWork]:
        """What stands before the first blanks, to be read first."""
        return [TextWork(x.prefix) for x in self._texts if x.prefix is not None]

    def groups(self) -> "Iterator[list[Plan[_Compared]]]":
        """The plans of all texts, in groups that may run together."""
        size = max(1, ROWS_IN_HAND // max(1, len(self._candidates)))
        for start in range(0, len(self._texts), size):
            yield [self._compare(text) for text in self._texts[start : start + size]]

    def results(self, compared: "Sequence[_Compared]", reused: Sequence[int]) -> list[Infilled]:
        """The fills of each text; `reused` has the tokens of each prefix that needed no run."""
        left = iter(reused)
        return [
            self._result(text, found, 0 if text.prefix is None else next(left))
            for text, found in zip(self._texts, compared, strict=True)
        ]

    # --- reading --------------------------------------------------------------------------------

    def _listed(self, candidates: Sequence[str]) -> "list[_Candidate]":
        """The candidates, each once: those that read alike are one."""
        known: dict[bytes, _Candidate] = {}
        for text in candidates:
            ids, unknown = self._model.read(text, self._options.unknown, "candidates")
            is_told_apart = unknown.count and self._options.unknown == "unk"
            key = text.encode("utf-8", "surrogatepass") if is_told_apart else ids.tobytes()
            known.setdefault(key, _Candidate(text, ids))
        return list(known.values())

    def _text(self, blanks: Blanks, proposals: Sequence[Proposal]) -> "_Text":
        options = self._options
        pieces: list[Ids] = []
        unknown: list[int] = []
        count = position = 0
        for i, piece in enumerate(blanks.pieces):
            ids, found = self._model.read(piece, options.unknown, "suffix" if i else "prefix")
            pieces.append(ids)
            unknown += [position + place for place in found.positions]
            count += found.count
            position += len(ids) + (found.count if options.unknown == "skip" else 0)
        tokens = np.append([BOS_ID], pieces[0]).astype(np.uint16) if options.bos else pieces[0]
        prefix = None
        if len(tokens):
            prefix = read_after(None, tokens, np.full_like(tokens, PAD_ID), None)
        after = [
            Piece(ids, is_last=is_last, eos=is_last and options.eos)
            for is_last, ids in ((i == len(pieces) - 1, ids) for i, ids in enumerate(pieces))
        ][1:]
        proposed = [[_Candidate(x, self._model.encode(x)) for x in y.texts] for y in proposals]
        return _Text(prefix, tuple(after), Unknown(count, tuple(unknown[:MAX_POSITIONS])), proposed)

    # --- comparing ------------------------------------------------------------------------------

    def _compare(self, text: "_Text") -> "Plan[_Compared]":
        """What is compared for a text."""
        return self._compare_listed(text) if self._candidates else self._compare_proposed(text)

    def _compare_proposed(self, text: "_Text") -> "Plan[_Compared]":
        start = Branch(None if text.prefix is None else text.prefix.continuation)
        branches = [start] * len(text.proposed)
        tokens = 0
        for i, piece in enumerate(text.after):
            fills = [proposal[i].ids for proposal in text.proposed]
            branches = yield from extended(branches, fills, piece)
            tokens += sum(map(len, fills)) + len(fills) * len(piece.ids)
        names = [tuple(x.text for x in proposal) for proposal in text.proposed]
        return _Compared(branches, names, tokens)

    def _compare_listed(self, text: "_Text") -> "Plan[_Compared]":
        """Every combination of candidates; of many, a beam over the blanks from left to right."""
        branches = [Branch(None if text.prefix is None else text.prefix.continuation)]
        most = kept_between_blanks(len(self._candidates), self._model.settings)
        chosen: list[tuple[int, ...]] = [()]
        tokens = 0
        for piece in text.after:
            pairs = [(i, k) for i in range(len(branches)) for k in range(len(self._candidates))]
            fills = [self._candidates[k].ids for _, k in pairs]
            branches = yield from extended([branches[i] for i, _ in pairs], fills, piece)
            chosen = [(*chosen[i], k) for i, k in pairs]
            tokens += sum(map(len, fills)) + len(fills) * len(piece.ids)
            if not piece.is_last and len(branches) > most:
                kept = _likeliest(branches)[:most]
                branches, chosen = [branches[i] for i in kept], [chosen[i] for i in kept]
        names = [tuple(self._candidates[k].text for k in combination) for combination in chosen]
        return _Compared(branches, names, tokens)

    def _result(self, text: "_Text", compared: "_Compared", reused: int) -> Infilled:
        options, branches = self._options, compared.branches
        shares = _shares(branches)
        fills = tuple(
            Fill(
                compared.texts[i],
                branches[i].logprob,
                branches[i].suffix_logprob,
                shares[i],
            )
            for i in _likeliest(branches)[: options.num_fills]
        )
        read = 0 if text.prefix is None else len(text.prefix.tokens) - int(options.bos)
        return Infilled(
            fills,
            compared=len(branches),
            found_mass=None,
            seed=None,
            unknown=text.unknown,
            prompt_tokens=read + compared.tokens,
            completion_tokens=0,
            cached_tokens=min(reused, read),
        )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What a blank may be."""

    text: str  # as the client wrote it
    ids: Ids


@dataclass(frozen=True, slots=True)
class _Text:
    """A text around its blanks, as ids."""

    prefix: ReadRow | None  # None where nothing stands before the first blank
    after: tuple[Piece, ...]  # what stands after each blank
    unknown: Unknown
    proposed: "list[list[_Candidate]]"  # by another model, one a blank


@dataclass(frozen=True, slots=True)
class _Compared:
    """What was compared for one text."""

    branches: list[Branch]
    texts: list[tuple[str, ...]]  # of each branch, one a blank
    tokens: int  # that were read for it


def _shares(branches: Sequence[Branch]) -> list[float]:
    """Of the joint probability of all of them."""
    totals = np.array([branch.total for branch in branches])
    shares = np.exp(totals - totals.max(initial=-np.inf))
    shares /= shares.sum()
    found: list[float] = shares.tolist()
    return found


def _likeliest(branches: Sequence[Branch]) -> list[int]:
    """Their places, likeliest first; ties keep their order."""
    return sorted(range(len(branches)), key=lambda i: -branches[i].total)
