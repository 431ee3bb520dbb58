"""The wire of `/translate`."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.decoding.constraints import (
    AllowedChars,
    Choices,
    MustContain,
    OneRule,
    Pattern,
    Rule,
    all_of,
)
from service.decoding.sampling import SamplingParams
from service.http.wire import (
    UNKNOWN,
    UNKNOWN_CHARS,
    Answer,
    LengthPenalty,
    RequestBody,
    TextList,
    Texts,
    Usage,
    listed,
    unknown_fields,
)
from service.tasks.engine import Engine
from service.tasks.translations import (
    DEFAULT_BEAM_SIZE,
    Translated,
    TranslatedToken,
    TranslateOptions,
    Translation,
)

# Characters or symbols, each a text of its own.
Units = Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True)]


class TranslateRequest(RequestBody):
    """Translate one source or a list of sources."""

    source: Texts = Field(
        description="A text or a list of texts. A blank one is not translated: its only hypothesis "
        "is empty, with logprob and score 0."
    )
    beam_size: int | None = Field(
        None,
        ge=1,
        description="Hypotheses that are kept at each step; 1 is greedy. Left out, it is "
        f"{DEFAULT_BEAM_SIZE}, or the service's limit where that is less.",
    )
    num_hypotheses: int = Field(
        1, ge=1, description="Hypotheses a source to answer: of the beam, or samples."
    )
    length_penalty: LengthPenalty = Field(
        1.0, description="p in score = sum logprob / length ** p, eos counted."
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of a target, eos counted. The bundle's own bound, "
        "max_tokens_ratio · source tokens + max_tokens_extra, holds besides.",
    )
    temperature: float = Field(
        0.0, ge=0.0, le=1e9, description="Above 0 hypotheses are samples, and beam_size is unused."
    )
    top_k: int | None = Field(None, ge=1, description="Samples: keep this many tokens.")
    top_p: float = Field(
        1.0, ge=0.0, le=1.0, description="Samples: keep the smallest set with this probability."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Same seed, same samples. Drawn where it is left out."
    )
    target_prefix: str | TextList = Field(
        "", description="How every target begins: one for all, or one a source."
    )
    tokens: bool = Field(False, description="Tell about every token of a hypothesis.")
    return_alignments: bool = Field(
        False, description="Give the attention weights behind each token of a hypothesis."
    )
    unknown: Literal["unk", "error", "skip"] = Field(
        "unk",
        description="Source characters outside the vocabulary: read them as the unknown token, "
        "refuse the source, or leave them out.",
    )
    copy_unknown: bool = Field(
        False,
        description="Let the model write the unknown token, and put there what the source has "
        "where the model attends most.",
    )
    pattern: str | None = Field(
        None,
        description="Every target, including its prefix, matches this regular expression (Python's "
        "`re`, without lookarounds, backreferences and boundaries). Masked, not conditioned: a "
        "search tries only tokens after which a target can still match and end in time, and "
        "log-probabilities remain those of the unrestricted model.",
    )
    choices: Annotated[TextList, Field(min_length=1)] | None = Field(
        None, description="Every target is one of these: masked, as with `pattern`."
    )
    allowed_chars: str | Units | None = Field(
        None,
        description="Every target has only these characters; for a model that writes symbols "
        "between spaces, only these symbols: masked, as with `pattern`.",
    )
    must_contain: str | Annotated[TextList, Field(min_length=1)] | None = Field(
        None,
        description="Words that occur in every target, in any order, perhaps within longer words "
        "or overlapping; for a model that writes symbols, sequences of symbols. A beam search "
        "divides its rows by how much of the words is still missing.",
    )

    min_confidence: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Leave out hypotheses whose `confidence` is lower; if none is left, "
        "`abstained` is true. Only for models that have a confidence, with the options that it was "
        "fitted with, and not with `stream`.",
    )

    stream: bool = Field(
        False,
        description="Answer with server-sent events: `token` as it becomes sure, then `done`, or "
        "`error`.",
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        sources = [self.source] if isinstance(self.source, str) else self.source
        if isinstance(self.target_prefix, list) and len(self.target_prefix) != len(sources):
            raise ValueError("a list of target prefixes holds one for each source")
        if self.temperature == 0.0:
            # Clients that send every field send these defaults.
            neutral = {
                "seed": self.seed is None,
                "top_k": self.top_k is None,
                "top_p": self.top_p == 1,
            }
            given = ", ".join(name for name, unset in neutral.items() if not unset)
            if given:
                raise ValueError(f"{given}: only with a temperature above 0")
        elif self.beam_size is not None:
            raise ValueError("beam_size: only with temperature 0")
        return self

    def prefixes(self, count: int) -> list[str]:
        """One prefix for each source."""
        prefix = self.target_prefix
        return prefix if isinstance(prefix, list) else [prefix] * count

    def options(self) -> TranslateOptions:
        """What the engine takes."""
        sampling = SamplingParams(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        return TranslateOptions(
            beam_size=self.beam_size,
            num_hypotheses=self.num_hypotheses,
            length_penalty=self.length_penalty,
            max_tokens=self.max_tokens,
            sampling=sampling if self.temperature > 0.0 else None,
            seed=self.seed,
            tokens=self.tokens,
            return_alignments=self.return_alignments,
            unknown=self.unknown,
            copy_unknown=self.copy_unknown,
            rule=self.rule(),
            min_confidence=self.min_confidence,
        )

    def rule(self) -> Rule | None:
        """The rules that every target must obey, as one."""
        rules: list[OneRule] = []
        if self.pattern is not None:
            rules.append(Pattern(self.pattern))
        if self.choices is not None:
            rules.append(Choices(tuple(self.choices)))
        if self.allowed_chars is not None:
            allowed = self.allowed_chars
            rules.append(AllowedChars(allowed if isinstance(allowed, str) else tuple(allowed)))
        if self.must_contain is not None:
            rules.append(MustContain(tuple(listed(self.must_contain))))
        return all_of(rules)


class HypothesisToken(Answer):
    """A token of a hypothesis."""

    token: str = Field(description="The token; eos prints as U+E002, an unknown one as U+E003.")
    logprob: float = Field(description="Natural log of its probability.")


class StreamedTranslationToken(Answer):
    """Data of a `token` event: a token that the translation has, whatever follows."""

    index: int = Field(description="The source's place in the list.")
    hypothesis: int = Field(description="Of samples its place; of beams the best is told, 0.")
    text: str = Field(description="Its text; empty for eos.")
    offset: int = Field(description="Characters of the translation before it.")
    token: str = Field(description="The token; eos prints as U+E002, an unknown one as U+E003.")
    logprob: float = Field(description="Natural log of its probability.")

    @classmethod
    def of(cls, event: TranslatedToken) -> "StreamedTranslationToken":
        """From the engine's event."""
        token = event.token
        return cls.taken_from(event, index=event.source, token=token.token, logprob=token.logprob)


