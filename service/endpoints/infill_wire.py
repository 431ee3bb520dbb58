"""The wire of `/infill`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from service.decoding.constraints import AllowedChars, Pattern, Rule
from service.http.wire import (
    UNKNOWN,
    UNKNOWN_CHARS,
    Answer,
    RequestBody,
    TextList,
    Texts,
    Usage,
    listed,
    unknown_fields,
)
from service.tasks.cloze_limits import DEFAULT_PROPOSALS
from service.tasks.engine import Engine
from service.tasks.infill_values import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_NUM_FILLS,
    Blanks,
    Fill,
    Infilled,
    InfillOptions,
    one_blank,
)
from service.tasks.proposing import DEFAULT_NUM_PROPOSALS

DEFAULT_BLANK = "___"

Candidates = Annotated[TextList, Field(min_length=1)]


class InfillRequest(RequestBody):
    """Fill the blank between two texts, or the blanks of a text."""

    prefix: Texts | None = Field(None, description="The text before the blank, or a list of texts.")
    suffix: Texts | None = Field(
        None,
        description="The text after the blank: one for all, or a list with one for each prefix. It "
        "may be empty.",
    )
    text: Texts | None = Field(
        None,
        description="Instead of `prefix` and `suffix`: a text with one or more blanks, or a list "
        "of such texts.",
    )
    blank: str = Field(
        DEFAULT_BLANK,
        min_length=1,
        max_length=64,
        description="The string that marks a blank in `text`.",
    )
    candidates: Candidates | None = Field(
        None,
        description="The texts that a blank may have; all are compared. Without candidates the "
        "blank is open, and the model proposes texts.",
    )
    choices: Candidates | None = Field(None, description="Another name of `candidates`.")
    pattern: str | None = Field(
        None, description="An open blank must match this regular expression, as in /generate."
    )
    allowed_chars: str | list[str] | None = Field(
        None, description="An open blank has only these characters, as in /generate."
    )
    length: int | None = Field(
        None, ge=1, description="An open blank has exactly this many characters."
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Most characters of an open blank. The default is "
        f"{DEFAULT_MAX_TOKENS}, or the model's limit if that is less.",
    )
    num_fills: int = Field(DEFAULT_NUM_FILLS, ge=1, description="Most fills for each text.")
    num_proposals: int | None = Field(
        None,
        ge=1,
        description="How many texts a language model compares for an open blank. The default is "
        f"{DEFAULT_NUM_PROPOSALS}. For a blank of one character, it compares all characters. A "
        f"model that was trained to fill blanks compares {DEFAULT_PROPOSALS} by default, and at "
        "most the service's `max_beam_size`.",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Same seed, same proposals. Drawn if it is left out."
    )
    bos: bool = Field(True, description="The text before the first blank begins a document.")
    eos: bool = Field(
        False,
        description="The text after the last blank ends the document, and its end counts, too.",
    )
    unknown: Literal["unk", "error", "skip"] = Field(
        "unk",
        description="Characters outside the vocabulary: read them as the unknown token, reject the "
        "text, or leave them out.",
    )
    rescore: str | None = Field(
        None,
        description="Name of a language model that ranks what `model` proposes, together with its "
        "own proposals. Only if `model` was trained to fill blanks.",
    )
    stream: Literal[False] = Field(
        False, description="Always false: no fill is known before all have been compared."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.text is None) == (self.prefix is None and self.suffix is None):
            raise ValueError("give prefix and suffix, or text with its blanks marked")
        if self.text is None:
            counts = {len(x) for x in (self.prefix, self.suffix) if isinstance(x, list)}
            if len(counts) > 1:
                raise ValueError("a list of suffixes has one for each prefix")
        elif any(self.blank not in text for text in listed(self.text)):
            raise ValueError("text: every text needs a blank, marked by the string in `blank`")
        bounds = {
            "pattern": self.pattern,
            "allowed_chars": self.allowed_chars,
            "candidates": self.candidates,
            "choices": self.choices,
        }
        given = [name for name, value in bounds.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give only one of them")
        if self._candidates is not None:
            for name in ("length", "max_tokens", "num_proposals", "rescore"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: only for open blanks, without {given[0]}")
        return self

    @property
    def _candidates(self) -> list[str] | None:
        return self.candidates if self.choices is None else self.choices

    @property
    def fields(self) -> dict[str, str]:
        """The field for each option of the engine that has another name here."""
        named = {} if self.text is None else {"prefix": "text", "suffix": "text"}
        return named if self.choices is None else named | {"candidates": "choices"}

    def blanks(self) -> list[Blanks]:
        """The texts around their blanks."""
        if self.text is not None:
            return [Blanks(tuple(text.split(self.blank))) for text in listed(self.text)]
        prefix, suffix = self.prefix or "", self.suffix or ""
        count = max(len(x) if isinstance(x, list) else 1 for x in (prefix, suffix))
        return one_blank(_each(prefix, count), _each(suffix, count))

    def options(self) -> InfillOptions:
        """What the engine takes."""
        rule: Rule | None = None
        if self.pattern is not None:
            rule = Pattern(self.pattern)
        elif self.allowed_chars is not None:
            allowed = self.allowed_chars
            rule = AllowedChars(allowed if isinstance(allowed, str) else tuple(allowed))
        return InfillOptions(
            candidates=None if self._candidates is None else tuple(self._candidates),
            rule=rule,
            length=self.length,
            max_tokens=self.max_tokens,
            num_fills=self.num_fills,
            num_proposals=self.num_proposals,
            seed=self.seed,
            bos=self.bos,
            eos=self.eos,
            unknown=self.unknown,
        )


def _each(texts: str | list[str], count: int) -> list[str]:
    return texts if isinstance(texts, list) else [texts] * count


class FillOut(Answer):
    """Texts for the blanks."""

    text: str | None = Field(description="The text of the blank; null if there are several.")
    texts: list[str] = Field(description="The text of each blank.")
    logprob: float = Field(
        description="log p(text | prefix), nats: what the left side alone says. With several "
        "blanks, the sum over their texts, each given everything before it."
    )
    suffix_logprob: float | None = Field(
        description="log p(suffix | prefix, text), nats: what the right side adds. With several "
        "blanks, the sum over what follows each of them. Null if the model reads both sides at "
        "once."
    )
    posterior: float = Field(
        description="The probability given both sides, among all that were compared: "
        "p(text | prefix) p(suffix | prefix, text), normalized."
    )

    @classmethod
    def of(cls, fill: Fill) -> "FillOut":
        """From the engine's fill."""
        text = fill.texts[0] if len(fill.texts) == 1 else None
        return cls.taken_from(fill, text=text, texts=list(fill.texts))


