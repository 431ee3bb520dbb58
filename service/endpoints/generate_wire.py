"""The wire of `/generate`."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, model_validator

from service.decoding.constraints import AllowedChars, Choices, Pattern, Rule
from service.decoding.sampling import SamplingParams
from service.http.wire import (
    ADAPT,
    MAX_ALTERNATIVES,
    MAX_BIASES,
    UNKNOWN,
    UNKNOWN_CHARS,
    AlternativeOut,
    Answer,
    Bias,
    Penalty,
    RequestBody,
    TextList,
    Texts,
    Usage,
    alternatives,
    unknown_fields,
)
from service.tasks.engine import Engine
from service.tasks.scored_tokens import ScoredToken
from service.tasks.values import (
    DEFAULT_MAX_TOKENS,
    Choice,
    ChoiceEnd,
    Generated,
    GenerateOptions,
    StreamUsage,
    TokenEvent,
)

# The bound is only documented here; the engine checks it with its other limits.
StopText = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1})]


StopList = Annotated[list[StopText], Field(fail_fast=True)]


# Text that the model reads as one character once it is normalized, which the engine checks.
Character = Annotated[
    str,
    Field(min_length=1, max_length=8),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 1}),
]


class GenerateRequest(RequestBody):
    """Continue one prompt or a list of prompts."""

    prompt: Texts = Field(
        "",
        description="A text or a list of texts. Left out or empty, a document is begun, or gone on "
        "with after a `state`.",
    )
    max_tokens: int | None = Field(
        None,
        ge=0,
        description="Most tokens to generate a choice, eos counted; left out, it is "
        f"{DEFAULT_MAX_TOKENS}, or the model's limit where that is less.",
    )
    temperature: float = Field(
        1.0, ge=0.0, le=1e9, description="Divides the log-probabilities; 0 takes the likeliest."
    )
    top_k: int | None = Field(None, ge=1, description="Keep this many of the likeliest tokens.")
    top_p: float = Field(
        1.0, ge=0.0, le=1.0, description="Keep the smallest set with this probability."
    )
    min_p: float = Field(
        0.0, ge=0.0, le=1.0, description="Keep tokens with this fraction of the likeliest's."
    )
    presence_penalty: Penalty = Field(
        0.0,
        description="What a token's log-probability loses once the choice has it, in nats.",
    )
    frequency_penalty: Penalty = Field(
        0.0, description="What it loses each time that the choice has it."
    )
    logit_bias: dict[Character, Bias] = Field(
        default_factory=dict,
        max_length=MAX_BIASES,
        description="What a character's log-probability gains, in nats; U+E002 is the end of text.",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Same seed, same text. Drawn where it is left out."
    )
    stop: StopText | StopList = Field(
        default_factory=list, description="Texts that end a choice; they are cut off."
    )
    pattern: str | None = Field(
        None,
        description="The whole generated text matches this regular expression (Python's `re`, "
        "without lookarounds, backreferences and boundaries). Masked, not conditioned: tokens that "
        "no match can go on with are not drawn, and the others keep the model's odds.",
    )
    choices: Annotated[TextList, Field(min_length=1)] | None = Field(
        None,
        description="The whole generated text is one of these: masked, not conditioned, as with "
        "`pattern`.",
    )
    allowed_chars: str | Annotated[list[Character], Field(fail_fast=True)] | None = Field(
        None,
        description="The generated text has these characters alone, of those that the model knows: "
        "masked, not conditioned.",
    )
    n: int = Field(1, ge=1, description="Choices a prompt.")
    echo: bool = Field(False, description="Put the prompt before each text, byte for byte.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_ALTERNATIVES,
        description="Give each token's log-probability and this many alternatives: the model's "
        "own, before temperature and filters.",
    )
    unknown: Literal["unk", "error", "skip"] = Field(
        "unk",
        description="Characters of a prompt outside the vocabulary: read them as the unknown "
        "token, refuse the prompt, or leave them out. The answer has their positions.",
    )
    adapt: bool = Field(
        False,
        description="Learn from the prompt and the generated text, character by character; only "
        "for models whose `adapts` is true. Text that resembles what came before becomes likelier.",
    )
    stream: bool = Field(
        False,
        description="Answer with server-sent events: `token` as it is written, then `done`, or "
        "`error`.",
    )
    state: str | None = Field(
        None,
        description="A state that this model answered: go on from there. Without a `seed` the "
        "first choice goes on with the noise of its own, bit for bit as one longer call; penalties "
        "must be 0, and `stop` looks at what is generated from here on.",
    )
    return_state: bool = Field(
        False, description="Give each choice's state, to go on from it, here or on a replica."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = [x for x in (self.pattern, self.choices, self.allowed_chars) if x is not None]
        if len(given) > 1:
            raise ValueError("give one of pattern, choices and allowed_chars")
        return self

    def rule(self) -> Rule | None:
        """The rule that the text must obey, if there is one."""
        if self.pattern is not None:
            return Pattern(self.pattern)
        if self.choices is not None:
            return Choices(tuple(self.choices))
        if self.allowed_chars is None:
            return None
        allowed = self.allowed_chars
        return AllowedChars(allowed if isinstance(allowed, str) else tuple(allowed))

    def options(self) -> GenerateOptions:
        """What the engine takes."""
        return GenerateOptions(
            max_tokens=self.max_tokens,
            sampling=SamplingParams(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
            ),
            logit_bias=self.logit_bias,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            rule=self.rule(),
            n=self.n,
            echo=self.echo,
            logprobs=self.logprobs,
            state=self.state,
            return_state=self.return_state,
            unknown=self.unknown,
            adapt=self.adapt,
        )


class GeneratedToken(Answer):
    """A token of a choice, or of an echoed prompt."""

    token: str = Field(description="The character; eos prints as U+E002.")
    logprob: float | None = Field(description="Natural log of its probability, before temperature.")
    top: list[AlternativeOut] = Field(description="The likeliest tokens there, likeliest first.")

    @classmethod
    def of(cls, token: ScoredToken) -> "GeneratedToken":
        """From the engine's token."""
        return cls.taken_from(token, top=alternatives(token))