class HypothesisOut(Answer):
    """One translation."""

    text: str = Field(description="The text, its prefix included.")
    logprob: float = Field(
        description="log P(tokens | source), nats; with eos where finish_reason is `stop`. A model "
        "of subwords can write a text in other tokens than those that `/score` reads it in."
    )
    score: float = Field(description="logprob / length ** length_penalty, eos counted.")
    confidence: float | None = Field(
        description="The probability that the text is one of the source's targets, fitted on "
        "held-out pairs. 0 if it did not end. Null if the model has no confidence, or the search "
        "is unlike those that it was fitted on: with `temperature`, `target_prefix`, "
        "`max_tokens`, `copy_unknown`, `unknown` `skip`, other than 5 beams, a length penalty "
        "other than 1, or rules for the target."
    )
    finish_reason: Literal["stop", "length", "repetition"] = Field(
        description="`stop`: end of text. `length`: max_tokens. `repetition`: its end went round "
        "in a cycle."
    )
    matched: bool | None = Field(
        description="Whether the text obeys `pattern`, `choices`, `allowed_chars` and "
        "`must_contain`; false only for the empty target of a blank source. Null if none of them "
        "was given."
    )
    tokens: list[HypothesisToken] | None = Field(description="Its tokens, where asked for.")
    alignment: list[list[float]] | None = Field(
        description="A row a token, eos included: the weight of each of `source_tokens`. Rows sum "
        "to 1. Only where asked for."
    )

    @classmethod
    def of(cls, found: Translation) -> "HypothesisOut":
        """From the engine's translation."""
        tokens = found.tokens
        return cls.taken_from(
            found,
            tokens=None if tokens is None else [HypothesisToken.taken_from(x) for x in tokens],
            alignment=None if found.alignment is None else found.alignment.tolist(),
        )


class TranslateResult(Answer):
    """The translations of one source."""

    hypotheses: list[HypothesisOut] = Field(
        description="Best score first, those that ended before all others; samples in order."
    )
    abstained: bool = Field(description="Whether `min_confidence` left out every hypothesis.")
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)
    source_tokens: list[str] | None = Field(
        description="With alignments: what each column of one stands for; the last has eos."
    )
    seed: int | None = Field(description="Of samples: asks for the same ones again.")

    @classmethod
    def of(cls, result: Translated) -> "TranslateResult":
        """From the engine's result."""
        hypotheses = [HypothesisOut.of(each) for each in result.hypotheses]
        places = result.source_tokens
        return cls.taken_from(
            result,
            hypotheses=hypotheses,
            source_tokens=None if places is None else list(places),
            **unknown_fields(result.unknown),
        )


class TranslateResponse(Answer):
    """Answer of `/translate`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    results: list[TranslateResult] = Field(description="One a source, in order.")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(cls, engine: Engine, results: Sequence[Translated]) -> "TranslateResponse":
        """From the engine's results."""
        written = sum(x.completion_tokens for result in results for x in result.hypotheses)
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            results=[TranslateResult.of(result) for result in results],
            usage=Usage(
                prompt_tokens=sum(result.prompt_tokens for result in results),
                completion_tokens=written,
                cached_tokens=0,
            ),
        )
