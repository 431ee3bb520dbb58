"""The texts of one request for labels of characters, from texts to rows to tags.

T characters, S places of a text (T with bos and eos), L labels, K of them at each place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from service.bundle.arrays import Float32Array, Float64Array, Int64Array
from service.bundle.labeler import FORBIDDEN
from service.decoding.linear_chain import Chain, Labeling, labelings
from service.scheduling.labeler import LabelWork
from service.tasks.label_model import LabelModel
from service.tasks.label_values import LabelProbability, Place, Tag, Tagged, Tagging, TagOptions
from service.tasks.label_works import grouped
from service.tasks.limits import at_most, check_details
from service.tasks.sides import SideText
from service.tasks.tag_spans import TagScheme

_DETAILS = "details: characters · (4 · n + top)"
_SUMS = "sums: characters · n · labels²"
# What finding a chain's likeliest labelings may cost: additions in all, of one text, and at one
# place. A worker reads a text in one step, and must not seem to hang.
_MAX_CHAIN_SUMS = 2**28
_MAX_TEXT_SUMS = 2**27
_MAX_STEP_SUMS = 2**22


class TagRequest:
    """Call `read`, run `works`, and take the results."""

    def __init__(
        self, model: LabelModel, scheme: TagScheme, texts: Sequence[str], options: TagOptions
    ) -> None:
        """Raises InvalidRequest and QueueFull."""
        self._model = model
        self._scheme = scheme
        self._texts = texts
        self._options = options
        self._read: Sequence[SideText] = ()
        self._places: Sequence[_Places] = ()
        self.works: Sequence[LabelWork] = ()  # of every text that is not empty
        self.size = sum(map(len, texts))
        settings = model.settings
        model.check_texts(texts)
        check_tag(model, options)
        step, longest = _step_sums(model, options), max(map(len, texts), default=0)
        at_most("text", self.size * step, _MAX_CHAIN_SUMS, f"{_SUMS}, of all texts")
        at_most("text", longest * step, _MAX_TEXT_SUMS, f"{_SUMS}, of a text")
        top = min(options.top, len(model.label_names)) if options.places else 0
        check_details("text", self.size * options.n, top, settings, _DETAILS)

    def read(self) -> None:
        """Turn the texts into rows to read. Raises InvalidRequest."""
        self._read = self._model.read(self._texts, self._options.unknown)
        chain = self._model.chain
        self._places = [
            _Places(self._scheme, chain, self._options, self._model.typed(text.text))
            for text in self._read
        ]
        some = [i for i, text in enumerate(self._read) if len(text.ids)]
        self.works = [
            group.work
            for group in grouped(
                [self._read[i].ids for i in some],
                reads_forward=False,
                listeners=[self._places[i] for i in some],
                place_sums=_step_sums(self._model, self._options),
            )
        ]

    @property
    def prompt_tokens(self) -> int:
        """Characters of all texts."""
        return sum(len(text.ids) for text in self._read)

    @property
    def answer_size(self) -> int:
        """Roughly how many characters the answer has."""
        top = self._options.top if self._options.places else 0
        return self.size * (self._options.n + 4 * top)

    def results(self) -> list[Tagged]:
        """The taggings of each text, likeliest first."""
        return list(map(self._tagged, self._read, self._places))

    def _tagged(self, text: SideText, places: "_Places") -> Tagged:
        return Tagged(
            taggings=[self._tagging(text.text, x) for x in places.found],
            unknown=text.unknown,
            prompt_tokens=len(text.ids),
            places=self._labels_of(places) if self._options.places else None,
        )

    def _tagging(self, text: str, found: "_Found") -> Tagging:
        names = self._scheme.names
        tags = [
            Tag(start, end, names[kind], math.exp(logprob), logprob)
            for (start, end, kind), logprob in zip(found.spans, found.logprobs, strict=True)
        ]
        if self._model.manifest.labels.applied:
            labels = self._model.label_names
            # What was sent with its accent is not changed.
            tags = [tag for tag in tags if tag.label != text[tag.start]]
            restored = zip(found.labeling.labels.tolist(), text, strict=True)
            text = "".join(labels[label] or character for label, character in restored)
        return Tagging(text, found.labeling.logprob, tags)

    def _labels_of(self, places: "_Places") -> list[Place]:
        names = self._model.label_names
        columns = (
            places.top_labels.tolist(),
            np.exp(places.top_logprobs).tolist(),
            places.top_logprobs.tolist(),
        )
        return [
            Place(
                i,
                i + 1,
                [
                    LabelProbability(names[label], probability, logprob)
                    for label, probability, logprob in zip(*row, strict=True)
                    if logprob > FORBIDDEN / 2
                ],
            )
            for i, row in enumerate(zip(*columns, strict=True))
        ]


def check_tag(model: LabelModel, options: TagOptions) -> None:
    """Raise InvalidRequest for options that the model cannot follow, whatever the texts."""
    at_most("n", options.n, model.settings.max_n, "taggings")
    at_most("n", _step_sums(model, options), _MAX_STEP_SUMS, "sums: n · labels²")


def _step_sums(model: LabelModel, options: TagOptions) -> int:
    """What finding the likeliest labelings of a chain takes at a place: additions."""
    return 0 if model.chain is None else options.n * len(model.label_names) ** 2


@dataclass(frozen=True, slots=True)
class _Found:
    """One labeling and its tags."""

    labeling: Labeling
    spans: list[tuple[int, int, int]]
    logprobs: list[float]  # of each tag: that its characters have their labels


@dataclass(slots=True)
class _Places:
    """Finds the likeliest labels of a text in the worker's thread, once the text has been read.

    The log-probabilities themselves, [S, L], are not kept: they could take gigabytes.
    """

    scheme: TagScheme
    chain: Chain | None
    options: TagOptions
    typed: Sequence[tuple[int, int]]  # places whose labels the text itself has, and the labels
    # Of a text without characters:
    found: list[_Found] = field(
        default_factory=lambda: [_Found(Labeling(np.empty(0, np.uint16), 0.0), [], [])]
    )
    top_labels: Int64Array = field(default_factory=lambda: np.empty((0, 0), np.int64))  # [T, K]
    top_logprobs: Float64Array = field(default_factory=lambda: np.empty((0, 0)))  # [T, K]

    def took(self, logprobs: Float32Array) -> None:
        """Called by the worker with all places, [S, L]; bos and eos have no label."""
        scores = logprobs[1:-1]
        if self.typed:
            places, labels = np.array(self.typed).T
            scores = scores.copy()
            scores[places] = FORBIDDEN
            scores[places, labels] = 0.0
        every = labelings(scores, self.chain)
        self.found = []
        for labeling in every.best(self.options.n):
            spans = self.scheme.spans(labeling.labels)
            tagged = [every.segment(start, labeling.labels[start:end]) for start, end, _ in spans]
            self.found.append(_Found(labeling, spans, tagged))
        if self.options.places:
            marginals = every.marginals
            order = np.argsort(-marginals, axis=1, kind="stable")[:, : self.options.top]
            self.top_labels = order
            self.top_logprobs = np.take_along_axis(marginals, order, axis=1)
