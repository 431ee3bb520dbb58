"""models/README.md, written from the manifest's schema: `make models/README.md`."""

import sys
import typing
from collections.abc import Iterator
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from service.bundle.encoder_decoder import EncoderDecoderManifest
from service.bundle.labeler import LabelerManifest
from service.bundle.language_model import LanguageModelManifest

PREAMBLE = """\
# Bundles

A bundle is a folder with everything that the service needs to serve one model:

| file | contents |
| --- | --- |
| `manifest.json` | what the model is, what it reads and writes, and how good it is; the tables below list its fields |
| `vocab.json` | a JSON list of tokens; the index is the id. The first four are pad, bos, eos and unk. They print as U+E000 to U+E003 (private use), so that no text collides with them. An encoder-decoder has `source.vocab.json` and `target.vocab.json`, or `both.vocab.json` |
| `*.tokenizer.json` | for subwords: a tokenizer of the `tokenizers` library |
| `sequence.fp32.onnx` and others | the graphs: one file each, default operators only, no external data |

A bundle contains no pickle and no code, and the service reads no other file. It reads each file once, as bytes, and
does not follow links. It checks every SHA-256, compares the graphs' inputs and outputs with the manifest, and
computes the golden vectors on this machine. If anything differs, it rejects the bundle with a one-line message.

`python -m training export RUN` writes a bundle beside the old one and swaps it in.

## Graphs of a language model

B is the batch, T the time and V the vocabulary.

| tensor | meaning |
| --- | --- |
| `tokens` [B, T], `lengths` [B] | the input; row b has `lengths[b]` tokens |
| `<state>` | the states before the first token; a text begins with the zero state and bos |
| `targets` [B, T] | the tokens whose probability is asked for |
| `target_logprobs` [B, T] | log p(`targets[b, t]`) after reading `tokens[b, : t + 1]` |
| `logprobs` [B, T, V] | the same for every token of the vocabulary |
| `<state>_out` | the states after each row's last token |

To continue a text, pass `<state>_out` back as `<state>`. The numbers are the same to the bit in one call or several,
and in any batch.

## Graphs of an encoder-decoder

N is the number of sources, S their padded length and M the positions of the memory. Each source has B / N rows.

| graph | reads | gives |
| --- | --- | --- |
| `encoder` | `tokens` [N, S] and `lengths` [N]; each source ends with eos | the `memory` tensors, and the decoder's first states as `<state>_out` |
| `decoder` | one token per row, `tokens` [B], with the states [B, …] and the memory [N, …] | `logprobs` [B, V], `attention` [B, M] if the model has attention, and the next states |

The rows of a source stand together and share its memory. A source's padded length follows from its own length alone
(`service/bundle/padding.py`), and only sources of one padded length are read or stepped together. So every row is
the same to the bit as if it were alone, however many rows its source has.

## Graph of a labeler

N is the number of texts, S their padded length and L the number of labels.

| tensor | meaning |
| --- | --- |
| `tokens` [N, S], `lengths` [N] | the texts: bos, tokens and eos; bos and tokens if the model reads forward |
| `logprobs` [N, L] | log P of each label of a text |
| `logprobs` [N, S, L] | the same for each place: if the labels are of characters, or the model reads forward |
| `<state>`, `<state>_out` [N, …] | the states before and after, if the model reads forward; zeros at the beginning |

A text's padded length follows from its own length alone, and only texts of one padded length are read together.

## The shipped bundles

`make bundles` builds them; their figures are in the project's README. This page is written from the schema
(`make models/README.md`), and a test compares the two.
"""


_TITLES: dict[type[BaseModel], str] = {
    LanguageModelManifest: "`manifest.json` of a language model",
    EncoderDecoderManifest: "`manifest.json` of an encoder-decoder",
    LabelerManifest: "`manifest.json` of a labeler",
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
    if origin is typing.Annotated:
        return _type_name(arguments[0])
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
