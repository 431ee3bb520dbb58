"""Tiny corpora, configurations and runs; nothing in here takes a second."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from service.bundle.text import BOS_ID, EOS_ID, Vocabulary
from training.config import (
    EncoderDecoderConfig,
    EncoderDecoderNetworkConfig,
    LanguageModelConfig,
    LanguageModelNetworkConfig,
)
from training.data import corpus as corpora
from training.data.corpus import Corpus, Split
from training.data.pairs import PairSplit, prepare_pairs
from training.loop.encoder_decoder import EncoderDecoderTask
from training.loop.language_model import LanguageModelTask
from training.loop.trainer import Trainer
from training.networks.encoder_decoder import EncoderDecoder
from training.networks.language_model import LanguageModel

# Runs a command of `python -m training`: exit status, standard output, standard error.
Main: TypeAlias = Callable[..., tuple[int, str, str]]

# Two of Aesop's fables (public domain), line by line; 31 different characters.
FABLE = """\
a fox one day spied a beautiful bunch of ripe grapes hanging
from a vine trained along the branches of a tree.
the grapes seemed ready to burst with juice, and the fox's
mouth watered as he gazed longingly at them.
the bunch hung from a high branch, and the fox had to jump for
it. the first time he jumped he missed it by a long way.
so he walked off a short distance and took a running leap at
it, only to fall short once more.
again and again he tried, but in vain.
now he sat down and looked at the grapes in disgust.
"what a fool i am," he said. "here i am wearing myself out to
get a bunch of sour grapes that are not worth gaping for."
and off he walked very, very scornfully.
a crow who had stolen a piece of cheese was flying toward the
top of a tall tree where she hoped to enjoy it, when a fox
spied her. "if i plan this right," said he to himself,
"i shall have cheese for supper."
"""


def write_toml(path: Path, document: Mapping[str, Any]) -> Path:
    """A TOML file of scalars, lists of them and tables."""
    path.write_text("".join(_toml_lines(document, ())), encoding="utf-8")
    return path


def _toml_lines(table: Mapping[str, Any], name: tuple[str, ...]) -> Iterator[str]:
    if name:
        yield f"[{'.'.join(name)}]\n"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {json.dumps(value)}\n"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml_lines(value, (*name, key))


def tiny_document(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """A small configuration as a document; keyword arguments change options of its sections."""
    document: dict[str, Any] = {
        "name": "tiny",
        "data": {"files": ["text.txt"], "valid_fraction": 0.1, "test_fraction": 0.1},
        "model": {"cell": "lstm", "num_layers": 1, "hidden_size": 12, "embedding_dim": 6},
        "training": {
            "steps": 10,
            "batch_size": 4,
            "bptt_len": 12,
            "warmup_steps": 3,
            "eval_every": 5,
            "log_every": 1,
            "checkpoint_every": 5,
            "sample_chars": 0,
            "threads": 1,
        },
        "baselines": {"max_order": 2},
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return document


def tiny_ngram_document(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """A small n-gram's configuration as a document; as `tiny_document`."""
    document = {**tiny_document(), "name": "tiny-ngram", "model": {"cell": "ngram", "order": 3}}
    del document["training"]
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return document


def tiny_config(**sections: Mapping[str, Any]) -> LanguageModelConfig:
    """The configuration of `tiny_document`."""
    return LanguageModelConfig.model_validate(tiny_document(**sections))


def tiny_corpus(config: LanguageModelConfig, folder: Path, text: str = FABLE) -> Corpus:
    """`text` as text.txt in `folder`, prepared for the configuration."""
    (folder / "text.txt").write_bytes(text.encode())
    return corpora.prepare(config.data, folder, folder / "corpus")


def tiny_trainer(
    folder: Path, text: str = FABLE, /, **sections: Mapping[str, Any]
) -> Trainer[LanguageModel]:
    """A trainer whose run folder is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**sections)
    task = LanguageModelTask(config, tiny_corpus(config, folder, text))
    return Trainer(config, task, folder)


def task_of(run: Trainer[LanguageModel]) -> LanguageModelTask:
    """What a language model's trainer trains."""
    assert isinstance(run.task, LanguageModelTask)
    return run.task


def split_of(documents: Sequence[Sequence[int]]) -> Split:
    """A split in memory; `documents` hold the ids between bos and eos."""
    stored = [[BOS_ID, *document, EOS_ID] for document in documents]
    starts = np.cumsum([0, *(len(document) for document in stored)], dtype=np.int64)
    return Split(np.array([x for document in stored for x in document], np.uint16), starts)


