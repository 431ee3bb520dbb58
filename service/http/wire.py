"""The wire: what requests and answers look like. Every field is documented, none is extra."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from service.bundle.language_model import (
    LanguageModelDataSource,
    LanguageModelLimits,
    LanguageModelManifest,
    LanguageModelMetrics,
    LanguageModelShape,
)
from service.bundle.manifest import TrainingRecord
from service.bundle.text import EOS_ID, UNK_ID, Normalization
from service.decoding.constraints import AllowedChars, Choices, Pattern, Rule
from service.decoding.sampling import SamplingParams
from service.tasks.engine import Engine
from service.tasks.values import (
    DEFAULT_MAX_TOKENS,
    MAX_POSITIONS,
    Choice,
    ChoiceEnd,
    Generated,
    GenerateOptions,
    Scored,
    ScoredToken,
    ScoreOptions,
    StreamUsage,
    TokenEvent,
)

MAX_ALTERNATIVES = 20
MAX_BIASES = 1024


def _not_empty(value: str | list[str]) -> str | list[str]:
    if isinstance(value, list) and not value:
        raise ValueError("a list holds at least one text")
    return value


# The first mistake ends it: to find every mistake in a list of a million numbers takes seconds.
TextList = Annotated[list[str], Field(fail_fast=True)]
# Documented here and checked with the other limits on them.
StopText = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1})]
StopList = Annotated[list[StopText], Field(fail_fast=True)]
Texts = Annotated[str | TextList, AfterValidator(_not_empty)]


def listed(texts: str | list[str]) -> list[str]:
    """One text or a list of texts, as a list."""
    return [texts] if isinstance(texts, str) else texts


UNKNOWN = (
    "Positions, in the normalized text, of characters outside the vocabulary: of the first "
    f"{MAX_POSITIONS:,}."
)
UNKNOWN_CHARS = "How many characters are outside the vocabulary, these and all others."

# What composes to one, as the model reads it; that is checked with the model at hand.
Character = Annotated[
    str,
    Field(min_length=1, max_length=8),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 1}),
]


class RequestBody(BaseModel):
    """What every request has: strict, no unknown fields, and a model."""

    # strict: a bool is no integer and "8" is no 8.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(
        None,
        description="Name of a served model; may be left out where only one is served that answers "
        "this.",
    )


class Answer(BaseModel):
    """No unknown fields, no NaN or Infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    presence_penalty: float = Field(
        0.0,
        ge=-100.0,
        le=100.0,
        description="What a token's log-probability loses once the choice has it, in nats.",
    )
    frequency_penalty: float = Field(
        0.0, ge=-100.0, le=100.0, description="What it loses each time that the choice has it."
    )
    logit_bias: dict[Character, Annotated[float, Field(ge=-1000.0, le=1000.0)]] = Field(
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
        """What the text may be."""
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
        )


class ScoreRequest(RequestBody):
    """The probability of one text or of a list of texts, for an encoder-decoder given sources."""

    text: Texts = Field(description="A text or a list of texts; it may be empty.")
    source: str | TextList | None = Field(
        None,
        description="Encoder-decoders: what the text is a translation of, which may not be blank; "
        "one for all, or one a text.",
    )
    context: str | TextList = Field(
        "", description="Read before the text and not counted: one for all, or one a text."
    )
    tokens: bool = Field(False, description="Tell about every character.")
    top_logprobs: int = Field(
        0, ge=0, le=MAX_ALTERNATIVES, description="With `tokens`: alternatives a character."
    )
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
        if self.top_logprobs and not self.tokens:
            raise ValueError("top_logprobs needs tokens: true")
        return self

    def contexts(self, count: int) -> list[str] | None:
        """One context a text; None where there are none."""
        if not self.context:
            return None
        return self.context if isinstance(self.context, list) else [self.context] * count

    def sources(self, count: int) -> list[str] | None:
        """One source a text; None where there are none."""
        if self.source is None:
            return None
        return self.source if isinstance(self.source, list) else [self.source] * count

    def options(self) -> ScoreOptions:
        """What the engine takes."""
        return ScoreOptions(
            tokens=self.tokens,
            top_logprobs=self.top_logprobs,
            bos=self.bos if "bos" in self.model_fields_set else None,
            eos=self.eos,
            unknown=self.unknown,
            state=self.state,
            return_state=self.return_state,
        )