class ChoiceOut(Answer):
    """One continuation."""

    text: str = Field(description="The text, without the stop string that ended it.")
    finish_reason: Literal["stop", "length"] = Field(
        description="`stop`: end of text, a stop string, or a match that nothing can follow. "
        "`length`: max_tokens."
    )
    seed: int = Field(
        description="The seed of the request, given or drawn; a choice is its seed and its place."
    )
    matched: bool | None = Field(
        description="Whether the generated text obeys `pattern`, `choices` or `allowed_chars`; "
        "false only where a stop string cut it off. Null where none was given."
    )
    logprobs: Iterable[GeneratedToken] | None = Field(description="Where they were asked for.")
    state: str | None = Field(
        description="Where it was asked for: all that was generated has been read there, a stop "
        "string included. Null after the end of the text, which nothing follows."
    )

    @classmethod
    def of(cls, choice: Choice) -> "ChoiceOut":
        """From the engine's choice."""
        tokens = choice.tokens
        logprobs = None if tokens is None else map(GeneratedToken.of, tokens)
        return cls.taken_from(choice, logprobs=logprobs)


class GenerateResult(Answer):
    """The continuations of one prompt."""

    choices: list[ChoiceOut] = Field(description="`n` of them.")
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)

    @classmethod
    def of(cls, result: Generated) -> "GenerateResult":
        """From the engine's result."""
        return cls.model_construct(
            choices=list(map(ChoiceOut.of, result.choices)), **unknown_fields(result.unknown)
        )


class GenerateResponse(Answer):
    """Answer of `/generate`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    adapt: bool = Field(description=ADAPT)
    results: list[GenerateResult] = Field(description="One a prompt, in order.")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(
        cls, engine: Engine, options: GenerateOptions, results: Sequence[Generated]
    ) -> "GenerateResponse":
        """From the engine's options and results."""
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            adapt=options.adapt,
            results=list(map(GenerateResult.of, results)),
            usage=Usage(
                prompt_tokens=sum(result.prompt_tokens for result in results),
                completion_tokens=sum(x.completion_tokens for r in results for x in r.choices),
                cached_tokens=sum(result.cached_tokens for result in results),
            ),
        )


class StreamedToken(Answer):
    """Data of a `token` event: a token of a choice, or what was echoed before it."""

    index: int = Field(description="The prompt's place in the list.")
    choice: int = Field(description="The choice's place among `n`.")
    text: str = Field(description="Its text; empty for what ends the text.")
    offset: int = Field(description="Characters of the choice's text before it.")
    token: str | None = Field(description="The character; eos prints as U+E002; null for an echo.")
    logprob: float | None = Field(description="Natural log of its probability.")
    entropy_bits: float | None = Field(description="Expected surprisal before it was drawn.")
    rank: int | None = Field(description="1 is the likeliest token.")
    top: list[AlternativeOut] = Field(description="The likeliest tokens there, likeliest first.")

    @classmethod
    def of(cls, event: TokenEvent) -> "StreamedToken":
        """From the engine's event."""
        token = event.token
        # An echoed prompt has no token unless log-probabilities were asked for.
        figures: dict[str, Any] = {"token": None, "logprob": None, "entropy_bits": None}
        figures |= {"rank": None, "top": []}
        if token is not None:
            figures = {name: getattr(token, name) for name in figures}
            figures["top"] = alternatives(token)
        return cls.taken_from(event, index=event.prompt, **figures)


class StreamedEnd(Answer):
    """How one choice ended."""

    index: int = Field(description="The prompt's place in the list.")
    choice: int = Field(description="The choice's place among `n`.")
    finish_reason: Literal["stop", "length"] = Field(description="As without a stream.")
    seed: int = Field(description="The seed of the request, given or drawn.")
    state: str | None = Field(description="As without a stream.")
    matched: bool | None = Field(description="As without a stream.")

    @classmethod
    def of(cls, event: ChoiceEnd) -> "StreamedEnd":
        """From the engine's event."""
        return cls.taken_from(event, index=event.prompt)


class GenerateDone(Answer):
    """Data of the `done` event of `/generate`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    adapt: bool = Field(description=ADAPT)
    choices: list[StreamedEnd] = Field(description="Every choice of every prompt, in order.")
    unknown: list[list[int]] = Field(description=f"Of each prompt, in order. {UNKNOWN}")
    unknown_chars: list[int] = Field(description=f"Of each prompt, in order. {UNKNOWN_CHARS}")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(
        cls,
        engine: Engine,
        options: GenerateOptions,
        ends: Sequence[ChoiceEnd],
        usage: StreamUsage,
    ) -> "GenerateDone":
        """From the engine's options and events."""
        ordered = sorted(ends, key=lambda end: (end.prompt, end.choice))
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            adapt=options.adapt,
            choices=list(map(StreamedEnd.of, ordered)),
            unknown=[list(x.positions) for x in usage.unknown],
            unknown_chars=[x.count for x in usage.unknown],
            usage=Usage.taken_from(usage),
        )
