"""Texts to token ids and back, for evaluation clients (the shapes are vLLM's)."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, UNK_ID
from service.errors import InvalidRequest
from service.http.answers import engine_named, json_answer
from service.http.body import body_documentation, read_body
from service.http.problems import PROBLEMS
from service.http.wire import Answer, RequestBody
from service.tasks.engine import Engine
from service.tasks.limits import at_most
from service.tasks.vocabularies import ClientVocabulary, Side

router = APIRouter(tags=["tokens"])


class TokenizeRequest(RequestBody):
    """Read a text as token ids."""

    prompt: str = Field(description="The text. Printed special tokens in it are read as such.")
    add_special_tokens: bool = Field(False, description="Begin with bos.")
    side: Side = Field("source", description="The side of an encoder-decoder.")


class TokenizeResponse(Answer):
    """Answer of `/tokenize`."""

    tokens: list[int] = Field(description="Token ids.")
    count: int = Field(description="How many.")
    max_model_len: int = Field(description="Most characters of a prompt, or tokens of a source.")


class DetokenizeRequest(RequestBody):
    """Write token ids as a text."""

    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)] = Field(
        description="Token ids."
    )
    side: Side = Field("source", description="The side of an encoder-decoder.")


class DetokenizeResponse(Answer):
    """Answer of `/detokenize`."""

    prompt: str = Field(description="The text; special tokens in their printed forms.")


class TokenizerInfo(Answer):
    """Answer of `/tokenizer_info`."""

    model: str = Field(description="The model.")
    tokenization: str = Field(
        description="What a token is; for an encoder-decoder, on the source side."
    )
    vocab_size: int = Field(description="Tokens, the four special ones included.")
    bos_token: str = Field(description="Printed form of id 1.")
    eos_token: str = Field(description="Printed form of id 2.")
    pad_token: str = Field(description="Printed form of id 0.")
    unk_token: str = Field(description="Printed form of id 3.")
    add_bos_token: bool = Field(description="Whether `/tokenize` adds bos by itself.")
    chat_template: None = Field(description="There is none: these models do not chat.")


class VocabToken(Answer):
    """A token."""

    id: int = Field(description="Its id.")
    token: str = Field(description="Its printed form.")
    special: bool = Field(description="Whether it is a special token without text.")


class Vocab(Answer):
    """Answer of `/models/{name}/vocab`."""

    model: str = Field(description="The model.")
    side: Side | None = Field(description="The side of an encoder-decoder; else null.")
    tokens: list[VocabToken] = Field(description="Every token, by id.")


@router.get(
    "/models/{name}/vocab",
    response_model=Vocab,
    responses={404: PROBLEMS[404], 422: PROBLEMS[422]},
)
async def vocab(
    name: str,
    request: Request,
    side: Annotated[Side, Query(description="The side of an encoder-decoder.")] = "source",
) -> Response:
    """Every token of a model, or of one side of an encoder-decoder."""
    engine = await engine_named(request, name)
    names = _vocabulary(engine, side).tokens

    def answer() -> Vocab:
        return Vocab.model_construct(
            model=engine.manifest.name,
            side=side if side in engine.vocabularies else None,
            tokens=[
                VocabToken.model_construct(id=i, token=token, special=i < len(SPECIAL_TOKENS))
                for i, token in enumerate(names)
            ],
        )

    return await json_answer(len(names), answer)


@router.post(
    "/tokenize",
    response_model=TokenizeResponse,
    responses=PROBLEMS,
    openapi_extra=body_documentation(TokenizeRequest),
)
async def tokenize(request: Request) -> Response:
    """A text's token ids."""
    body = await read_body(request, TokenizeRequest)
    engine = await engine_named(request, body.model)
    settings = request.app.state.settings
    at_most("prompt", len(body.prompt), settings.max_prompt_chars, "characters")
    vocabulary = _vocabulary(engine, body.side)

    def answer() -> TokenizeResponse:
        ids = vocabulary.ids_of(body.prompt)
        if body.add_special_tokens:
            ids = [BOS_ID, *ids]
        return TokenizeResponse.model_construct(
            tokens=ids, count=len(ids), max_model_len=vocabulary.max_length
        )

    return await json_answer(len(body.prompt), answer)


@router.post(
    "/detokenize",
    response_model=DetokenizeResponse,
    responses=PROBLEMS,
    openapi_extra=body_documentation(DetokenizeRequest),
)
async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    body = await read_body(request, DetokenizeRequest)
    engine = await engine_named(request, body.model)
    at_most("tokens", len(body.tokens), request.app.state.settings.max_prompt_chars, "tokens")
    vocabulary = _vocabulary(engine, body.side)
    size = len(vocabulary.tokens)

    def answer() -> DetokenizeResponse:
        if any(i >= size for i in body.tokens):
            raise InvalidRequest.of_option("tokens", f"a token id is 0 to {size - 1}")
        return DetokenizeResponse(prompt=vocabulary.text_of(body.tokens))

    return await json_answer(len(body.tokens), answer)


@router.get("/tokenizer_info", responses={404: PROBLEMS[404], 422: PROBLEMS[422]})
async def tokenizer_info(
    request: Request,
    model: Annotated[str | None, Query(description="Optional if one model is served.")] = None,
) -> TokenizerInfo:
    """How texts are tokenized, for clients that use `/tokenize`."""
    engine = await engine_named(request, model)
    vocabulary = _vocabulary(engine, "source")
    return TokenizerInfo(
        model=engine.manifest.name,
        tokenization=vocabulary.tokenization,
        vocab_size=len(vocabulary.tokens),
        bos_token=SPECIAL_TOKENS[BOS_ID],
        eos_token=SPECIAL_TOKENS[EOS_ID],
        pad_token=SPECIAL_TOKENS[PAD_ID],
        unk_token=SPECIAL_TOKENS[UNK_ID],
        add_bos_token=False,
        chat_template=None,
    )


def _vocabulary(engine: Engine, side: Side) -> ClientVocabulary:
    """The vocabulary of that side, or the one of a model that has no sides."""
    return engine.vocabularies[side if side in engine.vocabularies else None]
