"""The texts of one `infill` request of a language model, from texts to plans to fills."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.text import BOS_ID, PAD_ID, UNK_ID
from service.decoding.rows import Continuation, ReadRow
from service.errors import InvalidRequest
from service.scheduling.language_model import TextWork
from service.tasks.branches import Branch, Piece
from service.tasks.comparing import Bounds, Compared, compare_listed, compare_proposed
from service.tasks.infill_limits import kept_between_blanks
from service.tasks.infill_values import Blanks, Fill, Infilled, InfillOptions, Proposal
from service.tasks.open_blanks import OpenBlank
from service.tasks.plans import Plan
from service.tasks.proposing import DEFAULT_NUM_PROPOSALS, BlankSearch, Effort, most_held
from service.tasks.seed import drawn_seed
from service.tasks.text_model import TextModel, read_after
from service.tasks.unknown import MAX_POSITIONS, Unknown

# What one row of a round costs, in characters of work on text.
_CHARS_A_ROW = 32
# Most rows in a round of the texts that run together, unless a single text has more.
ROWS_IN_HAND = 1024


class Infilling:
    """Call `read`, run `prefixes` and then the plans, group by group, and take the results."""

    def __init__(
        self,
        model: TextModel,
        texts: Sequence[Blanks],
        options: InfillOptions,
        blank: OpenBlank | None,
        proposals: Sequence[Sequence[Proposal]] | None = None,
    ) -> None:
        """`options` must be checked; `blank` is None where candidates are listed."""
        self._model = model
        self._options = options
        self._search: BlankSearch | None = None
        if blank is not None:
            count = options.num_proposals or DEFAULT_NUM_PROPOSALS
            effort = Effort.of(count, len(model.tokens))
            self._search = BlankSearch(blank, effort, drawn_seed(options.seed))
        self._given = list(zip(texts, proposals or [()] * len(texts), strict=True))
        self._texts: list[_Text] = []
        self._candidates: list[Ids] = []
        self._written: dict[bytes, str] = {}  # candidates as the client wrote them, by their ids
        self.size = sum(len(piece) for text in texts for piece in text.pieces)

    def read(self) -> None:
        """Turn the texts into ids. Raises InvalidRequest."""
        self._list_candidates()
        self._texts = [self._text(*pair) for pair in self._given]

    @property
    def prefixes(self) -> list[TextWork]:
        """What stands before the first blanks, to be read first."""
        return [TextWork(x.prefix) for x in self._texts if x.prefix is not None]

    @property
    def rows(self) -> int:
        """The most rows of a text in a round, roughly."""
        if self._search is None or self._candidates:
            count = max(1, len(self._candidates))
            blanks = max((len(text.pieces) - 1 for text, _ in self._given), default=1)
            combinations: int = count ** (blanks - 1)  # of the texts before the last one
            kept = min(combinations, kept_between_blanks(count, self._model.settings))
            return min(count * kept, self._most_rows)
        return self._search.effort.looked

    @property
    def _most_rows(self) -> int:
        """The most candidates of a text that are read at once."""
        return min(ROWS_IN_HAND, most_held(len(self._model.tokens)))

    @property
    def round_size(self) -> int:
        """What a round of one text costs, in characters of work on text."""
        return _CHARS_A_ROW * self.rows

    def groups(self) -> Iterator[list[Plan[Compared]]]:
        """The plans of all texts, in groups that may run together."""
        size = max(1, ROWS_IN_HAND // self.rows)
        for start in range(0, len(self._texts), size):
            yield [self._plan(text) for text in self._texts[start : start + size]]

    def results(self, compared: Sequence[Compared], reused: Sequence[int]) -> list[Infilled]:
        """The fills of each text; `reused` has the tokens of each prefix that needed no run."""
        left = iter(reused)
        return [
            self._result(text, found, 0 if text.prefix is None else next(left))
            for text, found in zip(self._texts, compared, strict=True)
        ]

    # --- reading --------------------------------------------------------------------------------

    def _list_candidates(self) -> None:
        """Each candidate once: candidates with the same ids count as one."""
        if self._search is not None and self._search.blank.longest == 1:
            self._candidates = self._search.blank.characters()
        for text in self._options.candidates or ():
            ids, _ = self._model.read(text, self._options.unknown, "candidates")
            if ids.tobytes() not in self._written:
                self._written[ids.tobytes()] = text
                self._candidates.append(ids)

    def _text(self, blanks: Blanks, proposals: Sequence[Proposal]) -> "_Text":
        options = self._options
        pieces: list[Ids] = []
        unknown: list[int] = []
        count = position = 0
        for i, text in enumerate(blanks.pieces):
            ids, found = self._model.read(text, options.unknown, "suffix" if i else "prefix")
            pieces.append(ids)
            unknown += [position + place for place in found.positions]
            count += found.count
            position += len(ids) + (found.count if options.unknown == "skip" else 0)
        tokens = np.append([BOS_ID], pieces[0]).astype(np.uint16) if options.bos else pieces[0]
        if self._search is not None and not len(tokens):
            raise InvalidRequest.of_option(
                "bos", "must be true if nothing stands before an open blank"
            )
        counts_nothing = np.full_like(tokens, PAD_ID)
        last = len(pieces) - 1
        return _Text(
            prefix=read_after(None, tokens, counts_nothing, None) if len(tokens) else None,
            pieces=tuple(
                Piece(ids, is_last=i == last, eos=i == last and options.eos)
                for i, ids in enumerate(pieces)
            )[1:],
            unknown=Unknown(count, tuple(unknown[:MAX_POSITIONS])),
            proposed=self._proposed(proposals, last),
        )

    def _proposed(self, proposals: Sequence[Proposal], blanks: int) -> list[tuple[Ids, ...]]:
        """The proposals of another model that fit the blanks and that this model can write."""
        if self._search is None:
            return []
        blank, found = self._search.blank, {}
        for proposal in proposals:
            fills = tuple(self._model.encode(text) for text in proposal.texts)
            known = not any((ids == UNK_ID).any() for ids in fills)
            if known and len(fills) == blanks and all(map(blank.fits, fills)):
                found[tuple(ids.tobytes() for ids in fills)] = fills
        return list(found.values())

    # --- comparing ------------------------------------------------------------------------------

    def _plan(self, text: "_Text") -> Plan[Compared]:
        start = None if text.prefix is None else text.prefix.continuation
        if self._search is None or self._candidates or start is None:
            return self._plan_listed(start, text)
        most = self._options.num_fills
        return compare_proposed(start, text.pieces, self._search, text.proposed, most)

    def _plan_listed(self, start: Continuation | None, text: "_Text") -> Plan[Compared]:
        bounds = Bounds(
            kept=kept_between_blanks(len(self._candidates), self._model.settings),
            at_once=self._most_rows,
            answered=self._options.num_fills,
        )
        return compare_listed(start, text.pieces, self._candidates, bounds, text.proposed)

    def _result(self, text: "_Text", compared: Compared, reused: int) -> Infilled:
        options, search = self._options, self._search
        mass = None
        if search is not None:
            mass = min(1.0, compared.mass() / search.blank.num_lengths ** len(text.pieces))
        read = 0 if text.prefix is None else len(text.prefix.tokens) - int(options.bos)
        return Infilled(
            tuple(map(self._fill, compared.branches, compared.shares())),
            compared=len(compared.totals),
            found_mass=mass,
            seed=None if search is None else search.seed,
            unknown=text.unknown,
            prompt_tokens=read + compared.read,
            completion_tokens=compared.written,
            cached_tokens=min(reused, read),
        )

    def _fill(self, branch: Branch, share: float) -> Fill:
        decode = self._model.vocab.decode
        texts = tuple(self._written.get(ids.tobytes()) or decode(ids) for ids in branch.fills)
        return Fill(texts, branch.logprob, branch.suffix_logprob, share)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Text:
    """A text around its blanks, as ids."""

    prefix: ReadRow | None  # None where nothing stands before the first blank
    pieces: tuple[Piece, ...]  # what stands after each blank
    unknown: Unknown
    proposed: list[tuple[Ids, ...]]  # by another model, one text a blank