class InfillResult(Answer):
    """The fills of one text."""

    fills: list[FillOut] = Field(description="Likeliest first.")
    compared: int = Field(description="How many fills were compared.")
    found_mass: float | None = Field(
        description="Open blanks: the sum of p(text | prefix) over the texts compared, averaged "
        "over the lengths that the blank may have. Null if candidates were given."
    )
    seed: int | None = Field(description="Open blanks: send it to get the same proposals again.")
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)

    @classmethod
    def of(cls, result: Infilled) -> "InfillResult":
        """From the engine's result."""
        fills: list[Any] = [FillOut.of(fill) for fill in result.fills]
        return cls.taken_from(result, fills=fills, **unknown_fields(result.unknown))


class InfillResponse(Answer):
    """Answer of `/infill`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    rescore: str | None = Field(
        description="The language model that ranked the fills, if one was named."
    )
    results: list[InfillResult] = Field(description="One for each text, in order.")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(
        cls, engine: Engine, results: Sequence[Infilled], rescore: Engine | None = None
    ) -> "InfillResponse":
        """From the engine's results."""
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            rescore=None if rescore is None else rescore.manifest.name,
            results=[InfillResult.of(result) for result in results],
            usage=Usage(
                prompt_tokens=sum(result.prompt_tokens for result in results),
                completion_tokens=sum(result.completion_tokens for result in results),
                cached_tokens=sum(result.cached_tokens for result in results),
            ),
        )
