"""A configuration as a TOML document, with the reasons for its options as comments."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# The comment beside each option.
_COMMENTS = {
    "task": "what is trained",
    "name": "the run's folder and the bundle's name",
    "files": "globs work; relative ones are beside this file",
    "train_files": "all of it to train on",
    "valid_files": "all of it to choose the best weights by",
    "test_files": "all of it to test on",
    "documents": "what one text is: a file or a line",
    "form": "how the files say which labels a text has",
    "label_first": "a line is label, tab, text",
    "several": "a text may have several labels",
    "loss": "what a text loses and the model restores",
    "max_tokens": "most tokens of a text; the rest is cut",
    "split_by": "how held-out text is chosen",
    "valid_fraction": "held out to choose the best weights by",
    "test_fraction": "held out to test on",
    "max_source_tokens": "longer pairs are dropped, and counted",
    "max_target_tokens": "the same for the target",
    "title": "for the bundle's manifest",
    "license": "terms of the data, for the bundle's manifest",
    "lang": "language of this side",
    "tokenization": '"character", "whitespace" (symbols between spaces) or "bpe" (subwords)',
    "vocab_size": "subwords to learn at most",
    "min_count": "rarer tokens are unknown ones",
    "num_layers": "recurrent layers",
    "pooling": "how the outputs at a text's places are combined",
    "hidden_size": "units a layer",
    "embedding_dim": "size of a token's embedding",
    "encoder_layers": "layers that read both ways",
    "encoder_hidden_size": "units a direction and layer",
    "tie_embeddings": "output weights are the embeddings",
    "dropout_input": "against overfitting, on the embeddings",
    "dropout_output": "against overfitting, before the output layer",
    "dropout_embedding": "against overfitting, on the embeddings",
    "dropout_between": "against overfitting, between layers",
    "weight_drop": "against overfitting, of the recurrent matrix",
    "steps": "optimizer steps",
    "eval_every": "steps between evaluations",
    "checkpoint_every": "steps between resumable checkpoints",
    "warmup_steps": "linear warm-up, then a cosine",
    "ema_decay": "evaluate and keep a moving average of the weights",
    "batch_size": "texts, or places in a text, read side by side",
    "bptt_len": "tokens a step reads of each",
    "replicas": "shares of a batch computed side by side",
    "threads": "for all of them",
    "learning_rate": "peak",
    "weight_decay": "pulls weights towards zero",
    "beta2": "of AdamW",
    "patience": "evaluations without a better one before it stops",
    "restart_probability": "a step's chance to end the text at a line end and begin anew",
    "ngram_targets": "share of each target by an n-gram of the other texts",
    "label_smoothing": "share of the target probability given to every token",
    "order": "tokens of the longest n-grams",
    "max_ngrams": "at most so many, the most valuable",
    "rank": "directions of the hidden outputs that it reads",
    "select_by": "metric that keeps the weights",
    "max_valid_sources": "translated at an evaluation",
    "max_valid_texts": "labelled at an evaluation",
    "sample_chars": "characters of the sample at each evaluation",
    "seed": "of everything random",
}
# The comment beside the headings that need one.
_HEADINGS = {
    "ngram": "averaged with the network at export",
    "adapt": 'a request with "adapt": true lets the output layer learn from its text',
}
_WIDTH = 34


def render(notes: Sequence[str], document: Mapping[str, Any]) -> str:
    """TOML: the notes as comments, then the options, tables last."""
    lines = [f"# {_one_line(note)}" for note in notes]
    lines += ["", *_options(document)]
    for name, table in _tables(document, ""):
        heading = f"[{name}]"
        if name in _HEADINGS:
            heading = f"{heading:<{_WIDTH}} # {_HEADINGS[name]}"
        lines += ["", heading, *_options(table)]
    return "\n".join(lines) + "\n"


def _tables(document: Mapping[str, Any], prefix: str) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, value in document.items():
        if isinstance(value, Mapping):
            found += [(prefix + name, value), *_tables(value, f"{prefix}{name}.")]
    return found


def _options(table: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            continue
        line = f"{name} = {_value(value)}"
        comment = _COMMENTS[name]
        lines.append(f"{line:<{_WIDTH}} # {comment}")
    return lines


def _value(value: Any) -> str:
    """Strings, numbers and lists of JSON are TOML, except for the character 127."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    """A note without control characters, which a comment cannot hold."""
    return "".join(c if c.isprintable() else " " for c in text)
