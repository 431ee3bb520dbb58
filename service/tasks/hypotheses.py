"""Hypotheses become texts, with alignments and copied words where asked for.

T target tokens, M positions of the memory.
"""

from collections.abc import Sequence

import numpy as np

from service.bundle.arrays import Float32Array
from service.bundle.text import EOS_ID, UNK_ID
from service.decoding.constraints import Constraint
from service.decoding.search import Hypothesis, Search
from service.tasks.confidence import confidence_of, confidences
from service.tasks.sides import Sides, SideText
from service.tasks.translations import TokenLogprob, Translated, TranslateOptions, Translation


class HypothesisTexts:
    """Makes the results of one request."""

    def __init__(
        self,
        sides: Sides,
        options: TranslateOptions,
        seed: int | None,
        constraint: Constraint | None,
    ) -> None:
        """`seed` is the seed of samples."""
        self._sides = sides
        self._options = options
        self._seed = seed
        self._constraint = constraint
        self._confidence = confidence_of(sides.manifest.confidence, options)

    def of(self, source: SideText, search: Search) -> Translated:
        """The targets of a source whose search has ended."""
        places = self._places(source) if search.wants_attention else []
        eos = self._sides.source.tokenizer.tokens[EOS_ID]
        names = [*places[:-1], places[-1] + eos] if places else []
        values = confidences(self._confidence, search)
        least = self._options.min_confidence
        translations = tuple(
            self._translation(places, found, value)
            for found, value in zip(search.best(), values, strict=True)
            if least is None or (value is not None and value >= least)
        )
        return Translated(
            translations,
            least is not None and not translations,
            source.unknown,
            tuple(names) if self._options.return_alignments else None,
            self._seed,
            len(source.ids) - 1,
        )

    def of_blank(self, source: SideText) -> Translated:
        """An empty target with probability 1: training has no blank sources."""
        has_map = self._sides.manifest.confidence is not None and self._options.rule is None
        aligns = self._options.return_alignments
        nothing = Translation(
            text="",
            logprob=0.0,
            score=0.0,
            confidence=1.0 if has_map else None,
            finish_reason="stop",
            tokens=() if self._options.tokens else None,
            alignment=np.empty((0, 1), np.float32) if aligns else None,
            completion_tokens=0,
            matched=self._matched(()),
        )
        names = (self._sides.source.tokenizer.tokens[EOS_ID],) if aligns else None
        return Translated((nothing,), False, source.unknown, names, self._seed, 0)

    def _places(self, source: SideText) -> list[str]:
        """The text that each position of the memory stands for; eos has none."""
        stride = self._sides.manifest.memory_stride
        side = self._sides.source
        spans = side.tokenizer.spans(source.text)
        pieces = [source.text[start:end] for start, end in spans] + [""]
        # A subword's span includes the blank before it; a symbol's span does not.
        blank = " " if side.rules.tokenization == "whitespace" else ""
        parts = [pieces[i : i + stride] for i in range(0, len(pieces), stride)]
        return [blank.join(x for x in part if x) for part in parts]

    def _translation(
        self, places: list[str], found: Hypothesis, confidence: float | None
    ) -> Translation:
        options, target = self._options, self._sides.target.tokenizer
        attention = None if found.attention is None else found.attention[:, : len(places)]
        pieces = [target.tokens[i] for i in found.tokens]
        if options.copy_unknown and attention is not None:
            pieces = _copied(places, found, pieces, attention)
        ended = found.tokens[-1:] == (EOS_ID,)
        text_pieces = pieces[:-1] if ended else pieces
        tokens = None
        if options.tokens:
            tokens = tuple(
                TokenLogprob(target.tokens[token], logprob)
                for token, logprob in zip(found.tokens, found.token_logprobs, strict=True)
            )
        return Translation(
            text=target.join(text_pieces),
            logprob=found.logprob,
            score=found.score(options.length_penalty),
            confidence=confidence,
            finish_reason=found.finish_reason,
            tokens=tokens,
            alignment=attention if options.return_alignments else None,
            completion_tokens=len(found.tokens),
            matched=self._matched(found.tokens[:-1] if ended else found.tokens),
        )

    def _matched(self, tokens: Sequence[int]) -> bool | None:
        return None if self._constraint is None else self._constraint.matches(tokens)


def _copied(
    places: Sequence[str],
    found: Hypothesis,
    pieces: Sequence[str],
    attention: Float32Array,  # [T, M]
) -> list[str]:
    """The pieces; each unknown one becomes the source text that it attends to most."""
    likeliest = attention.argmax(axis=1).tolist()
    copied = [
        places[place] if token == UNK_ID else piece
        for token, piece, place in zip(found.tokens, pieces, likeliest, strict=True)
    ]
    # The end of the source has no text to copy.
    return [piece for piece in copied if piece]
