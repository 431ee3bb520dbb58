"""The texts of one request for labels of texts, from texts to rows to labels.

N texts, L labels.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.bundle.arrays import Float32Array, Int64Array
from service.decoding.rows import Continuation
from service.errors import InvalidRequest
from service.scheduling.labeler import LabelWork
from service.tasks.handles import Handle
from service.tasks.label_model import LabelModel
from service.tasks.label_values import (
    Classified,
    ClassifyOptions,
    LabelProbability,
    LabelStep,
)
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
        self._plans: list[_Plan] = []
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
        self._plans = [self._plan(text) for text in self._texts]

    @property
    def works(self) -> list[LabelWork]:
        """The rows to read."""
        return [plan.work for plan in self._plans if len(plan.work.tokens)]

    @property
    def answer_size(self) -> int:
        """Roughly how many characters the answer has."""
        return self._answer_size

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(plan.text.ids) for plan in self._plans)

    @property
    def logprobs(self) -> Float32Array:
        """log P of every label of every text, [N, L], once they have been read."""
        return np.stack([self._logprobs(plan) for plan in self._plans])

    @property
    def read_texts(self) -> Sequence[SideText]:
        """The texts as they were read."""
        return [plan.text for plan in self._plans]

    def results(self) -> list[Classified]:
        """The labels of each text, likeliest first."""
        labels = likeliest_labels(self._model.label_names, self.logprobs, self._options)
        return [
            Classified(
                labels=theirs,
                unknown=plan.text.unknown,
                prompt_tokens=len(plan.text.ids),
                steps=None if plan.steps is None else self._steps(plan.text, plan.steps),
                state=self._sealed(plan) if self._options.return_state else None,
            )
            for plan, theirs in zip(self._plans, labels, strict=True)
        ]

    def _plan(self, text: str) -> "_Plan":
        read = self._model.read(text, self._options.unknown)
        steps = LikeliestLabels() if self._options.steps else None
        work = LabelWork(self._model.places(read.ids, begins=self._handle is None), listener=steps)
        if self._handle is not None:
            work.start = self._handle.continuation.states
        return _Plan(read, work, steps)

    def _logprobs(self, plan: "_Plan") -> Float32Array:
        if plan.work.logprobs is not None:
            return plan.work.logprobs
        if self._handle is None:
            raise RuntimeError("run the works first")
        return self._handle.continuation.logprobs  # nothing was to be read after it

    def _steps(self, text: SideText, steps: "LikeliestLabels") -> list[LabelStep]:
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

    def _sealed(self, plan: "_Plan") -> str:
        """The handle of a text that was read to its end."""
        states, read_before = plan.work.states, 0
        if self._handle is not None:
            read_before = self._handle.position
            states = self._handle.continuation.states if states is None else states
        if states is None:
            raise RuntimeError("run the works first")
        continuation = Continuation(states, self._logprobs(plan))
        handle = Handle(continuation, read_before + len(plan.work.tokens))
        return self._model.seal_of_parts("return_state").seal(handle, now=time.time())


def check_classify(model: LabelModel, options: ClassifyOptions) -> None:
    """Raise InvalidRequest for options that the model cannot follow, whatever the texts."""
    if options.steps and not model.manifest.states:
        raise InvalidRequest.of_option(
            "steps", "this model reads texts from both ends; only models that read forward can"
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """One text."""

    text: SideText
    work: LabelWork
    steps: LikeliestLabels | None
