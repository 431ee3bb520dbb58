"""Gaps in held-out text: what `bench.infill` asks for."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_letters

import numpy as np

from bench.infill_exact import Blank
from bench.server import ROOT
from service.bundle.text import SPECIAL_TOKENS, UNK_ID, Vocabulary
from service.decoding.constraints import Pattern
from service.tasks.infill_values import Blanks, InfillOptions
from service.tasks.proposing import DEFAULT_NUM_PROPOSALS
from training.config import NGramLanguageModelConfig, load_config
from training.data import corpus as corpora
from training.data.corpus import Split

PREFIX_CHARS, SUFFIX_CHARS = 300, 50
NUM_FILLS = 20
_SEED = 1
_MAX_WORD = 16
_WORD = re.compile(f"(?<![a-zA-Z])[a-zA-Z]{{1,{_MAX_WORD}}}(?![a-zA-Z])")


@dataclass(frozen=True, slots=True)
class Gap:
    """A piece of a text that is taken out of it."""

    prefix: str
    truth: str
    suffix: str

    @property
    def blanks(self) -> Blanks:
        """The text without it."""
        return Blanks((self.prefix, self.suffix))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A text, cut as its configuration says."""

    vocab: Vocabulary
    train: Split
    test: str
    order: int  # of the n-gram that its configuration counts


@dataclass(frozen=True, slots=True)
class Size:
    """A kind of gap, and what is said of it to the models."""

    name: str
    length: int | None  # in characters; None: a word
    num_proposals: int = DEFAULT_NUM_PROPOSALS

    @property
    def longest(self) -> int:
        """Most characters of it."""
        return _MAX_WORD if self.length is None else self.length

    @property
    def options(self) -> InfillOptions:
        """What `/infill` is asked for."""
        count = self.num_proposals
        asked = InfillOptions(num_fills=count, num_proposals=count, seed=_SEED)
        if self.length is None:
            return replace(asked, rule=Pattern("[a-zA-Z]+"), max_tokens=self.longest)
        return replace(asked, length=self.length)

    def blank(self, vocab: Vocabulary) -> Blank:
        """The same for the exact n-gram."""
        if self.length is None:
            allowed = [len(token) == 1 and token in ascii_letters for token in vocab.tokens]
            return Blank(np.array(allowed), range(1, self.longest + 1))
        return Blank(np.arange(len(vocab)) > UNK_ID, range(self.length, self.length + 1))

    def gaps(self, text: str, count: int) -> list[Gap]:
        """At most so many gaps at random places, in order, without unknown characters around."""
        found = []
        for begin, end in self._places(text):
            gap = Gap(
                text[begin - PREFIX_CHARS : begin], text[begin:end], text[end : end + SUFFIX_CHARS]
            )
            if SPECIAL_TOKENS[UNK_ID] not in gap.prefix + gap.truth + gap.suffix:
                found.append((begin, gap))
            if len(found) == count:
                break
        return [gap for _, gap in sorted(found, key=lambda place: place[0])]

    def _places(self, text: str) -> list[tuple[int, int]]:
        """Every place of such a gap, shuffled; the same on every run."""
        first, last = PREFIX_CHARS, len(text) - SUFFIX_CHARS
        if self.length is None:
            words = (match.span() for match in _WORD.finditer(text))
            places = [(begin, end) for begin, end in words if first <= begin and end <= last]
        else:
            places = [(i, i + self.length) for i in range(first, last - self.length + 1)]
        random.Random(_SEED).shuffle(places)
        return places


_LENGTHS: Mapping[str, int | None] = {"1": 1, "2": 2, "5": 5, "10": 10, "word": None}
SIZES: Sequence[Size] = [Size(name, length) for name, length in _LENGTHS.items()]


def held_out(name: str) -> HeldOut:
    """The text of training/configs/NAME-ngram.toml."""
    path = ROOT / "training" / "configs" / f"{name}-ngram.toml"
    config = load_config(path)
    if not isinstance(config, NGramLanguageModelConfig):
        raise TypeError(f"{path} does not count an n-gram")
    folder = Path(ROOT, "bench", ".work", "infill", name)
    corpus = corpora.prepare(config.data, path.parent, folder)
    # Unknown characters keep their printed form, which no text has, so that gaps avoid them.
    test = "".join(corpus.vocab.tokens[i] for i in corpus.held_out.ids[1:-1])
    return HeldOut(corpus.vocab, corpus.train, test, config.model.order)
