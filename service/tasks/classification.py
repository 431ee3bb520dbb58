"""The texts of one request for labels of texts, from texts to rows to labels.

N texts, L labels.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from service.bundle.arrays import Float32Array, Int64Array
from service.decoding.rows import Continuation
from service.errors import InvalidRequest
from service.runtime.language_model import States
from service.scheduling.labeler import LabelWork
from service.tasks.handles import Handle
from service.tasks.label_model import LabelModel
from service.tasks.label_values import (
    Classified,
    ClassifyOptions,
    LabelProbability,
    LabelStep,
)
from service.tasks.label_works import Grouped, grouped
from service.tasks.limits import check_details
from service.tasks.sides import SideText

_DETAILS = "details: 4 · labels, those of steps included"


class Classification:
    """Call `read`, run `works`, and take the results."""

    def __init__(self, model: LabelModel, texts: Sequence[str], options: ClassifyOptions) -> None:
        """Raises InvalidRequest and QueueFull."""
        self._model = model
        self._texts = texts
        self._options = options
        self.read_texts: Sequence[SideText] = ()
        self._groups: Sequence[Grouped] = ()
        self._steps: Sequence[LikeliestLabels] = ()
        self.size = sum(map(len, texts))
        names = model.label_names
        top = min(options.top or len(names), len(names))
        model.check_texts(texts)
        check_classify(model, options)
        labels = len(texts) * top + (self.size if options.steps else 0)
        check_details("text", labels, 0, model.settings, _DETAILS)
        self._answer_size = 8 * labels
        if options.return_state:
            seal = model.seal_of_parts("return_state")
            seal.check_count(len(texts), model.settings)
            self._answer_size += len(texts) * seal.handle_chars
        self._handle: Handle | None = None
        if options.state is not None:
            seal = model.seal_of_parts("state")
            self._handle = seal.open(options.state, now=time.time())

    def read(self) -> None:
        """Turn the texts into rows to read. Raises InvalidRequest."""
        self.read_texts = self._model.read(self._texts, self._options.unknown)
        if self._options.steps:
            self._steps = [LikeliestLabels() for _ in self._texts]
        self._groups = grouped(
            [text.ids for text in self.read_texts],
            reads_forward=bool(self._model.manifest.states),
            start=None if self._handle is None else self._handle.continuation.states,
            listeners=self._steps,
        )

    @property
    def works(self) -> list[LabelWork]:
        """The rows to read."""
        return [group.work for group in self._groups]

    @property
    def answer_size(self) -> int:
        """Roughly how many characters the answer has."""
        return self._answer_size

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(text.ids) for text in self.read_texts)

    @property
    def logprobs(self) -> Float32Array:
        """log P of every label of every text, [N, L], once the texts have been read."""
        found = np.empty((len(self._texts), len(self._model.label_names)), np.float32)
        if self._handle is not None:
            found[:] = self._handle.continuation.logprobs  # for texts with nothing left to read
        for group in self._groups:
            found[group.texts] = group.work.logprobs
        return found

    def results(self) -> list[Classified]:
        """The labels of each text, likeliest first."""
        logprobs, steps = self.logprobs, None
        states = self._sealed(logprobs) if self._options.return_state else None
        if self._options.steps:
            steps = list(map(self._steps_of, self.read_texts, self._steps))
        labels = likeliest_labels(self._model.label_names, logprobs, self._options)
        return [
            Classified(
                labels=theirs,
                unknown=text.unknown,
                prompt_tokens=len(text.ids),
                steps=None if steps is None else steps[i],
                state=None if states is None else states[i],
            )
            for i, (text, theirs) in enumerate(zip(self.read_texts, labels, strict=True))
        ]

    def _steps_of(self, text: SideText, steps: "LikeliestLabels") -> list[LabelStep]:
        """The likeliest label after each token of the text."""
        ends = [end for _, end in self._model.reader.tokenizer.spans(text.text)]
        labels, logprobs = steps.last(len(ends))
        exact = logprobs.astype(np.float64)
        columns = (ends, labels.tolist(), np.exp(exact).tolist(), exact.tolist())
        names = self._model.label_names
        return [
            LabelStep(end, names[label], probability, logprob)
            for end, label, probability, logprob in zip(*columns, strict=True)
        ]

    def _sealed(self, logprobs: Float32Array) -> list[str]:
        """The handles of the texts, which were read to their ends."""
        seal, now = self._model.seal_of_parts("return_state"), time.time()
        before = 0
        states: list[States] = [()] * len(self._texts)
        if self._handle is not None:
            before = self._handle.position
            states = [self._handle.continuation.states] * len(self._texts)
        for group in self._groups:
            for row, i in enumerate(group.texts.tolist()):
                states[i] = tuple(x[row : row + 1] for x in group.work.states or ())
        begins = int(self._handle is None)
        return [
            seal.seal(Handle(Continuation(own, row), before + begins + len(text.ids)), now=now)
            for text, own, row in zip(self.read_texts, states, logprobs, strict=True)
        ]


def check_classify(model: LabelModel, options: ClassifyOptions) -> None:
    """Raise InvalidRequest for options that the model cannot follow, whatever the texts."""
    if options.steps and not model.manifest.states:
        raise InvalidRequest.of_option(
            "steps", "this model reads texts in both directions; only those that read forward can"
        )
    for option, is_given in (
        ("state", options.state is not None),
        ("return_state", options.return_state),
    ):
        if is_given:
            model.seal_of_parts(option)


def likeliest_labels(
    names: Sequence[str], logprobs: Float32Array, options: ClassifyOptions
) -> Iterator[list[LabelProbability]]:
    """The labels of each text by their `logprobs` [N, L], likeliest first."""
    order = np.argsort(-logprobs, axis=1, kind="stable")[:, : options.top]  # [N, K]
    exact = np.take_along_axis(logprobs, order, axis=1).astype(np.float64)
    for row in zip(order.tolist(), np.exp(exact).tolist(), exact.tolist(), strict=True):
        yield [
            LabelProbability(names[label], probability, logprob)
            for label, probability, logprob in zip(*row, strict=True)
            if probability >= options.min_probability
        ]


class LikeliestLabels:
    """The likeliest label at each place of a text that is read forward."""

    def __init__(self) -> None:
        self._labels: list[Int64Array] = []
        self._logprobs: list[Float32Array] = []

    def took(self, logprobs: Float32Array) -> None:
        """Called by the worker with the next places, [places, L]."""
        labels = logprobs.argmax(axis=1)
        self._labels.append(labels)
        self._logprobs.append(logprobs[np.arange(len(labels)), labels])

    def last(self, count: int) -> tuple[Int64Array, Float32Array]:
        """Ids and log-probabilities at the last places; bos may stand before them."""
        if not count:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        labels, logprobs = np.concatenate(self._labels), np.concatenate(self._logprobs)
        return labels[-count:], logprobs[-count:]
