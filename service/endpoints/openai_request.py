"""The request of OpenAI's /v1/completions, and what it asks of the engine (see their reference).

Field names and shapes are theirs. Unknown fields are ignored, as their clients expect; those
that would change the text or the answer are refused (`foreign_fields`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS
from service.decoding.sampling import SamplingParams
from service.errors import InvalidRequest
from service.http.foreign_fields import refuse_foreign
from service.http.wire import MAX_ALTERNATIVES, MAX_BIASES, Bias, Penalty, TextList
from service.tasks.engine import Generates
from service.tasks.infill_values import Blanks, one_blank
from service.tasks.insertions import InsertOptions
from service.tasks.values import GenerateOptions, Prompt

DEFAULT_MAX_TOKENS = 16  # theirs
# Fields about the tokens of a continuation; a fill is drawn whole.
_OF_CONTINUATIONS = (
    "adapt",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "min_tokens",
    "presence_penalty",
)

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
PROMPT_FORMS = "a text, a list of texts, a list of token ids, or a list of such lists"


def _form(prompt: Any) -> str | None:
    """Which form a prompt has, by its first entry, so that a mistake gives one error."""
    if isinstance(prompt, str):
        return "text"
    if not isinstance(prompt, list) or not prompt:
        return None
    if isinstance(prompt[0], str):
        return "texts"
    return "lists" if isinstance(prompt[0], list) else "ids"


Prompts: TypeAlias = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[TextList, Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[TokenIds], Field(fail_fast=True), Tag("lists")],
    Discriminator(
        _form,
        custom_error_type="prompt_form",
        custom_error_message=f"a prompt is {PROMPT_FORMS}, with at least one entry",
    ),
]


Alternatives: TypeAlias = Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)]


def _count_of_logprobs(value: Any) -> Any:
    """A bool as a number of alternatives: true is 1, as vLLM reads it."""
    if isinstance(value, bool):
        return 1 if value else None
    return value


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    include_usage: bool | None = Field(None, description="End the stream with a chunk of usage.")


class CompletionRequest(BaseModel):
    """Complete one prompt or several."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = Field(
        None,
        description="Name of a served language model; may be left out where one model is served.",
    )
    prompt: Prompts | None = Field(
        None,
        description="A text, a list of texts, a list of token ids, or a list of such lists. A text "
        "begins after an implicit bos; ids may begin with it, and a text with its printed form. "
        "Without a prompt, a new document is written.",
    )
    best_of: int | None = Field(
        None,
        ge=1,
        description="Write this many; answer the `n` with the best mean logprob per token.",
    )
    echo: bool | None = Field(None, description="Put the prompt before each text.")
    frequency_penalty: Penalty | None = Field(
        None, description="Subtracted from a token's logit each time the choice has it."
    )
    ignore_eos: bool | None = Field(
        None, description="End the text only at `max_tokens` or `stop`; an extension."
    )
    logit_bias: (
        dict[
            Annotated[str, Field(pattern=r"^[0-9]{1,5}$")],
            Bias,
        ]
        | None
    ) = Field(
        None, max_length=MAX_BIASES, description="Added to a token's logit, in nats, by its id."
    )
    logprobs: Annotated[
        Alternatives | None,
        BeforeValidator(_count_of_logprobs, json_schema_input_type=Alternatives | bool | None),
    ] = Field(
        None,
        description="Return each token's, and this many alternatives'. true is 1, false is off.",
    )
    max_completion_tokens: int | None = Field(
        None, ge=0, description="Another name of `max_tokens`."
    )
    max_tokens: int | None = Field(
        None,
        ge=0,
        description=f"Most tokens to generate. Default: {DEFAULT_MAX_TOKENS}, or the model's "
        "limit if that is less.",
    )
    min_tokens: int | None = Field(
        None,
        ge=0,
        description="The same as `max_tokens`, or any smaller number with `ignore_eos`; not "
        "together with `stop`. An extension.",
    )
    n: int | None = Field(None, ge=1, description="Choices for each prompt.")
    presence_penalty: Penalty | None = Field(
        None, description="Subtracted from a token's logit once the choice has it."
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Same seed, same text. -1 draws one; other negative ones count from 2^63.",
    )
    stop: str | TextList | None = Field(
        None, description="Texts that end a choice; empty ones are ignored."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    suffix: str | None = Field(
        None,
        description="The text after the blank: each choice fills the blank between the prompt and "
        "this text, as in /infill. Empty counts as none.",
    )
    temperature: float | None = Field(None, ge=0.0, le=1e9, description="0 takes the likeliest.")
    top_k: int | None = Field(
        None, ge=-1, description="As in /generate; -1 and 0 keep all. An extension."
    )
    top_logprobs: Alternatives | None = Field(
        None, description="With `logprobs` true: the number of alternatives."
    )
    top_p: float | None = Field(None, ge=0.0, le=1.0, description="As in /generate.")
    min_p: float | None = Field(None, ge=0.0, le=1.0, description="As in /generate; an extension.")

    adapt: bool | None = Field(None, description="As in /generate; an extension.")

    @property
    def written(self) -> int:
        """Choices to write of each prompt, of which `n` are answered."""
        return self.best_of or self.n or 1

    @property
    def alternatives(self) -> int | None:
        """Alternatives for each token; None without log-probabilities."""
        return self.logprobs if self.top_logprobs is None else self.top_logprobs

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def field_of_option(self) -> Mapping[str, str]:
        """The fields for the engine's options that have other names here."""
        written = {} if self.best_of is None else {"n": "best_of"}
        # If the answer has no log-probabilities, they are computed only to choose the best.
        return written | ({"logprobs": "best_of"} if self.alternatives is None else {})

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several prompts, each a text or ids."""
        prompt = "" if self.prompt is None else self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)

    def options(self, engine: Generates) -> GenerateOptions:
        """The engine's options. Raises InvalidRequest."""
        self._check()
        names = engine.tokens
        biases: dict[str, float] = {}
        for key, gain in (self.logit_bias or {}).items():
            if not int(key) < len(names):
                raise InvalidRequest.of_option(
                    "logit_bias", f"every key is the id of a token, 0 to {len(names) - 1}"
                )
            biases[names[int(key)]] = gain
        max_tokens = self._limit(engine)
        if self._goes_on(max_tokens, self._stop):
            biases[names[EOS_ID]] = -math.inf
        # Log-probabilities decide which choices are best.
        needs_logprobs = self.written > (self.n or 1)
        return GenerateOptions(
            max_tokens=max_tokens,
            sampling=self._sampling,
            logit_bias=biases,
            seed=engine_seed(self.seed),
            stop=self._stop,
            n=self.written,
            echo=bool(self.echo),
            logprobs=0 if needs_logprobs and self.alternatives is None else self.alternatives,
            adapt=bool(self.adapt),
        )

    def insertion(self) -> tuple[list[Blanks], InsertOptions]:
        """The prompts and the suffix as texts around a blank, and the options.

        Raises InvalidRequest, also for fields that make no sense for a fill.
        """
        self._check()
        for name in _OF_CONTINUATIONS:
            if getattr(self, name):
                raise InvalidRequest.of_option(name, "not together with suffix")
        if self.alternatives is not None:
            raise InvalidRequest.of_option(
                "logprobs", "not together with suffix; /infill has the log-probabilities"
            )
        if self.written > (self.n or 1):
            raise InvalidRequest.of_option("best_of", "with suffix, it must equal n")
        prompts = [prompt for prompt in self.prompts if isinstance(prompt, str)]
        if len(prompts) < len(self.prompts):
            raise InvalidRequest.of_option("prompt", "with suffix, it is a text or a list of texts")
        max_tokens = (
            self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        )
        if max_tokens == 0:
            raise InvalidRequest.of_option("max_tokens", "with suffix, it must be 1 or more")
        # A text may begin with its bos, which the engine adds by itself.
        texts = [prompt.removeprefix(SPECIAL_TOKENS[BOS_ID]) for prompt in prompts]
        return one_blank(texts, [self.suffix or ""] * len(texts)), InsertOptions(
            max_tokens=max_tokens,
            sampling=self._sampling,
            n=self.n or 1,
            seed=engine_seed(self.seed),
            stop=self._stop,
        )

    @property
    def _stop(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(text for text in given if text)

    @property
    def _sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k if self.top_k and self.top_k > 0 else None,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )

    def _check(self) -> None:
        """Raise InvalidRequest for fields that exclude each other or belong to another server."""
        refuse_foreign(self.model_extra or {}, type(self).model_fields)
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest.of_option("stream_options", "only with stream")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise InvalidRequest.of_option("best_of", "at least n")
        if self.best_of is not None and self.stream and self.best_of > (self.n or 1):
            raise InvalidRequest.of_option("best_of", "not together with stream")
        if self.top_logprobs is not None and self.logprobs not in {1, self.top_logprobs}:
            raise InvalidRequest.of_option("top_logprobs", "only with logprobs true")
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise InvalidRequest.of_option(
                "max_completion_tokens", "give only max_tokens, or the same value in both"
            )

    def _limit(self, engine: Generates) -> int:
        for given in (self.max_tokens, self.max_completion_tokens):
            if given is not None:
                return given
        return min(DEFAULT_MAX_TOKENS, engine.max_tokens)

    def _goes_on(self, max_tokens: int, stop: Sequence[str]) -> bool:
        """Whether no text may end before `max_tokens`. Raises InvalidRequest."""
        if not self.min_tokens:
            return bool(self.ignore_eos)
        if stop:
            raise InvalidRequest.of_option("min_tokens", "not together with stop")
        if self.min_tokens > max_tokens:
            raise InvalidRequest.of_option(
                "min_tokens", f"at most max_tokens, which is {max_tokens}"
            )
        if not self.ignore_eos and self.min_tokens < max_tokens:
            raise InvalidRequest.of_option(
                "min_tokens", "the same as max_tokens, or any smaller number with ignore_eos"
            )
        return True


def engine_seed(seed: int | None) -> int | None:
    """The engine's seed, from 0 to 2^63 - 1; None if one is to be drawn, as with -1."""
    return None if seed is None or seed == -1 else seed % 2**63


def engine_prompt(prompt: str | list[int], vocab_size: int) -> tuple[Prompt, bool]:
    """The prompt without its bos, which the engine adds by itself, and whether it had one.

    Raises InvalidRequest for an id that no text can have.
    """
    if isinstance(prompt, str):
        # Clients that turn ids into a text again write bos in its printed form.
        bos = SPECIAL_TOKENS[BOS_ID]
        return prompt.removeprefix(bos), prompt.startswith(bos)
    has_bos = prompt[:1] == [BOS_ID]
    ids = tuple(prompt[1:] if has_bos else prompt)
    if any(i >= vocab_size or i in {PAD_ID, BOS_ID, EOS_ID} for i in ids):
        raise InvalidRequest.of_option(
            "prompt",
            f"a token id is {EOS_ID + 1} to {vocab_size - 1}, and the first may be {BOS_ID} (bos)",
        )
    return ids, has_bos