def texts(corpus: Corpus, name: str) -> list[str]:
    """The documents of a split as text; unk prints as its private-use character."""
    return [
        "".join(corpus.vocab.tokens[i] for i in ids[1:-1]) for ids in documents(corpus.split(name))
    ]


def documents(split: Split) -> list[list[int]]:
    """The ids of every document, bos and eos included."""
    return [
        [int(i) for i in split.ids[split.starts[d] : split.starts[d + 1]]]
        for d in range(split.documents)
    ]


def vocabulary(size: int) -> Vocabulary:
    """The special tokens and `size - 4` letters."""
    return Vocabulary.of_characters(chr(ord("a") + i) for i in range(size - 4))


def tiny_model(vocab_size: int = 11, **options: Any) -> LanguageModel:
    """A model with random weights, in evaluation mode."""
    config = LanguageModelNetworkConfig(**{"hidden_size": 8, "embedding_dim": 5, **options})
    return LanguageModel(config, vocab_size).eval()


# --- pairs --------------------------------------------------------------------------------------

# Every different word of the fables, and the same word backwards.
WORDS = sorted(set(re.findall("[a-z]+", FABLE)))
BACKWARDS = "".join(f"{word}\t{word[::-1]}\n" for word in WORDS)


TINY_SIZES: dict[str, Any] = {
    "encoder_hidden_size": 6,
    "hidden_size": 12,
    "embedding_dim": 5,
    "conv_widths": [1, 2, 3],
    "conv_filters": [3, 4, 5],
    "pool_stride": 2,
}


def tiny_encoder_decoder_document(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """A small configuration of pairs as a document; keyword arguments change its sections."""
    document: dict[str, Any] = {
        "task": "encoder_decoder",
        "name": "tiny-pairs",
        "data": {"files": ["pairs.tsv"], "valid_fraction": 0.15, "test_fraction": 0.15},
        "model": {**TINY_SIZES},
        "training": {
            "steps": 10,
            "batch_size": 16,
            "warmup_steps": 3,
            "eval_every": 5,
            "log_every": 1,
            "checkpoint_every": 5,
            "beam_size": 2,
            "show": 0,
            "threads": 1,
        },
    }
    for name, section in sections.items():
        document[name] = {**document[name], **section}
    return document


def tiny_infill_document(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """A small configuration of texts with blanks; keyword arguments change its sections."""
    pairs = tiny_encoder_decoder_document()
    document: dict[str, Any] = {
        **pairs,
        "task": "infill",
        "name": "tiny-infill",
        "data": {"files": ["text.txt"], "valid_fraction": 0.1, "test_fraction": 0.1},
        "spans": {
            "context": 12,
            "max_chars": 6,
            "max_blanks": 3,
            "several_share": 0.4,
            "short_share": 0.3,
            "valid_texts": 20,
            "test_texts": 30,
        },
    }
    for name, section in sections.items():
        document[name] = {**document[name], **section}
    return document


def tiny_encoder_decoder_trainer(
    folder: Path, text: str = BACKWARDS, /, **sections: Mapping[str, Any]
) -> Trainer[EncoderDecoder]:
    """A trainer of pairs whose run folder is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.tsv").write_text(text, encoding="utf-8")
    config = EncoderDecoderConfig.model_validate(tiny_encoder_decoder_document(**sections))
    corpus = prepare_pairs(config.data, folder)
    return Trainer(config, EncoderDecoderTask(config, corpus), folder)


def encoder_decoder_task_of(run: Trainer[EncoderDecoder]) -> EncoderDecoderTask:
    """What an encoder-decoder's trainer trains."""
    assert isinstance(run.task, EncoderDecoderTask)
    return run.task


def pair_split_of(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> PairSplit:
    """A split in memory from ids; its texts are the ids in words."""
    return PairSplit(
        "made",
        [(" ".join(map(str, source)), " ".join(map(str, target))) for source, target in pairs],
        [np.array(source, np.uint16) for source, _ in pairs],
        [np.array(target, np.uint16) for _, target in pairs],
    )


def tiny_encoder_decoder(
    source_vocab_size: int = 11, target_vocab_size: int = 9, *, scale: float = 2.0, **options: Any
) -> EncoderDecoder:
    """A model with random weights, in evaluation mode; `scale` makes them tell inputs apart."""
    config = EncoderDecoderNetworkConfig(**{**TINY_SIZES, **options})
    model = EncoderDecoder(config, source_vocab_size, target_vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
            if parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
    return model
