"""The wire of `/infill` under llama.cpp's names: `input_prefix`, `input_suffix`, `input_extra`.

Names and shapes are those of its server (tools/server/README.md). Unknown fields are ignored, as
its clients expect; those that would change the text or the answer are rejected (`foreign_fields`).
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.decoding.sampling import SamplingParams
from service.endpoints.openai_request import engine_seed
from service.errors import InvalidRequest
from service.http.foreign_fields import refuse_foreign
from service.http.wire import Answer, TextList
from service.tasks.infill_values import Blanks
from service.tasks.insertions import Inserted, InsertOptions

# A body with one of these is llama.cpp's.
LLAMA_NAMES = ("input_prefix", "input_suffix", "input_extra")
# The field for each option of the engine that has another name here.
FIELD_OF_OPTION = {
    "prefix": "input_prefix",
    "suffix": "input_suffix",
    "max_tokens": "n_predict",
    "n": "n_cmpl",
}
# Fields of /infill's own form that would change the text, and that this form has nothing for.
_OF_OWN_FORM = (
    "allowed_chars",
    "blank",
    "candidates",
    "choices",
    "length",
    "pattern",
    "prefix",
    "rescore",
    "suffix",
    "text",
)
# Fields about the tokens of a continuation.
_OF_CONTINUATIONS = ("frequency_penalty", "logit_bias", "presence_penalty")


class LlamaExtra(BaseModel):
    """A text of another file."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    text: str = Field(description="The text.")
    filename: str | None = Field(None, description="Ignored: these models read text alone.")


class LlamaInfillRequest(BaseModel):
    """Fill the blank between two texts, as llama.cpp's server does."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = Field(
        None,
        description="Name of a served model; may be left out where one language model is served.",
    )
    input_prefix: str = Field("", description="The text before the blank.")
    input_suffix: str = Field("", description="The text after the blank.")
    input_extra: list[LlamaExtra] | None = Field(
        None, description="Texts to read before the prefix."
    )
    prompt: str = Field("", description="More text before the blank, after the prefix.")
    n_predict: int | None = Field(
        None,
        ge=-1,
        description="Most characters of the blank; -1 means the default, and 0 returns no text.",
    )
    n_cmpl: Literal[1] | None = Field(None, description="Only one text is returned.")
    temperature: float | None = Field(
        None,
        ge=0.0,
        le=1e9,
        description="Left out or 0: the likeliest fill. Above 0, one is drawn by its posterior.",
    )
    top_k: int | None = Field(
        None, description="Draw from this many of the likeliest fills; 0 or less keeps all."
    )
    top_p: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Draw from the likeliest fills with this total probability.",
    )
    min_p: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Draw from fills with this fraction of the best posterior.",
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Same seed, same text. -1 draws a seed."
    )
    stop: TextList | None = Field(
        None, description="Fills that contain one of these are left out; empty ones are ignored."
    )
    stream: bool | None = Field(
        None, description="Answer with server-sent events; the fill is sent as one event."
    )
    samplers: list[str] | None = Field(None, description="Ignored.")
    response_fields: list[str] | None = Field(
        None, description="Ignored: the answer always has all fields."
    )

    def blanks(self) -> Blanks:
        """The text around its blank."""
        extra = "".join(each.text for each in self.input_extra or ())
        return Blanks((extra + self.input_prefix + self.prompt, self.input_suffix))

    def options(self) -> InsertOptions:
        """The options. Raises InvalidRequest for a field that only another server supports."""
        given = self.model_extra or {}
        for name in _OF_CONTINUATIONS:
            if given.get(name):
                raise InvalidRequest.of_option(name, "a fill is drawn whole; leave this out")
        for name in _OF_OWN_FORM:
            if given.get(name):
                raise InvalidRequest.of_option(
                    name, f"not together with {', '.join(LLAMA_NAMES)}: send one form or the other"
                )
        refuse_foreign(given, type(self).model_fields)
        return InsertOptions(
            max_tokens=None if self.n_predict == -1 else self.n_predict,
            sampling=SamplingParams(
                temperature=self.temperature or 0.0,
                top_k=self.top_k if self.top_k and self.top_k > 0 else None,
                top_p=1.0 if self.top_p is None else self.top_p,
                min_p=self.min_p or 0.0,
            ),
            seed=engine_seed(self.seed),
            stop=tuple(text for text in self.stop or () if text),
        )


class LlamaInfillAnswer(Answer):
    """Answer of `/infill` under llama.cpp's names; with `stream`, its last event."""

    content: str = Field(description="The text of the blank.")
    tokens: list[int] = Field(description="Always empty.")
    stop: bool = Field(description="Whether this is the whole answer, or the end of a stream.")
    stop_type: Literal["eos", "word", "limit"] = Field(
        description="`eos`: the suffix follows. `word`: every fill had a stop string, and this one "
        "is cut off before it. `limit`: `n_predict` is 0."
    )
    stopping_word: str = Field(description="That stop string, or empty.")
    model: str = Field(description="The model that answered.")
    tokens_predicted: int = Field(description="Characters of the proposals.")
    tokens_evaluated: int = Field(description="Characters read.")
    tokens_cached: int = Field(description="How many of these did not have to be read again.")
    truncated: bool = Field(description="Always false.")

    @classmethod
    def of(cls, model: str, result: Inserted) -> "LlamaInfillAnswer":
        """From what was inserted."""
        choice, found = result.choices[0], result.infilled
        return cls(
            content=choice.text,
            tokens=[],
            stop=True,
            stop_type="eos" if choice.stop is None else "word",
            stopping_word=choice.stop or "",
            model=model,
            tokens_predicted=found.completion_tokens,
            tokens_evaluated=found.prompt_tokens,
            tokens_cached=found.cached_tokens,
            truncated=False,
        )

    @classmethod
    def empty(cls, model: str) -> "LlamaInfillAnswer":
        """The answer to a request for no text, which editors send ahead of the real ones."""
        return cls(
            content="",
            tokens=[],
            stop=True,
            stop_type="limit",
            stopping_word="",
            model=model,
            tokens_predicted=0,
            tokens_evaluated=0,
            tokens_cached=0,
            truncated=False,
        )


class LlamaPiece(Answer):
    """The event of a stream with the fill."""

    content: str = Field(description="The text of the blank.")
    tokens: list[int] = Field(description="Always empty.")
    stop: Literal[False] = Field(description="Always false: the end of the stream follows.")