class Usage(Answer):
    """What the request cost, over all inputs."""

    prompt_tokens: int = Field(
        description="Characters read, contexts included; with sources, tokens of both sides."
    )
    completion_tokens: int = Field(description="Tokens generated, eos counted.")
    cached_tokens: int = Field(
        description="Of `prompt_tokens`: not run, as they were read before or with another input."
    )


class AlternativeOut(Answer):
    """A token that could have stood there."""

    token: str = Field(description="The character; eos and its like print as U+E000 to U+E003.")
    logprob: float = Field(description="Natural log of its probability.")


class GeneratedToken(Answer):
    """A token of a choice, or of an echoed prompt."""

    token: str = Field(description="The character; eos prints as U+E002.")
    logprob: float | None = Field(description="Natural log of its probability, before temperature.")
    top: list[AlternativeOut] = Field(description="The likeliest tokens there, likeliest first.")


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
        return cls.model_construct(
            text=choice.text,
            finish_reason=choice.finish_reason,
            seed=choice.seed,
            matched=choice.matched,
            logprobs=None if choice.tokens is None else map(_generated_token, choice.tokens),
            state=choice.state,
        )


class GenerateResult(Answer):
    """The continuations of one prompt."""

    choices: list[ChoiceOut] = Field(description="`n` of them.")
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)

    @classmethod
    def of(cls, result: Generated) -> "GenerateResult":
        """From the engine's result."""
        return cls.model_construct(
            choices=list(map(ChoiceOut.of, result.choices)),
            unknown=list(result.unknown.positions),
            unknown_chars=result.unknown.count,
        )


class GenerateResponse(Answer):
    """Answer of `/generate`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    results: list[GenerateResult] = Field(description="One a prompt, in order.")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(cls, engine: Engine, results: Sequence[Generated]) -> "GenerateResponse":
        """From the engine's results."""
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
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
        return cls.model_construct(
            index=event.prompt,
            choice=event.choice,
            text=event.text,
            offset=event.offset,
            token=None if token is None else token.token,
            logprob=None if token is None else token.logprob,
            entropy_bits=None if token is None else token.entropy_bits,
            rank=None if token is None else token.rank,
            top=[] if token is None else _alternatives(token),
        )


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
        return cls.model_construct(
            index=event.prompt,
            choice=event.choice,
            finish_reason=event.finish_reason,
            seed=event.seed,
            state=event.state,
            matched=event.matched,
        )


class GenerateDone(Answer):
    """Data of the `done` event of `/generate`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    choices: list[StreamedEnd] = Field(description="Every choice of every prompt, in order.")
    unknown: list[list[int]] = Field(description=f"Of each prompt, in order. {UNKNOWN}")
    unknown_chars: list[int] = Field(description=f"Of each prompt, in order. {UNKNOWN_CHARS}")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(cls, engine: Engine, ends: Sequence[ChoiceEnd], usage: StreamUsage) -> "GenerateDone":
        """From the engine's events."""
        ordered = sorted(ends, key=lambda end: (end.prompt, end.choice))
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            choices=list(map(StreamedEnd.of, ordered)),
            unknown=[list(x.positions) for x in usage.unknown],
            unknown_chars=[x.count for x in usage.unknown],
            usage=Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
            ),
        )


