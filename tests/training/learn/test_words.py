"""Figures in words, and requests that a shell takes as they are."""

import json
import shlex
import subprocess

import numpy as np
import pytest

from service.bundle import BOS_ID, EOS_ID, Vocabulary
from training import ngram
from training.config import BaselineConfig, ModelConfig
from training.corpus import Corpus, Split
from training.evaluation import evaluate
from training.language_model import LanguageModel
from training.learn import words
from training.learn.compare import Difference, against_ngrams


def split_of(texts: list[str], vocab: Vocabulary) -> Split:
    documents = [[BOS_ID, *vocab.encode(text), EOS_ID] for text in texts]
    ids = np.array([x for document in documents for x in document], np.uint16)
    return Split(ids, np.cumsum([0, *map(len, documents)]))


@pytest.mark.parametrize("texts", [["abab", "baba", "aab"] * 30, ["abba" * 200]])
def test_the_difference_is_that_of_the_totals(texts: list[str]) -> None:
    vocab = Vocabulary.of_characters("ab")
    split = split_of(texts, vocab)
    corpus = Corpus(vocab, "", split, split, split)
    model = LanguageModel(ModelConfig(hidden_size=4, embedding_dim=2), len(vocab))
    found = against_ngrams(model, corpus, BaselineConfig(max_order=3))
    models = ngram.fit(split.ids, split.starts, len(vocab), 3)
    floor = min(ngram.evaluate(models, split.ids, split.starts).values())
    score = evaluate(model, split, model.output.weight.device)
    expected = (floor - score.nats) / (split.chars * np.log(2))
    # Pieces of one long text begin without what stands before them.
    assert found.bits_per_char == pytest.approx(expected, rel=0.05 if len(texts) == 1 else 1e-4)
    assert 0 < found.standard_error < 0.1


@pytest.mark.parametrize(
    ("saved", "error", "said"),
    [
        (0.2, 0.05, "the model is 10 % better, give or take 2.5"),
        (0.06, 0.05, "may be chance"),
        (-0.2, 0.05, "it is 11 % better than the model"),
    ],
)
def test_a_comparison_says_who_is_better_or_that_it_may_be_chance(
    saved: float, error: float, said: str
) -> None:
    assert said in words.compared(2.0 - max(0, saved), Difference(5, saved, error))


@pytest.mark.parametrize("text", ["plain", "it's", 'a "b" \\ $HOME `x` !', "new\nline ünï \u2028"])
def test_a_curl_line_reaches_a_shell_as_it_was_meant(text: str) -> None:
    line = words.curl("/score", {"text": text})
    assert "\n" not in line
    script = f'curl() {{ for word in "$@"; do last=$word; done; printf %s "$last"; }}; {line}'
    out = subprocess.check_output(["sh", "-c", script], text=True)
    assert json.loads(out) == {"text": text}
    assert shlex.split(line)[0] == "curl"


def test_durations_are_for_people() -> None:
    assert [words.seconds(x) for x in (0.2, 40, 600)] == ["2 seconds", "40 seconds", "10 minutes"]
