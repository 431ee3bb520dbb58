"""models/README.md, written from the manifest's schema: `make models/README.md`."""

import sys
import typing
from collections.abc import Iterator
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from service.bundle.encoder_decoder import EncoderDecoderManifest
from service.bundle.language_model import LanguageModelManifest

PREAMBLE = """\
# Bundles

A bundle is a folder with everything that the service needs to answer for one model:

| file | what |
| --- | --- |
| `manifest.json` | everything below: what the model is, what it reads and gives, what it is worth |
| `vocab.json` | a JSON list of tokens; the index is the id. The first four are pad, bos, eos and unk, which print as U+E000 to U+E003 (private use), so that no text collides with them. An encoder-decoder has `source.vocab.json` and `target.vocab.json`, or `both.vocab.json` |
| `*.tokenizer.json` | with subwords: a tokenizer of the `tokenizers` library |
| `sequence.fp32.onnx` and others | the graphs: one file each, default operators only, no external data |

There is no pickle and no code in it, and nothing else is read. The service reads the files once, as
bytes, checks every SHA-256, the graph's inputs and outputs against the manifest, and the golden
vectors against this machine, and refuses the bundle with one line when anything differs. Links are
not followed. `python -m training export RUN` writes a bundle beside the old one and swaps it in.

**A language model's graph.** `tokens` [B, T] are read from the states on, row b up to `lengths[b]`. `target_logprobs`
[B, T] is log p(`targets[b, t]`) after reading `tokens[b, : t + 1]`; `logprobs` [B, T, V] is the same
for every token of the vocabulary; `<state>_out` are the states after each row's last token. Feed
them back as `<state>` to go on: one call or many give the same numbers, bit for bit, and so does
any batch. The zero state and bos begin a text.

**An encoder-decoder's graphs.** `encoder`: sources `tokens` [N, S] of `lengths` [N], each with eos behind
and padded to a length that follows from its own alone (`service/bundle/padding.py`); it gives the `memory`
tensors and the decoder's first states `<state>_out`. `decoder`: one token a row, `tokens` [B], with the states
[B, …] and the memory [N, …]; the B / N rows of a source stand together and share its memory. It gives
`logprobs` [B, V], `attention` [B, M] where the model has attention, and the states after. Only sources of one
padded length are read or stepped together: then every row is bitwise what it is alone,
however many rows its source has.

**The shipped bundles** are built by `make bundles`; their figures stand in the project's README.

This page is written from the schema (`make models/README.md`), and a test compares them.
"""


_TITLES: dict[type[BaseModel], str] = {
    LanguageModelManifest: "`manifest.json` of a language model",
    EncoderDecoderManifest: "`manifest.json` of an encoder-decoder",
}


def render() -> str:
    """The whole page."""
    return "\n".join([PREAMBLE, *_sections()]) + "\n"


def _sections() -> Iterator[str]:
    queue: list[type[BaseModel]] = list(_TITLES)
    seen = set(queue)
    while queue:
        model = queue.pop(0)
        title = _TITLES.get(model, model.__name__)
        yield f"## {title}\n"
        yield f"{(model.__doc__ or '').strip().splitlines()[0]}\n"
        yield "| field | type | meaning |"
        yield "| --- | --- | --- |"
        for name, field in model.model_fields.items():
            yield f"| `{name}` | {_type_name(field.annotation)} | {field.description} |"
            for nested in _models_in(field.annotation):
                if nested not in seen:
                    seen.add(nested)
                    queue.append(nested)
        yield ""


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{argument!r}`" for argument in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"object: {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    if origin in (typing.Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names[annotation]


if __name__ == "__main__":
    sys.stdout.write(render())
