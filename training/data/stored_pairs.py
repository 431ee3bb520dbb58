"""Prepared pairs in a run's folder: all that the run needs, even when its files are gone."""

import hashlib
import json
from pathlib import Path
from typing import Any

from service.bundle.tokenization import Subwords, Tokenizer
from training.config import ConfigError, EncoderDecoderDataConfig, TextSideConfig
from training.data.pairs import PairCorpus, PairSplit, make_tokenizer

_FORMAT = 1


def store_pairs(corpus: PairCorpus, path: Path) -> None:
    """Write the pairs, whole or not at all: a line with the SHA-256, then JSON."""
    document = {
        "format": _FORMAT,
        "sha256": corpus.sha256,
        "source": tokenizer_record(corpus.source),
        "target": tokenizer_record(corpus.target),
        "shared": corpus.source is corpus.target,
        "counts": corpus.counts,
        "splits": [
            {"name": split.name, "pairs": list(split.pairs)}
            for split in (corpus.train, corpus.valid, *corpus.tests)
        ],
    }
    body = json.dumps(document, ensure_ascii=True).encode("ascii")
    scratch = path.with_suffix(".writing")
    scratch.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    scratch.replace(path)


def load_pairs(config: EncoderDecoderDataConfig, path: Path) -> PairCorpus:
    """The pairs as they were prepared. Raises ConfigError where they are missing or damaged."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: missing; the run's folder is incomplete") from error
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ConfigError(f"{path}: damaged: it has changed since it was written")
    document = json.loads(body)
    if document["format"] != _FORMAT:
        raise ConfigError(f"{path}: written by another version; train the run anew")
    source = restored_tokenizer(config.source, document["source"])
    shared = document["shared"]
    target = source if shared else restored_tokenizer(config.target, document["target"])
    train, valid, *tests = (_split(entry, source, target) for entry in document["splits"])
    return PairCorpus(source, target, document["sha256"], train, valid, tests, document["counts"])


def tokenizer_record(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as checkpoints and prepared pairs store it."""
    document = tokenizer.document if isinstance(tokenizer, Subwords) else None
    return {"tokens": list(tokenizer.tokens), "document": document}


def restored_tokenizer(side: TextSideConfig, record: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `tokenizer_record` describes."""
    return make_tokenizer(side.tokenization, record["tokens"], record["document"])


def _split(entry: dict[str, Any], source: Tokenizer, target: Tokenizer) -> PairSplit:
    pairs = [(x, y) for x, y in entry["pairs"]]
    return PairSplit(
        entry["name"],
        pairs,
        [source.encode(x) for x, _ in pairs],
        [target.encode(y) for _, y in pairs],
    )
