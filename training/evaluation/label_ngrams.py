"""Labels of texts from bags of character n-grams: naive Bayes and logistic regression.

Both are hard to beat on short texts.

N texts, L labels, F features.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from service.bundle.labeler import FORBIDDEN
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.evaluation.labeler import judged, label_metrics

_ORDER = 5  # characters of the longest n-grams
# N-grams are hashed to at most so many features, fewer where there are many labels.
_MOST_FEATURES = 2**18
_MOST_WEIGHTS = 2**24  # features times labels
_CHOOSING_TEXTS = 4_000  # of the validation split, that the amount of smoothing is chosen on

# Characters of the training texts that are learned from: naive Bayes reads them once, in blocks.
_MOST_COUNTED = 20_000_000
_BLOCK_TEXTS = 10_000
_SMOOTHING = (1.0, 0.1, 0.01)

_MOST_FITTED = 3_000_000
_MOST_FITTED_TIMES_LABELS = 100_000_000  # takes a minute
_INVERSE_PENALTIES = (10.0, 100.0)
_EPOCHS = 10

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Features: TypeAlias = Any  # [N, F], sparse
Model: TypeAlias = Any  # of scikit-learn
Fitted: TypeAlias = Callable[[Features], Floats]  # to log-probabilities [N, L]
# Texts to [N, L]; where a text may have several labels, log P of each by itself.
LogProbs: TypeAlias = Callable[[Sequence[str]], Floats]


def ngram_floors(corpus: LabelledCorpus, seed: int = 0) -> dict[str, LogProbs]:
    """Multinomial naive Bayes and logistic regression, smoothed as suits the validation split.

    A name says so if not all training texts were learned from.
    """
    fitting = _Fitting(corpus, seed)
    return {**fitting.naive_bayes(), **fitting.logistic_regression()}


class _Fitting:
    def __init__(self, corpus: LabelledCorpus, seed: int) -> None:
        self._labels = corpus.labels
        self._count = len(corpus.labels.names)
        self._train = corpus.train
        self._valid = corpus.valid
        self._seed = seed
        self._ngrams = HashingVectorizer(
            analyzer="char",
            ngram_range=(1, _ORDER),
            lowercase=False,
            preprocessor=_marked,
            alternate_sign=False,
            norm=None,
            n_features=2 ** int(np.log2(min(_MOST_FEATURES, _MOST_WEIGHTS // self._count))),
            dtype=np.float32,
        )

    def naive_bayes(self) -> dict[str, LogProbs]:
        """It needs only the sums of each label's n-grams, which are small."""
        kept = _sample(self._train, _MOST_COUNTED, self._seed)
        sums = np.zeros((self._count + 1, self._ngrams.n_features))  # the last are of all texts
        texts = np.zeros(self._count)  # of each label
        for start in range(0, len(kept), _BLOCK_TEXTS):
            block = kept[start : start + _BLOCK_TEXTS]
            features = self._ngrams.transform([self._train.texts[i] for i in block])
            targets = _targets(self._train, block, self._count)
            texts += targets.sum(axis=0)
            for label in np.flatnonzero(targets.any(axis=0)):
                sums[label] += np.asarray(features[targets[:, label]].sum(axis=0)).ravel()
            sums[-1] += np.asarray(features.sum(axis=0)).ravel()
        models = (self._bayes(sums, texts, len(kept), alpha) for alpha in _SMOOTHING)
        return {f"naive_bayes{self._part(kept)}": self._chosen(models, self._ngrams.transform)}

    def _bayes(self, sums: Floats, texts: Floats, total: int, alpha: float) -> Fitted:
        """From the sums [L + 1, F], and the number of texts that each label has."""

        def fitted(rows: Floats, counts: Floats) -> Fitted:
            model = MultinomialNB(alpha=alpha, class_prior=counts / counts.sum())
            model.fit(rows, np.arange(len(rows)))
            del model.feature_count_  # half of its memory, and of no more use
            return lambda features: _logprobs(model, features, len(rows))

        if not self._labels.several:
            return fitted(sums[:-1], texts + 1.0)
        return _each_by_itself(
            [
                fitted(np.stack([sums[-1] - row, row]), np.array([total - n + 1.0, n + 1.0]))
                for row, n in zip(sums[:-1], texts, strict=True)
            ]
        )

    def logistic_regression(self) -> dict[str, LogProbs]:
        """On tf-idf, with a softmax; if texts may have several labels, one regression for each."""
        most = min(_MOST_FITTED, _MOST_FITTED_TIMES_LABELS // self._count)
        kept = _sample(self._train, most, self._seed)
        targets = _targets(self._train, kept, self._count)
        counts = self._ngrams.transform([self._train.texts[i] for i in kept])
        weights = TfidfTransformer(sublinear_tf=True).fit(counts)
        features = weights.transform(counts)

        def fitted(penalty: float) -> Fitted:
            if not self._labels.several:
                classes = targets.argmax(axis=1)
                return self._regression(features, classes, penalty, self._count)
            columns = targets.T.astype(np.int64)
            return _each_by_itself([self._regression(features, x, penalty, 2) for x in columns])

        found = self._chosen(
            (fitted(penalty) for penalty in _INVERSE_PENALTIES),
            lambda texts: weights.transform(self._ngrams.transform(texts)),
        )
        return {f"logistic_regression{self._part(kept)}": found}

    def _regression(
        self, features: Features, classes: npt.NDArray[np.integer], penalty: float, count: int
    ) -> Fitted:
        model = DummyClassifier()  # for a single class
        if len(np.unique(classes)) > 1:
            model = LogisticRegression(
                C=penalty, solver="saga", max_iter=_EPOCHS, random_state=self._seed
            )
        with warnings.catch_warnings():
            # It stops after some epochs: more take long, and make it no better.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, classes)
        return lambda rows: _logprobs(model, rows, count)

    def _chosen(
        self, models: Iterator[Fitted], transform: Callable[[Sequence[str]], Features]
    ) -> LogProbs:
        """The one that labels most validation texts right; the others are dropped at once."""
        order = np.random.default_rng(self._seed).permutation(len(self._valid))[:_CHOOSING_TEXTS]
        features = transform([self._valid.texts[i] for i in order])
        wanted = [self._valid.labels[i] for i in order]

        def accuracy(model: Fitted) -> float:
            found = judged(self._labels, list(model(features)), wanted)
            return label_metrics(found, self._labels)["accuracy"]

        best = max(models, key=accuracy)
        return lambda texts: best(transform(texts))

    def _part(self, kept: Sequence[int]) -> str:
        return f" ({len(kept):,} texts)" if len(kept) < len(self._train) else ""


def _logprobs(model: Model, features: Features, count: int) -> Floats:
    """[N, count], including classes that the model has not seen."""
    found = np.full((features.shape[0], count), FORBIDDEN)
    with np.errstate(divide="ignore"):
        found[:, model.classes_] = model.predict_log_proba(features)
    return np.maximum(found, FORBIDDEN)


def _each_by_itself(models: Sequence[Fitted]) -> Fitted:
    """The log-probabilities of the second class of each of these models."""
    return lambda features: np.stack([x(features)[:, 1] for x in models], axis=1)


def _marked(text: str) -> str:
    """With marks at both ends, so that n-grams see where a text begins and ends."""
    return f"\x02{text}\x03"


def _sample(split: LabelledSplit, most_chars: int, seed: int) -> list[int]:
    """Indices of random texts of so many characters together, at least one for each label."""
    order = np.random.default_rng(seed).permutation(len(split)).tolist()
    chars = np.cumsum([len(split.texts[i]) for i in order])
    first = {int(label): i for i in reversed(order) for label in split.labels[i]}
    return sorted({*first.values(), *order[: int(np.searchsorted(chars, most_chars, "right"))]})


def _targets(split: LabelledSplit, indices: Sequence[int], count: int) -> Bools:
    """Whether each text has each label, [N, L]."""
    found = np.zeros((len(indices), count), np.bool_)
    for row, i in zip(found, indices, strict=True):
        row[split.labels[i]] = True
    return found
