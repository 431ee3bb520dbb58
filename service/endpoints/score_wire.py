"""The wire of `/score` with a JSON body."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from service.bundle.guesses import NEVER, Guesses
from service.http.wire import (
    ADAPT,
    MAX_ALTERNATIVES,
    UNKNOWN,
    UNKNOWN_CHARS,
    AlternativeOut,
    Answer,
    RequestBody,
    TextList,
    Texts,
    Usage,
    alternatives,
    unknown_fields,
)
from service.tasks.engine import Engine
from service.tasks.percentiles import Standing
from service.tasks.scored_tokens import ScoredToken
from service.tasks.values import Scored, ScoreOptions

_LN_2 = math.log(2)

GUESSES = (
    "Estimate how many guesses each text takes if texts are tried from the likeliest down. Only "
    "for models whose details have `guesses`, and for whole texts: `eos` is then true."
)
UNITS = (
    "`word`: also return the score of every word. White space belongs to the word before it. Only "
    "for models of characters."
)


class ScoreRequest(RequestBody):
    """The probability of one text or of a list of texts, for an encoder-decoder given sources.

    Of a classifier: the probability of a label given the text.
    """

    text: Texts = Field(description="A text or a list of texts; it may be empty.")
    source: str | TextList | None = Field(
        None,
        description="Encoder-decoders: what the text is a translation of, which may not be blank; "
        "one for all, or one for each text.",
    )
    context: str | TextList = Field(
        "", description="Read before the text and not counted: one for all, or one for each text."
    )
    label: str | TextList | None = Field(
        None,
        description="Classifiers: the label whose probability, given the text, is returned; one "
        "for all, or one for each text. Of the other options, only `unknown` can be combined with "
        "it.",
    )
    tokens: bool = Field(False, description="Return every counted character with its figures.")
    top_logprobs: int = Field(
        0, ge=0, le=MAX_ALTERNATIVES, description="With `tokens`: alternatives for each character."
    )
    units: Literal["word"] | None = Field(None, description=UNITS)
    guesses: bool = Field(False, description=GUESSES)
    bos: bool = Field(
        True,
        description="The text (or its context) begins a document. Where it does not and there is "
        "no context, the first character has no probability and is not counted.",
    )
    eos: bool | None = Field(
        None,
        description="The text ends there: count the end, too. Left out, it is false for a language "
        "model, and true for an encoder-decoder.",
    )
    unknown: Literal["unk", "error", "skip"] = Field(
        "unk",
        description="Characters outside the vocabulary: score them as the unknown token, refuse "
        "the text, or leave them out.",
    )
    adapt: bool = Field(
        False,
        description="Learn from the context and the text, from each character after it has been "
        "scored; only for models whose `adapts` is true. No text learns from another.",
    )
    percentile: bool = Field(
        False,
        description="Report where each text ranks among held-out texts of its length. Only for "
        "language models with a table of such texts, and if the text is scored as they were: no "
        "context, no state, no `adapt`, and neither `bos` false nor `unknown` skip.",
    )
    state: str | None = Field(
        None,
        description="Language models: a state that this model answered. Every text is scored as "
        "going on from there, in one batch; there is no bos and no context then.",
    )
    return_state: bool = Field(
        False, description="Language models: give each text's state, to go on from it."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        texts = [self.text] if isinstance(self.text, str) else self.text
        if isinstance(self.context, list) and len(self.context) != len(texts):
            raise ValueError("a list of contexts holds one for each text")
        if isinstance(self.source, list) and len(self.source) != len(texts):
            raise ValueError("a list of sources holds one for each text")
        if isinstance(self.label, list) and len(self.label) != len(texts):
            raise ValueError("a list of labels holds one for each text")
        if self.label is not None and (self.context or self.source is not None):
            raise ValueError("context, source: not together with label")
        if self.top_logprobs and not self.tokens:
            raise ValueError("top_logprobs needs tokens: true")
        return self

    def contexts(self, count: int) -> list[str] | None:
        """One context for each text; None if there are none."""
        if not self.context:
            return None
        return self.context if isinstance(self.context, list) else [self.context] * count

    def sources(self, count: int) -> list[str] | None:
        """One source for each text; None if there are none."""
        if self.source is None:
            return None
        return self.source if isinstance(self.source, list) else [self.source] * count

    def labels(self, count: int) -> list[str] | None:
        """One label for each text; None if there are none."""
        if self.label is None:
            return None
        return self.label if isinstance(self.label, list) else [self.label] * count

    def options(self) -> ScoreOptions:
        """The engine's options."""
        return ScoreOptions(
            tokens=self.tokens,
            top_logprobs=self.top_logprobs,
            guesses=self.guesses,
            units=self.units,
            bos=self.bos if "bos" in self.model_fields_set else None,
            eos=self.eos,
            unknown=self.unknown,
            percentile=self.percentile,
            state=self.state,
            return_state=self.return_state,
            adapt=self.adapt,
        )