class ScoreToken(Answer):
    """A counted token."""

    token: str = Field(description="The character; eos prints as U+E002, an unknown one as U+E003.")
    logprob: float | None = Field(description="Natural log of its probability.")
    surprisal_bits: float | None = Field(description="The same in bits, and positive.")
    entropy_bits: float | None = Field(description="Expected surprisal before it was seen.")
    rank: int | None = Field(description="1 is the likeliest token.")
    top: list[AlternativeOut] = Field(description="The likeliest tokens there, likeliest first.")


class ScoreFigures(Answer):
    """What a text is worth."""

    logprob: float = Field(description="Natural log of the text's probability.")
    bits: float = Field(description="The same in bits, and positive: the total surprisal.")
    bits_per_char: float | None = Field(description="bits / chars; null without characters.")
    perplexity_per_char: float | None = Field(description="2 ** bits_per_char.")
    chars: int = Field(description="Characters that `logprob` counts.")
    bos: bool = Field(description="Whether the text was read as a document's beginning.")
    eos: bool = Field(description="Whether `logprob` counts the end of the text.")


class ScoreResult(ScoreFigures):
    """The probability of one text."""

    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)
    # Written one by one: as a list of objects they would take 2 kB each.
    tokens: Iterable[ScoreToken] | None = Field(description="Every counted token, where asked for.")
    state: str | None = Field(
        description="Where it was asked for. Null after the end of the text, which nothing "
        "follows, and where nothing was read."
    )

    @classmethod
    def of(cls, scored: Scored) -> "ScoreResult":
        """From the engine's result."""
        return cls.model_construct(
            logprob=scored.logprob,
            bits=scored.bits,
            bits_per_char=scored.bits_per_char,
            perplexity_per_char=scored.perplexity_per_char,
            chars=scored.chars,
            bos=scored.bos,
            eos=scored.eos,
            unknown=list(scored.unknown.positions),
            unknown_chars=scored.unknown.count,
            tokens=None if scored.tokens is None else map(_score_token, scored.tokens),
            state=scored.state,
        )


class ScoreResponse(Answer):
    """Answer of `/score`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    results: list[ScoreResult] = Field(description="One a text, in order.")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(cls, engine: Engine, results: Sequence[Scored]) -> "ScoreResponse":
        """From the engine's results."""
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            results=[ScoreResult.of(result) for result in results],
            usage=Usage(
                prompt_tokens=sum(result.prompt_tokens for result in results),
                completion_tokens=0,
                cached_tokens=sum(result.cached_tokens for result in results),
            ),
        )


class ModelSummary(Answer):
    """One line of `/models`."""

    name: str = Field(description="What requests call it.")
    task: str = Field(description="Which endpoints it answers.")
    description: str = Field(description="One sentence.")
    precision: str = Field(description="The arithmetic it is served in.")

    @classmethod
    def of(cls, engine: Engine) -> "ModelSummary":
        """From an engine."""
        manifest = engine.manifest
        return cls(
            name=manifest.name,
            task=manifest.task,
            description=manifest.description,
            precision=engine.precision,
        )


class ModelList(Answer):
    """Answer of `/models`."""

    models: list[ModelSummary] = Field(description="Every served model, by name.")


class ModelDetail(ModelSummary):
    """Answer of `/models/{name}`: the manifest's public part."""

    license: str = Field(description="Terms of the weights.")
    created: str = Field(description="When it was exported.")
    precisions: list[str] = Field(description="Graphs in the bundle.")
    model: LanguageModelShape = Field(description="What the model is.")
    vocab_size: int = Field(description="Tokens, the four special ones included.")
    normalization: Normalization = Field(description="What is done to every text first.")
    limits: LanguageModelLimits = Field(description="What the bundle allows.")
    data: LanguageModelDataSource = Field(description="What it was trained on.")
    metrics: LanguageModelMetrics = Field(description="What it is worth, beside the baselines.")
    training: TrainingRecord = Field(description="How it was trained.")
    examples: list[str] = Field(
        description="Held-out text, unpicked: whole ones where they are short, else how one begins."
    )

    @classmethod
    def of_manifest(cls, manifest: LanguageModelManifest, engine: Engine) -> "ModelDetail":
        """From an engine and its manifest."""
        return cls(
            **ModelSummary.of(engine).model_dump(),
            license=manifest.license,
            created=manifest.created,
            precisions=sorted({graph.precision for graph in manifest.graphs}),
            model=manifest.model,
            vocab_size=manifest.vocab.size,
            normalization=manifest.normalization,
            limits=manifest.limits,
            data=manifest.data,
            metrics=manifest.metrics,
            training=manifest.training,
            examples=_examples(manifest, engine.vocabularies[None].tokens),
        )


