"""Prepared labelled texts in a run's folder: the run no longer needs the original files."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.bundle.labeler import Labels
from service.bundle.tokenization import Tokenizer
from training.config import LabelDataConfig
from training.data.labelled import LabelIds, LabelledCorpus, LabelledSplit
from training.data.stored import load, restored_tokenizer, store, tokenizer_record

_FORMAT = 1


def store_labelled(corpus: LabelledCorpus, path: Path) -> None:
    """Write the texts, whole or not at all."""
    allowed = corpus.allowed
    document = {
        "format": _FORMAT,
        "sha256": corpus.sha256,
        "text": tokenizer_record(corpus.tokenizer),
        "labels": corpus.labels.model_dump(),
        "allowed": None if allowed is None else [np.flatnonzero(x).tolist() for x in allowed],
        "counts": corpus.counts,
        "splits": [_entry(split) for split in (corpus.train, corpus.valid, *corpus.tests)],
    }
    store(document, path)


def load_labelled(config: LabelDataConfig, path: Path) -> LabelledCorpus:
    """The texts as they were prepared. Raises ConfigError where they are missing or damaged."""
    document = load(path, _FORMAT)
    tokenizer = restored_tokenizer(config.text, document["text"])
    labels = Labels.model_validate(document["labels"])
    allowed = None
    if document["allowed"] is not None:
        allowed = np.zeros((len(tokenizer), len(labels.names)), np.bool_)
        for row, ids in zip(allowed, document["allowed"], strict=True):
            row[ids] = True
    splits = [_split(entry, tokenizer, config.max_tokens) for entry in document["splits"]]
    train, valid, *tests = splits
    return LabelledCorpus(
        tokenizer=tokenizer,
        labels=labels,
        allowed=allowed,
        sha256=document["sha256"],
        train=train,
        valid=valid,
        tests=tests,
        counts=document["counts"],
    )


def _entry(split: LabelledSplit) -> dict[str, Any]:
    """A split; the labels of all its texts are one string, which is much shorter than a list."""
    ids = np.concatenate([*split.labels, np.empty(0, np.int32)]).astype("<u2")
    return {
        "name": split.name,
        "texts": list(split.texts),
        "labels_of_each": [len(labels) for labels in split.labels],
        "labels": base64.b64encode(ids.tobytes()).decode("ascii"),
    }


def _split(entry: dict[str, Any], tokenizer: Tokenizer, max_tokens: int) -> LabelledSplit:
    ids = np.frombuffer(base64.b64decode(entry["labels"]), "<u2").astype(np.int32)
    ends = np.cumsum(entry["labels_of_each"], dtype=np.int64)
    labels: Sequence[LabelIds] = np.split(ids, ends[:-1])
    texts = entry["texts"]
    tokens = [tokenizer.encode(text)[:max_tokens] for text in texts]
    return LabelledSplit(entry["name"], texts, tokens, labels)
