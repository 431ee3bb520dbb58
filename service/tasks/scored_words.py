"""A text's score by word.

N counted tokens, W words. A word is what stands between blanks, together with the blanks that end
it. A blank is a character that Unicode calls white space; line ends and tabs are some. Blanks at
the beginning of a text end nothing and are a word of their own. The end of the text (eos), where it
is counted, belongs to the word that it ends; after a blank it is a word of its own, without text.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.decoding.rows import TokenDetails

# Takes every text apart without a rest: blanks can only be first at its beginning.
_WORD = re.compile(r"\s+|\S+\s*")


@dataclass(frozen=True, slots=True)
class ScoredWord:
    """A word and its share of the text's log-probability."""

    text: str  # with the blanks that end it
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
    """The words of a text, each built when it is reached: objects take more room than the text."""

    def __init__(
        self, text: str, details: Sequence[TokenDetails], *, uncounted: int, eos: bool
    ) -> None:
        """`details` of the N counted tokens of `text`, whose first `uncounted` are none of them."""
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

    Differences of floating-point numbers do not add up to the last bit. Here every sum is first
    rounded to a multiple of the total's last bit: then each difference, and each sum of
    differences in whatever order, is a multiple of that bit with no more digits than the total,
    and nothing is rounded again. A step moves by at most that bit. Holds as long as no step is
    above 0, which no log-probability is.
    """
    if not len(sums) or sums[-1] == 0.0:
        return np.zeros_like(sums)
    bit = np.spacing(abs(sums[-1]))
    return np.diff(np.rint(sums / bit) * bit, prepend=0.0)