def _examples(manifest: LanguageModelManifest, tokens: Sequence[str]) -> list[str]:
    """The held-out texts that the first golden vector holds, but one that it cuts off.

    Of a single long text that is all there is.
    """
    texts = [""]
    for token in manifest.golden[0].tokens:
        if token == EOS_ID:
            texts.append("")
        elif token > UNK_ID:
            texts[-1] += tokens[token]
    return texts[:-1] or texts


class Live(Answer):
    """Answer of `/livez`."""

    status: Literal["live", "stalled"] = Field(
        description="`stalled`: an engine hangs, and the process has to be started anew."
    )
    reasons: list[str] = Field(description="Which engine; empty when live.")


class EngineState(Answer):
    """One model's engine."""

    model: str = Field(description="The model.")
    ready: bool = Field(description="Whether its worker takes work.")
    last_step_age_s: float = Field(description="Seconds since its last step; it idles between.")
    stalled_s: float = Field(
        description="Seconds for which the step has been seen to run that runs now; 0 when none."
    )


class FailedModel(Answer):
    """A bundle that cannot be served."""

    name: str = Field(description="Its folder.")
    cause: str = Field(description="Why not, in a line.")


class Ready(Answer):
    """Answer of `/readyz`, with 200 or 503."""

    status: Literal["ready", "not ready"] = Field(description="Whether to send traffic.")
    reasons: list[str] = Field(description="Why not; empty when ready.")
    engines: list[EngineState] = Field(description="Every engine.")
    failed: list[FailedModel] = Field(
        description="Bundles that are not served; they make nothing unready."
    )


class Changed(Answer):
    """Answer of `/admin/models/{name}/…`."""

    model: str = Field(description="The model.")
    status: Literal["served", "unloaded"] = Field(description="What it is now.")
    changed: bool = Field(description="Whether it was something else before, or is anew.")


class FieldErrorOut(Answer):
    """One mistake in the body."""

    pointer: str = Field(description="Where: a JSON pointer (RFC 6901).")
    detail: str = Field(description="What is allowed there.")


class Problem(Answer):
    """An error, as RFC 9457 has it. It never holds what the client sent."""

    type: str = Field(description="Stable name of the kind of error.")
    title: str = Field(description="The same for people.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong and what is allowed.")
    request_id: str = Field(description="Also in the `X-Request-Id` header and in the log.")
    errors: list[FieldErrorOut] = Field(description="The mistakes in the body, if it was that.")


def _generated_token(token: ScoredToken) -> GeneratedToken:
    return GeneratedToken.model_construct(
        token=token.token, logprob=token.logprob, top=_alternatives(token)
    )


def _score_token(token: ScoredToken) -> ScoreToken:
    surprisal = None if token.logprob is None else -token.logprob / _LN_2 + 0.0
    return ScoreToken.model_construct(
        token=token.token,
        logprob=token.logprob,
        surprisal_bits=surprisal,
        entropy_bits=token.entropy_bits,
        rank=token.rank,
        top=_alternatives(token),
    )


def _alternatives(token: ScoredToken) -> list[AlternativeOut]:
    return [AlternativeOut.model_construct(token=x.token, logprob=x.logprob) for x in token.top]


_LN_2 = 0.6931471805599453
