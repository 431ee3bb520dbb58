"""Prepared data in a run's folder: a line with the SHA-256, then JSON."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.bundle.tokenization import Subwords, Tokenizer
from training.config import ConfigError, TextSideConfig
from training.data.tokenizers import make_tokenizer


def store(document: Mapping[str, Any], path: Path) -> None:
    """Write the document, whole or not at all. It has a `format`."""
    body = json.dumps(document, ensure_ascii=True).encode("ascii")
    scratch = path.with_suffix(".writing")
    scratch.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    scratch.replace(path)


def load(path: Path, form: int) -> dict[str, Any]:
    """The document of that format. Raises ConfigError where it is missing, damaged or another."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: missing; the run's folder is incomplete") from error
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ConfigError(f"{path}: damaged: it has changed since it was written")
    document: dict[str, Any] = json.loads(body)
    if document["format"] != form:
        raise ConfigError(f"{path}: written by another version; train the run anew")
    return document


def tokenizer_record(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as checkpoints and prepared data store it."""
    document = tokenizer.document if isinstance(tokenizer, Subwords) else None
    return {"tokens": list(tokenizer.tokens), "document": document}


def restored_tokenizer(side: TextSideConfig, record: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `tokenizer_record` describes."""
    return make_tokenizer(side.tokenization, record["tokens"], record["document"])
