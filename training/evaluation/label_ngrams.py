"""Labels of texts from bags of character n-grams: naive Bayes and logistic regression.

Both are hard to beat on short texts. N texts, L labels.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from service.bundle.labeler import FORBIDDEN
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.evaluation.labeler import judged, label_metrics

_ORDER = 5  # characters of the longest n-grams
# Bounds of memory and time: at most so many characters are learned from, and fewer where there are
# many labels (a minute for 50 labels); n-grams are hashed to at most so many features.
_MOST_CHARS = 3_000_000
_MOST_CHARS_TIMES_LABELS = 100_000_000
_MOST_FEATURES = 2**18
_MOST_WEIGHTS = 2**25  # features times labels
_CHOOSING_TEXTS = 4_000  # of the validation split, that the amount of smoothing is chosen on

_SMOOTHING = (1.0, 0.1, 0.01)  # of naive Bayes
_INVERSE_PENALTIES = (10.0, 100.0)  # of logistic regression
_EPOCHS = 10

Floats: TypeAlias = npt.NDArray[np.float64]
Features: TypeAlias = Any  # a sparse matrix [N, features]
Model: TypeAlias = Any
# Texts to [N, L]; where a text may have several labels, log P of each by itself.
LogProbs: TypeAlias = Callable[[Sequence[str]], Floats]


def ngram_floors(corpus: LabelledCorpus, seed: int = 0) -> dict[str, LogProbs]:
    """Naive Bayes and multinomial logistic regression, smoothed as suits the validation split.

    A name says so if not all training texts were learned from.
    """
    return _Fitting(corpus, seed).floors()


class _Fitting:
    def __init__(self, corpus: LabelledCorpus, seed: int) -> None:
        self._labels = corpus.labels
        self._seed = seed
        count = len(corpus.labels.names)
        size = 2 ** int(np.log2(min(_MOST_FEATURES, _MOST_WEIGHTS // count)))
        self._ngrams = HashingVectorizer(
            analyzer="char",
            ngram_range=(1, _ORDER),
            lowercase=False,
            preprocessor=_marked,
            alternate_sign=False,
            norm=None,
            n_features=size,
            dtype=np.float32,
        )
        kept = _sample(corpus.train, min(_MOST_CHARS, _MOST_CHARS_TIMES_LABELS // count), seed)
        self._part = f" ({len(kept):,} texts)" if len(kept) < len(corpus.train) else ""
        self._counts = self._ngrams.transform([corpus.train.texts[i] for i in kept])
        self._targets = _targets(corpus.train, kept, count)
        rng = np.random.default_rng(seed)
        valid = rng.permutation(len(corpus.valid))[:_CHOOSING_TEXTS].tolist()
        self._valid = self._ngrams.transform([corpus.valid.texts[i] for i in valid])
        self._wanted = [corpus.valid.labels[i] for i in valid]

    def floors(self) -> dict[str, LogProbs]:
        """The fitted floors."""
        bayes = self._chosen(
            [MultinomialNB(alpha=alpha) for alpha in _SMOOTHING], self._counts, self._valid
        )
        weights = TfidfTransformer(sublinear_tf=True).fit(self._counts)
        regression = self._chosen(
            [
                LogisticRegression(
                    C=penalty, solver="saga", max_iter=_EPOCHS, random_state=self._seed
                )
                for penalty in _INVERSE_PENALTIES
            ],
            weights.transform(self._counts),
            weights.transform(self._valid),
        )
        ngrams = self._ngrams
        return {
            f"naive_bayes{self._part}": lambda texts: bayes(ngrams.transform(texts)),
            f"logistic_regression{self._part}": lambda texts: regression(
                weights.transform(ngrams.transform(texts))
            ),
        }

    def _chosen(
        self, models: Sequence[Model], features: Features, valid: Features
    ) -> Callable[[Features], Floats]:
        """The model, once fitted, that labels most validation texts right."""
        fitted = [self._fitted(model, features) for model in models]
        return max(fitted, key=lambda logprobs: self._accuracy(logprobs(valid)))

    def _accuracy(self, logprobs: Floats) -> float:
        """On the validation texts."""
        found = judged(self._labels, list(logprobs), self._wanted)
        return label_metrics(found, self._labels)["accuracy"]

    def _fitted(self, model: Model, features: Features) -> Callable[[Features], Floats]:
        if not self._labels.several:
            classes = self._targets.argmax(axis=1)
            return _logprobs_of(model, features, classes, len(self._labels.names))
        columns = self._targets.T.astype(np.int64)
        each = [_logprobs_of(clone(model), features, labels, 2) for labels in columns]
        return lambda rows: np.stack([logprobs(rows)[:, 1] for logprobs in each], axis=1)


def _logprobs_of(
    model: Model, features: Features, classes: npt.NDArray[np.integer], count: int
) -> Callable[[Features], Floats]:
    """Fit a model; its log-probabilities [N, L] of all classes, even ones that are not there."""
    if len(np.unique(classes)) > 1:
        with warnings.catch_warnings():
            # It stops after some epochs: more would take long, and make these floors no better.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, classes)
    else:
        model = DummyClassifier().fit(features, classes)

    def logprobs(rows: Features) -> Floats:
        found = np.full((rows.shape[0], count), FORBIDDEN)
        with np.errstate(divide="ignore"):
            found[:, model.classes_] = model.predict_log_proba(rows)
        return np.maximum(found, FORBIDDEN)

    return logprobs


def _marked(text: str) -> str:
    """With marks at both ends, which n-grams hold as well."""
    return f"\x02{text}\x03"


def _sample(split: LabelledSplit, most_chars: int, seed: int) -> list[int]:
    """Indices of random texts of so many characters together, at least one for each label."""
    order = np.random.default_rng(seed).permutation(len(split)).tolist()
    chars = np.cumsum([len(split.texts[i]) for i in order])
    first = {int(label): i for i in reversed(order) for label in split.labels[i]}
    return sorted({*first.values(), *order[: int(np.searchsorted(chars, most_chars, "right"))]})


def _targets(split: LabelledSplit, indices: Sequence[int], count: int) -> npt.NDArray[np.bool_]:
    """Whether each text has each label, [N, L]."""
    found = np.zeros((len(indices), count), np.bool_)
    for row, i in zip(found, indices, strict=True):
        row[split.labels[i]] = True
    return found
