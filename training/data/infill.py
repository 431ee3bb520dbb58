"""Pairs for filling blanks, made from a person's own text: a text with blanks, and their texts.

The text is prepared and split as for a language model, and nothing else is stored: held-out pairs
are drawn from it with fixed seeds, training pairs anew in each epoch. Several blanks in a text
teach more a step; held-out texts have one each, since one is what is usually asked for.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.bundle.infill import MARKS, Infill, infill_of
from service.bundle.text import SPECIAL_TOKENS
from service.bundle.tokenization import Characters
from training.config import InfillConfig, SpansConfig
from training.data import corpus as corpora
from training.data.corpus import Corpus, Split
from training.data.pairs import PairCorpus, PairSplit
from training.data.spans import SpanDrawing

_EPOCH = 2048  # texts that are drawn at once
_SAMPLED = 2048  # training texts that stand for all of them, for lengths and floors
_SEED = 18  # of held-out texts: the same in every run


@dataclass(frozen=True, slots=True)
class InfillCorpus:
    """A prepared text and the pairs that are drawn from it."""

    text: Corpus
    pairs: PairCorpus

    @property
    def sha256(self) -> str:
        """Of the files of the text."""
        return self.text.sha256


def prepare(
    config: InfillConfig, base: Path, folder: Path, known: tuple[str, ...] = ()
) -> InfillCorpus:
    """The text in `folder`; `known` tokens keep their ids. Raises ConfigError."""
    tokens = known or (*SPECIAL_TOKENS, *MARKS)
    text = corpora.prepare(config.data, base, folder, tokens)
    corpora.check_held_out(config.data, text)
    return InfillCorpus(text, _pairs(text, config.spans, config.seed))


def load(config: InfillConfig, folder: Path) -> InfillCorpus:
    """What `prepare` wrote. Raises ConfigError."""
    text = corpora.load(folder)
    return InfillCorpus(text, _pairs(text, config.spans, config.seed))


def infill_options(spans: SpansConfig) -> Infill:
    """How blanks are read and written."""
    return infill_of(context=spans.context, max_blanks=spans.max_blanks, max_chars=spans.max_chars)


def _pairs(text: Corpus, spans: SpansConfig, seed: int) -> PairCorpus:
    tokenizer = Characters(text.vocab.tokens)
    infill = infill_options(spans)

    single = spans.model_copy(update={"max_blanks": 1})

    def drawn(
        name: str, split: Split, count: int, *seeds: int, options: SpansConfig = spans
    ) -> PairSplit:
        drawing = SpanDrawing(split, text.vocab.tokens, options)
        found = list(drawing.texts(count, np.random.default_rng(seeds)))
        pairs = [
            (infill.source(x.pieces, begins=x.begins, ends=x.ends), infill.target(x.texts))
            for x in found
        ]
        sources = [tokenizer.encode(source) for source, _ in pairs]
        return PairSplit(name, pairs, sources, [tokenizer.encode(target) for _, target in pairs])

    train = drawn("train", text.train, _SAMPLED, _SEED)
    valid = drawn("valid", text.valid, spans.valid_texts, _SEED, options=single)
    tests = []
    if text.test.chars:
        tests = [drawn("test", text.test, spans.test_texts, _SEED, options=single)]
    return PairCorpus(
        tokenizer,
        tokenizer,
        text.sha256,
        train,
        valid,
        tests,
        text.counts,
        drawn=lambda epoch: drawn("train", text.train, _EPOCH, seed, epoch),
        readable=infill.readable,
    )
