"""A labeler in onnxruntime: texts to log-probabilities of labels.

N texts, S places (bos, the tokens and eos), L labels.
"""

from typing import Protocol, TypeAlias

import numpy as np

from service.bundle.arrays import Float32Array, Int32Array, Int64Array
from service.bundle.files import BundleError
from service.bundle.labeler import LabelerBundle, LabelerGoldenVector
from service.bundle.manifest import Precision
from service.runtime.golden import GoldenMismatch, check_answer, check_golden
from service.runtime.graphs import Declared, check_declared, open_graph
from service.runtime.runs import order_of, pad_sources, padded, read_together, rows_of

States: TypeAlias = tuple[Float32Array, ...]


class LabelerSession(Protocol):
    """What the scheduler needs of a labeler. Texts are independent, bit for bit."""

    @property
    def num_labels(self) -> int:
        """L."""

    @property
    def labels_places(self) -> bool:
        """Whether there is an answer for each place, [N, S, L], and not one for a text, [N, L]."""

    @property
    def reads_forward(self) -> bool:
        """Whether a text may come in chunks: it begins with bos, and has no eos."""

    def initial_states(self, rows: int) -> States:
        """The state before any token: zeros, batch on axis 0; none if texts are read whole."""

    def label(
        self, tokens: Int64Array, lengths: Int32Array, states: States = ()
    ) -> tuple[Float32Array, States]:
        """log P of every label for texts `tokens` [N, S], and the states after.

        Row n has `lengths[n]` tokens; places past them mean nothing. Texts that are read whole
        begin with bos and end with eos, and `padded_length` of each of them is S. Texts that are
        read forward come in chunks of any size, of which only the first begins with bos.
        """


class OnnxLabelerSession:
    """A bundle's graph, which runs on the caller's thread; several threads may call it.

    Raises BundleError if the graph is not what the manifest says, and GoldenMismatch if it does
    not reproduce the bundle's golden vectors.
    """

    def __init__(self, bundle: LabelerBundle, precision: Precision) -> None:
        manifest = bundle.manifest
        self.precision = precision
        self._num_labels = len(manifest.labels.names)
        self._states = {state.name: tuple(state.shape) for state in manifest.states}
        self._states_out = [f"{name}_out" for name in self._states]
        self._labels_places = bool(self._states) or manifest.labels.scope == "character"
        # Attention adds up over places, so the last bits depend on their number.
        self._sees_pads = manifest.model.pooling == "attention"
        found = bundle.graph(precision, "labels")
        if found is None:
            available = ", ".join(bundle.precisions)
            raise BundleError(f"{manifest.name}: no {precision} graph; it has {available}")
        self._graph = open_graph(manifest.name, *found)
        places: list[int | str] = ["S"] if self._labels_places else []
        states: Declared = {x: ("float32", ["N", *n]) for x, n in self._states.items()}
        after: Declared = {f"{x}_out": value for x, value in states.items()}
        check_declared(
            f"{manifest.name}: {found[0].file}",
            found[0],
            {"tokens": ("int64", ["N", "S"]), "lengths": ("int32", ["N"]), **states},
            {"logprobs": ("float32", ["N", *places, self._num_labels]), **after},
        )
        check_golden(manifest.name, precision, manifest.golden, self._check_golden)

    @property
    def num_labels(self) -> int:
        """L."""
        return self._num_labels

    @property
    def labels_places(self) -> bool:
        """Whether there is an answer for each place."""
        return self._labels_places

    @property
    def reads_forward(self) -> bool:
        """Whether a text may come in chunks."""
        return bool(self._states)

    def initial_states(self, rows: int) -> States:
        """Zeros, batch on axis 0."""
        return tuple(np.zeros((rows, *shape), np.float32) for shape in self._states.values())

    def label(
        self, tokens: Int64Array, lengths: Int32Array, states: States = ()
    ) -> tuple[Float32Array, States]:
        """log P [N, L] or [N, S, L], and the states after.

        Texts that are read whole run with others of about their length, except with attention.
        """
        if self._states or self._sees_pads:
            return self._run(tokens, lengths, states)
        runs = read_together(lengths)
        found = [
            self._run(tokens[rows, :own], lengths[rows], ())[0] for rows, own in map(rows_of, runs)
        ]
        if self._labels_places:
            return padded(found, runs, 1, tokens.shape[1]), ()
        return np.concatenate(found)[order_of(runs)], ()

    def _run(
        self, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[Float32Array, States]:
        feeds = {"tokens": tokens, "lengths": lengths}
        feeds |= dict(zip(self._states, states, strict=True))
        logprobs, *after = self._graph.run(["logprobs", *self._states_out], feeds)
        return logprobs, tuple(after)

    def _check_golden(self, where: str, vector: LabelerGoldenVector) -> None:
        count = len(vector.tokens)
        if self._states:
            answers = self._read_in_parts(where, np.array([vector.tokens], np.int64))
            picked = answers[-1, vector.labels]
        else:
            tokens = pad_sources([np.array(vector.tokens)])
            answers = self.label(tokens, np.array([count], np.int32))[0][0]
            places = [np.arange(1, count - 1)] if self._labels_places else []
            picked = answers[(*places, np.array(vector.labels))]
        check_answer(where, vector, picked)

    def _read_in_parts(self, where: str, tokens: Int64Array) -> Float32Array:
        """log P [S, L] of one text read forward, and in two parts. Raises GoldenMismatch."""
        whole, after = self.label(tokens, _lengths(tokens), self.initial_states(1))
        states, parts = self.initial_states(1), []
        for part in np.array_split(tokens, [tokens.shape[1] // 2], axis=1):
            if part.shape[1]:
                logprobs, states = self.label(part, _lengths(part), states)
                parts.append(logprobs)
        found = (np.concatenate(parts, axis=1), *states)
        if not all(map(np.array_equal, found, (whole, *after))):
            raise GoldenMismatch(f"{where}: this machine reads a text differently in two parts")
        answers: Float32Array = whole[0]
        return answers


def _lengths(tokens: Int64Array) -> Int32Array:
    return np.full(len(tokens), tokens.shape[1], np.int32)
