"""A text's score by word.

N counted tokens, W words. A word includes the white space after it (what Unicode calls so, line
ends and tabs included). White space at the beginning of a text is a word of its own. The end of the
text (eos), if it is counted, belongs to the last word; after white space it is a word of its own,
without text.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.decoding.rows import TokenDetails

# Divides any text completely: only its first word can begin with white space.
_WORD = re.compile(r"\s+|\S+\s*")


@dataclass(frozen=True, slots=True)
class ScoredWord:
    """A word and its share of the text's log-probability."""

    text: str  # with the white space after it
    start: int  # characters before it in the normalized text, without skipped ones
    end: int
    chars: int  # that `logprob` counts
    logprob: float  # nats

    @property
    def bits(self) -> float:
        """Its surprisal."""
        # Not -0.0 for a word that is certain.
        return -self.logprob / math.log(2) + 0.0


class ScoredWords:
    """The words of a text, built one by one: as objects they take more room than the text."""

    def __init__(
        self, text: str, details: Sequence[TokenDetails], *, uncounted: int, eos: bool
    ) -> None:
        """`details` of the N counted tokens of `text`; its first `uncounted` tokens have none."""
        self._text = text
        self._uncounted = uncounted
        self._ends = [match.end() for match in _WORD.finditer(text)]
        if eos and (not text or text[-1].isspace()):
            self._ends.append(len(text))
        counts = np.array(self._ends, np.int64) - uncounted  # [W] tokens up to each word's end
        if eos:
            counts[-1] += 1
        logprobs = [part.logprob for part in details]
        sums = np.add.accumulate(np.concatenate([np.zeros(1), *logprobs]))  # [1 + N]
        self._logprobs = exact_shares(sums[counts])

    def __iter__(self) -> Iterator[ScoredWord]:
        start = 0
        for end, logprob in zip(self._ends, self._logprobs.tolist(), strict=True):
            chars = end - max(start, self._uncounted)
            yield ScoredWord(self._text[start:end], start, end, chars, logprob)
            start = end


def exact_shares(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The steps between running `sums` [W], which add up to the last one exactly.

    Differences of floating-point numbers do not add up to the last bit. So every sum is first
    rounded to a multiple of the total's last bit. Then each difference, and each sum of differences
    in any order, is a multiple of that bit with no more digits than the total, and nothing is
    rounded again. A step changes by at most that bit. This needs steps that are not above 0, as
    log-probabilities are.
    """
    if not len(sums) or sums[-1] == 0.0:
        return np.zeros_like(sums)
    bit = np.spacing(abs(sums[-1]))
    return np.diff(np.rint(sums / bit) * bit, prepend=0.0)
