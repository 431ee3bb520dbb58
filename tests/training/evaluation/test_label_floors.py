"""The floors below labelers: windows of characters as their formula says, n-grams of texts."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.labeler import LabelerMeasurement, Labels
from service.bundle.tokenization import Characters
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.data.labelled_texts import LabelledText, encoded_split
from training.evaluation import label_ngrams, label_windows
from training.evaluation.label_floors import LabelFloors
from training.evaluation.label_windows import LabelWindows

LETTERS = Characters.of_characters("abcdefghijklmnopqrstuvwxyz0123456789 ")


def split_of(name: str, texts: Sequence[LabelledText], names: Sequence[str]) -> LabelledSplit:
    return encoded_split(name, texts, LETTERS, names, 400)


def corpus_of(
    labels: Labels, train: Sequence[LabelledText], test: Sequence[LabelledText]
) -> LabelledCorpus:
    """The test texts are those of the validation as well."""
    valid, tests = (split_of(name, test, labels.names) for name in ("valid", "test"))
    return LabelledCorpus(
        tokenizer=LETTERS,
        labels=labels,
        allowed=None,
        sha256="",
        train=split_of("train", train, labels.names),
        valid=valid,
        tests=[tests],
        counts={},
    )


def measured(corpus: LabelledCorpus) -> dict[str, LabelerMeasurement]:
    return {x.name: x for x in LabelFloors(corpus).measure(corpus.tests[0])}


# --- windows ------------------------------------------------------------------------------------

NAMES = ["x", "y", "z"]
texts = st.text("ab", max_size=7)
tagged = st.lists(
    texts.flatmap(
        lambda text: st.tuples(
            st.just(text),
            st.lists(st.sampled_from(NAMES), min_size=len(text), max_size=len(text)).map(tuple),
        )
    ),
    min_size=1,
    max_size=6,
).filter(lambda found: any(text for text, _ in found))


def by_definition(train: Sequence[LabelledText], text: str, place: int) -> list[float]:
    """The formula, with windows as strings."""
    counts = Counter(label for _, labels in train for label in labels)
    found = [(counts[y] + 1) / (counts.total() + len(NAMES)) for y in NAMES]
    for radius in range(4):
        wide = " " * radius
        windows = Counter(
            (f"{wide}{other}{wide}"[i : i + 2 * radius + 1], label)
            for other, labels in train
            for i, label in enumerate(labels)
        )
        window = f"{wide}{text}{wide}"[place : place + 2 * radius + 1]
        seen = [windows[window, y] for y in NAMES]
        kinds = sum(n > 0 for n in seen)
        if kinds:
            total = sum(seen) + kinds
            found = [(n + kinds * p) / total for n, p in zip(seen, found, strict=True)]
    return found


@given(tagged, st.lists(texts, min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_windows_give_what_their_formula_says(train: list[LabelledText], others: list[str]) -> None:
    windows = LabelWindows(split_of("train", train, NAMES), len(NAMES))
    found = windows.logprobs([LETTERS.encode(text) for text in others])
    assert [len(x) for x in found] == [len(text) for text in others]
    for text, logprobs in zip(others, found, strict=True):
        for place, row in enumerate(logprobs):
            assert np.exp(row).tolist() == pytest.approx(by_definition(train, text, place))


def test_windows_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    train: list[LabelledText] = [("abab", ("x", "y", "x", "z")), ("b", ("y",))]
    tokens = [LETTERS.encode(x) for x in ("ab", "", "bbb", "a", "abab")]
    windows = LabelWindows(split_of("train", train, NAMES), len(NAMES))
    whole = windows.logprobs(tokens)
    monkeypatch.setattr(label_windows, "_BLOCK", 9)
    for one, other in zip(windows.logprobs(tokens), whole, strict=True):
        assert one.tolist() == other.tolist()


def test_a_window_knows_what_follows_a_character() -> None:
    """`q` is x before a digit, else y: the commonest label of each character is not enough."""
    labels = Labels(names=["x", "y"], scope="character", several=False)
    rng = np.random.default_rng(0)

    def some(count: int) -> list[LabelledText]:
        found = []
        for _ in range(count):
            text = "".join(rng.choice([*"qa1"], 12))
            marks = ["x" if text[i : i + 2] == "q1" else "y" for i in range(len(text))]
            found.append((text, tuple(marks)))
        return found

    found = measured(corpus_of(labels, some(300), some(50)))
    assert list(found) == ["majority", "window"]
    assert found["window"].values["accuracy"] == 1.0
    assert found["majority"].values["accuracy"] < 0.9
    assert found["window"].values["loss"] < 0.1 * found["majority"].values["loss"]


def test_much_text_is_not_counted_whole_and_the_name_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_windows, "_MOST_CHARS", 20)
    labels = Labels(names=["x", "y"], scope="character", several=False)
    train: list[LabelledText] = [("ab", ("x", "y"))] * 100
    assert list(measured(corpus_of(labels, train, train[:3]))) == ["majority", "window (9 texts)"]


# --- n-grams ------------------------------------------------------------------------------------

WORDS = {"en": "the and of with", "de": "der und von mit", "nl": "het en van met", "xx": "zz qq"}


def texts_in(languages: Sequence[str], count: int, seed: int) -> list[LabelledText]:
    rng = np.random.default_rng(seed)
    found: list[LabelledText] = []
    for _ in range(count):
        language = str(rng.choice(languages))
        words = rng.choice(WORDS[language].split(), 4)
        found.append((f"{' '.join(words)} {rng.integers(100)}", (language,)))
    return found


def test_n_grams_tell_languages_apart_and_the_commonest_label_does_not() -> None:
    languages = ["de", "en", "nl"]
    labels = Labels(names=languages, scope="text", several=False)
    found = measured(corpus_of(labels, texts_in(languages, 300, 0), texts_in(languages, 100, 1)))
    assert list(found) == ["majority", "naive_bayes", "logistic_regression"]
    assert {x.kind for x in found.values()} == {"baseline"}
    for name in ("naive_bayes", "logistic_regression"):
        assert found[name].values["accuracy"] > 0.95
        assert found[name].values["loss"] < found["majority"].values["loss"]
    assert found["majority"].values["accuracy"] < 0.5


def test_a_part_of_the_texts_has_all_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so the text of a label that is rare is not impossible."""
    monkeypatch.setattr(label_ngrams, "_MOST_COUNTED", 500)
    monkeypatch.setattr(label_ngrams, "_MOST_FITTED", 500)
    monkeypatch.setattr(label_ngrams, "_BLOCK_TEXTS", 7)
    labels = Labels(names=["de", "en", "xx"], scope="text", several=False)
    rare = texts_in(["xx"], 1, 2)
    corpus = corpus_of(labels, texts_in(["de", "en"], 300, 0) + rare, texts_in(["xx"], 3, 1))
    names, floors = zip(*measured(corpus).items(), strict=True)
    assert [name.split(" ")[0] for name in names] == [
        "majority",
        "naive_bayes",
        "logistic_regression",
    ]
    assert all(name.endswith(" texts)") for name in names[1:])
    assert all(x.values["loss"] < 20 for x in floors)


def test_several_labels_are_judged_each_by_itself() -> None:
    labels = Labels(names=["and", "of", "one", "the"], scope="text", several=True)

    def some(count: int, seed: int) -> list[LabelledText]:
        # `one` is a label of every text.
        return [
            (text, tuple(sorted({*text.split()} & {*labels.names} | {"one"})))
            for text, _ in texts_in(["en"], count, seed)
        ]

    found = measured(corpus_of(labels, some(300, 0), some(60, 1)))
    assert found["logistic_regression"].values["accuracy"] > 0.9
    assert found["logistic_regression"].values["loss"] < found["majority"].values["loss"]
    assert found["majority"].values["accuracy"] < 0.5
