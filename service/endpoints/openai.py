"""OpenAI's completions over the engine's own calls."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request, Response

from service.bundle.text import BOS_ID
from service.endpoints.openai_errors import END_OF_STREAM, OPENAI_ERRORS, openai_error_event
from service.endpoints.openai_request import CompletionRequest, engine_prompt
from service.endpoints.openai_suffix import insert
from service.endpoints.openai_wire import (
    Completion,
    CompletionChoice,
    Envelope,
    LogprobsOut,
    ModelOut,
    ModelsOut,
    OpenAIErrorAnswer,
    logprobs_of,
    usage_of,
)
from service.errors import ModelNotFound
from service.http.answers import (
    engine_with,
    json_answer,
    registry_of,
    unless_gone,
)
from service.http.body import body_documentation, read_body
from service.http.option_names import named_by
from service.http.sse import ServerSentEvent, documented_events, event_response
from service.runtime.threads import off_loop
from service.tasks.engine import GENERATE, Generates
from service.tasks.scored_tokens import ScoredToken
from service.tasks.text_stream import text_of
from service.tasks.values import (
    ChoiceEnd,
    Generated,
    GenerateOptions,
    Prompt,
    TokenEvent,
    best_choices,
)

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get("/models")
async def models(request: Request) -> ModelsOut:
    """Every served language model, in OpenAI's form."""
    data = [ModelOut.of(card) for card in registry_of(request).cards_with(GENERATE)]
    return ModelsOut(object="list", data=data)


@router.get("/models/{name}", responses={404: OPENAI_ERRORS[404]})
async def model(name: str, request: Request) -> ModelOut:
    """One served language model, in OpenAI's form."""
    card = registry_of(request).card(name)
    if GENERATE not in card.abilities:
        raise ModelNotFound("not a language model; /models lists the others")
    return ModelOut.of(card)


@router.post(
    "/completions",
    response_model=Completion,
    responses=OPENAI_ERRORS | documented_events((Completion, OpenAIErrorAnswer), end=END_OF_STREAM),
    openapi_extra=body_documentation(CompletionRequest),
)
async def completions(request: Request) -> Response:
    """Complete a prompt, or every prompt of a list."""
    body = await read_body(request, CompletionRequest)
    if body.suffix:
        return await insert(request, body)
    engine = await engine_with(request, body.model, GENERATE)
    asked = body.prompts
    options = body.options(engine)
    size, vocab_size = sum(map(len, asked)), len(engine.tokens)
    pairs = await off_loop(size, lambda: [engine_prompt(prompt, vocab_size) for prompt in asked])
    prompts = [prompt for prompt, _ in pairs]
    frame = _Frame(engine, body, pairs)
    with named_by(body.field_of_option):
        if body.stream:
            events = _events(engine, frame, prompts, options)
            return await event_response(request, events, partial(openai_error_event, request))
        results = await unless_gone(request, engine.generate(prompts, options))
    size = sum(len(choice.text) for result in results for choice in result.choices)
    return await json_answer(size * (1 + (body.alternatives or 0)), lambda: frame.answer(results))


class _Frame:
    """The parts that all chunks of one answer share."""

    def __init__(
        self,
        engine: Generates,
        body: CompletionRequest,
        prompts: Sequence[tuple[Prompt, bool]],
    ) -> None:
        """`prompts`: each prompt, and whether it began with bos."""
        self._engine = engine
        self._body = body
        self._began_with_bos = [has_bos for _, has_bos in prompts]
        # Offsets count from the prompt's beginning; in an echoed text the prompt is in them.
        self._starts = [
            0 if body.echo or body.alternatives is None else len(text_of(prompt, engine.tokens))
            for prompt, _ in prompts
        ]
        self._count = body.n or 1
        self.wants_usage = body.wants_usage
        self.chunk = Envelope(engine, adapt=bool(body.adapt)).chunk

    def index(self, prompt: int, choice: int) -> int:
        """The place of a choice."""
        return prompt * self._count + choice

    def bos_of(self, prompt: int) -> str | None:
        """The printed bos of a prompt that is echoed with it."""
        echoed = self._began_with_bos[prompt] and bool(self._body.echo)
        return self._engine.tokens[BOS_ID] if echoed else None

    def offsets(self, prompt: int, offsets: Sequence[int]) -> list[int]:
        """Offsets in the prompt and its completion, from offsets in the answer's text."""
        return [self._starts[prompt] + offset for offset in offsets]

    def answer(self, results: Sequence[Generated]) -> Completion:
        """The whole answer."""
        choices = []
        for i, result in enumerate(results):
            for k, choice in enumerate(best_choices(result.choices, self._count)):
                logprobs = None
                if self.wants_logprobs():
                    offsets = self.offsets(i, choice.offsets)
                    logprobs = logprobs_of(choice.tokens or (), offsets, after_bos=self.bos_of(i))
                choices.append(
                    CompletionChoice.model_construct(
                        text=choice.text,
                        index=self.index(i, k),
                        logprobs=logprobs,
                        finish_reason=choice.finish_reason,
                    )
                )
        prompt_tokens = sum(result.prompt_tokens for result in results)
        written = sum(x.completion_tokens for result in results for x in result.choices)
        unknown = sum(result.unknown.count for result in results)
        return self.chunk(choices, usage_of(prompt_tokens, written, unknown))

    def wants_logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return self._body.alternatives is not None


async def _events(
    engine: Generates, frame: _Frame, prompts: Sequence[Prompt], options: GenerateOptions
) -> AsyncGenerator[ServerSentEvent, None]:
    began: set[int] = set()
    async with aclosing(engine.stream(prompts, options)) as events:
        async for event in events:
            if isinstance(event, TokenEvent | ChoiceEnd):
                index = frame.index(event.prompt, event.choice)
                bos = frame.bos_of(event.prompt) if index not in began else None
                began.add(index)
                yield _chunk_event(frame, _piece(frame, event, index, bos))
            elif frame.wants_usage:
                unknown = sum(x.count for x in event.unknown)
                usage = usage_of(event.prompt_tokens, event.completion_tokens, unknown)
                yield ServerSentEvent(frame.chunk([], usage).model_dump_json())
    yield ServerSentEvent(END_OF_STREAM)


def _piece(
    frame: _Frame, event: TokenEvent | ChoiceEnd, index: int, bos: str | None
) -> CompletionChoice:
    """A choice's token or its end; before the first token comes the prompt's bos."""
    text, reason = "", None
    tokens: list[ScoredToken] = []
    offsets: list[int] = []
    if isinstance(event, ChoiceEnd):
        reason = event.finish_reason
    else:
        text = event.text
        if event.token is not None:
            tokens, offsets = [event.token], frame.offsets(event.prompt, [event.offset])
    logprobs: LogprobsOut | None = None
    if frame.wants_logprobs() and (tokens or bos is not None):
        logprobs = logprobs_of(tokens, offsets, after_bos=bos)
    return CompletionChoice.model_construct(
        text=text, index=index, logprobs=logprobs, finish_reason=reason
    )


def _chunk_event(frame: _Frame, choice: CompletionChoice) -> ServerSentEvent:
    return ServerSentEvent(frame.chunk([choice]).model_dump_json())