class ScoreToken(Answer):
    """A counted token."""

    token: str = Field(description="The character; eos prints as U+E002, an unknown one as U+E003.")
    logprob: float | None = Field(description="Natural log of its probability.")
    surprisal_bits: float | None = Field(description="The same in bits, and positive.")
    entropy_bits: float | None = Field(description="Expected surprisal before it was seen.")
    rank: int | None = Field(description="1 is the likeliest token.")
    top: list[AlternativeOut] = Field(description="The likeliest tokens there, likeliest first.")

    @classmethod
    def of(cls, token: ScoredToken) -> "ScoreToken":
        """From the engine's token."""
        surprisal = None if token.logprob is None else -token.logprob / _LN_2 + 0.0
        return cls.taken_from(token, surprisal_bits=surprisal, top=alternatives(token))


class ScoreWord(Answer):
    """A word of a text. The log-probabilities of all words add up to that of the text, exactly."""

    text: str = Field(
        description="The word and the white space after it, line ends and tabs included. White "
        "space at the beginning is a word of its own. So is a counted end of the text after white "
        "space; its `text` is empty."
    )
    start: int = Field(description="Characters before it, in the normalized text.")
    end: int = Field(description="Characters up to its end.")
    chars: int = Field(description="Characters that `logprob` counts.")
    logprob: float = Field(
        description="Natural log of its probability. The last word includes the end of the text, "
        "if that is counted."
    )
    bits: float = Field(description="The same in bits, and positive.")


class ScoreFigures(Answer):
    """The score of a text in several units."""

    logprob: float = Field(
        description="Natural log of the text's probability, or of the label's given the text."
    )
    bits: float = Field(description="The same in bits, and positive: the total surprisal.")
    bits_per_char: float | None = Field(description="bits / chars; null without characters.")
    perplexity_per_char: float | None = Field(description="2 ** bits_per_char.")
    chars: int = Field(description="Characters that `logprob` counts; of a label, 0.")
    bos: bool = Field(description="Whether the text was read as a document's beginning.")
    eos: bool = Field(description="Whether `logprob` counts the end of the text.")


class StandingFields(Answer):
    """Where a text ranks among held-out texts of its length."""

    percentile: float | None = Field(
        description="If requested: the percentage of these texts that have fewer bits per "
        "character, as scored in fp32. Null if the bundle has no texts of that length."
    )
    percentile_low: float | None = Field(
        description="Lower end of the 95 % interval of `percentile`."
    )
    percentile_high: float | None = Field(description="Upper end of this interval.")
    percentile_texts: int | None = Field(description="Number of held-out texts of that length.")


def standing_fields(found: Standing | None) -> dict[str, Any]:
    """The values of `StandingFields`."""
    if found is None:
        return dict.fromkeys(StandingFields.model_fields)
    values = (found.percentile, found.low, found.high, found.texts)
    return dict(zip(StandingFields.model_fields, values, strict=True))


class ScoreResult(StandingFields, ScoreFigures):
    """The probability of one text."""

    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)
    # Made one by one as they are written: in a list, each would take 2 kB.
    tokens: Iterable[ScoreToken] | None = Field(description="Every counted token, if requested.")
    words: Iterable[ScoreWord] | None = Field(description="With `units`: every word, in order.")
    guesses: float | None = Field(
        description="If requested: the estimated rank of the text among all texts, the likeliest "
        "first. Null if the text is too rare for the export's samples (`guesses_low` is then a "
        "lower bound), or has unknown characters and would never be tried."
    )
    guesses_low: float | None = Field(description="Lower end of its 95 % interval.")
    guesses_high: float | None = Field(description="Upper end; null if `guesses` is.")
    state: str | None = Field(
        description="If requested. Null after the end of the text, which cannot be continued, and "
        "if nothing was read."
    )

    @classmethod
    def of(cls, scored: Scored) -> "ScoreResult":
        """From the engine's result."""
        tokens = None if scored.tokens is None else map(ScoreToken.of, scored.tokens)
        words = None if scored.words is None else map(ScoreWord.taken_from, scored.words)
        others = unknown_fields(scored.unknown) | standing_fields(scored.standing)
        others |= guess_fields(scored.guesses)
        return cls.taken_from(scored, tokens=tokens, words=words, **others)


def guess_fields(guesses: Guesses | None) -> dict[str, float | None]:
    """The fields `guesses`, `guesses_low` and `guesses_high` of an answer."""
    found = guesses or NEVER
    return {
        "guesses": found.guesses,
        "guesses_low": found.low,
        "guesses_high": found.high,
    }


class ScoreResponse(Answer):
    """Answer of `/score`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    adapt: bool = Field(description=ADAPT)
    results: list[ScoreResult] = Field(description="One for each text, in order.")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(
        cls, engine: Engine, options: ScoreOptions, results: Sequence[Scored]
    ) -> "ScoreResponse":
        """From the engine's options and results."""
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            adapt=options.adapt,
            results=[ScoreResult.of(result) for result in results],
            usage=Usage(
                prompt_tokens=sum(result.prompt_tokens for result in results),
                completion_tokens=0,
                cached_tokens=sum(result.cached_tokens for result in results),
            ),
        )
