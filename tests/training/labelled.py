"""Tiny labelled texts, configurations and runs of labelers; nothing in here takes a second."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.bundle.labeler import Labels
from service.bundle.tokenization import Characters
from tests.training.helpers import WORDS
from training.config import LabelerConfig, labeler_config
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.loop.labeler import LabelerTask
from training.loop.trainer import Trainer
from training.networks.labeler import Labeler

# A word's label is what it begins with; of several, the vowels that it has.
CLASSES = Labels(names=["a-h", "i-p", "q-z"], scope="text", several=False)
VOWELS = Labels(names=list("aeiou"), scope="text", several=True)
# A character's tag: runs of vowels; or what it is with case put back, as far as it can be.
RUNS = Labels(names=["O", "vowel"], scope="character", several=False, outside="O")
UPPER = Labels(names=["", "A", "E"], scope="character", several=False, outside="", applied=True)


def _class_of(word: str) -> list[int]:
    return [(word[0] > "h") + (word[0] > "p")]


def _vowels_of(word: str) -> list[int]:
    return [i for i, vowel in enumerate("aeiou") if vowel in word]


def _runs_of(word: str) -> list[int]:
    return [int(letter in "aeiou") for letter in word]


def _uppers_of(word: str) -> list[int]:
    # At the beginning of a word.
    return [1 + "ae".index(x) if x in "ae" and i == 0 else 0 for i, x in enumerate(word)]


# The task, its labels, and how a word is labelled; the options that make the sort.
SORTS: Mapping[str, tuple[str, Labels, Callable[[str], list[int]], dict[str, Any]]] = {
    "one": ("classifier", CLASSES, _class_of, {}),
    "attention": ("classifier", CLASSES, _class_of, {"pooling": "attention"}),
    "forward": ("classifier", CLASSES, _class_of, {"direction": "forward"}),
    "several": ("classifier", VOWELS, _vowels_of, {"pooling": "last"}),
    "several forward": ("classifier", VOWELS, _vowels_of, {"direction": "forward"}),
    "tags": ("tagger", RUNS, _runs_of, {}),
    "chain": ("tagger", RUNS, _runs_of, {"crf": True}),
    "masked": ("tagger", UPPER, _uppers_of, {}),
    "masked chain": ("tagger", UPPER, _uppers_of, {"crf": True}),
}


def tiny_labeler_document(task: str, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A small configuration as a document; keyword arguments change options of its sections."""
    document: dict[str, Any] = {
        "task": task,
        "name": f"tiny-{task}",
        "data": {
            "files": ["labelled.tsv"],
            "text": {"normalization": {"strip": False}},
            "valid_fraction": 0.2,
            "test_fraction": 0.2,
        },
        "model": {"hidden_size": 6, "embedding_dim": 5},
        "training": {
            "steps": 10,
            "batch_size": 16,
            "warmup_steps": 3,
            "eval_every": 5,
            "log_every": 1,
            "checkpoint_every": 5,
            "show": 0,
            "threads": 1,
        },
    }
    for name, section in sections.items():
        document[name] = {**document[name], **section}
    return document


def tiny_labelled(
    labels: Labels, label: Callable[[str], list[int]], words: Sequence[str] = WORDS
) -> LabelledCorpus:
    """Words with their labels: every fourth for validation."""
    tokenizer = Characters.of_characters(sorted(set("".join(words))))
    allowed = None
    if labels.applied:
        characters = [name.lower() for name in labels.names]
        allowed = np.array([[x in ("", token) for x in characters] for token in tokenizer.tokens])

    def split(name: str, chosen: Sequence[str]) -> LabelledSplit:
        found = [np.array(label(word), np.int32) for word in chosen]
        tokens = [tokenizer.encode(word) for word in chosen]
        return LabelledSplit(name, chosen, tokens, found)

    return LabelledCorpus(
        tokenizer=tokenizer,
        labels=labels,
        allowed=allowed,
        sha256="0" * 64,
        train=split("train", [x for i, x in enumerate(words) if i % 4]),
        valid=split("valid", words[::4]),
        tests=[],
        counts={},
    )


def tiny_labeler_trainer(
    folder: Path, sort: str = "one", **sections: Mapping[str, Any]
) -> Trainer[Labeler]:
    """A trainer of one of SORTS whose run folder is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    task, labels, label, options = SORTS[sort]
    sections["model"] = {**options, **sections.get("model", {})}
    config: LabelerConfig = labeler_config(tiny_labeler_document(task, **sections))
    return Trainer(config, LabelerTask(config, tiny_labelled(labels, label)), folder)


def labeler_task_of(run: Trainer[Labeler]) -> LabelerTask:
    """What a labeler's trainer trains."""
    assert isinstance(run.task, LabelerTask)
    return run.task
