"""Prepared pairs in a run's folder: all that the run needs, even when its files are gone."""

from pathlib import Path
from typing import Any

from service.bundle.tokenization import Tokenizer
from training.config import EncoderDecoderDataConfig
from training.data.pairs import PairCorpus, PairSplit
from training.data.stored import load, restored_tokenizer, store, tokenizer_record

_FORMAT = 1


def store_pairs(corpus: PairCorpus, path: Path) -> None:
    """Write the pairs, whole or not at all."""
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
    store(document, path)


def load_pairs(config: EncoderDecoderDataConfig, path: Path) -> PairCorpus:
    """The pairs as they were prepared. Raises ConfigError where they are missing or damaged."""
    document = load(path, _FORMAT)
    source = restored_tokenizer(config.source, document["source"])
    shared = document["shared"]
    target = source if shared else restored_tokenizer(config.target, document["target"])
    train, valid, *tests = (_split(entry, source, target) for entry in document["splits"])
    return PairCorpus(source, target, document["sha256"], train, valid, tests, document["counts"])


def _split(entry: dict[str, Any], source: Tokenizer, target: Tokenizer) -> PairSplit:
    pairs = [(x, y) for x, y in entry["pairs"]]
    return PairSplit(
        entry["name"],
        pairs,
        [source.encode(x) for x, _ in pairs],
        [target.encode(y) for _, y in pairs],
    )
