"""onnxruntime behind a small protocol: rows of tokens in, log-probabilities and states out.

B batch, T time, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np

from service.bundle.arrays import Float32Array, Int32Array, Int64Array
from service.bundle.files import BundleError
from service.bundle.language_model import (
    LanguageModelBundle,
    LanguageModelGoldenVector,
    LanguageModelManifest,
)
from service.bundle.manifest import Graph, Precision, Role
from service.bundle.text import PAD_ID
from service.runtime.golden import GoldenMismatch, check_answer, check_golden
from service.runtime.graphs import Declared, check_declared, open_graph
from service.runtime.onnxruntime import onnxruntime
from service.runtime.stepping import OnnxStepper, SteppedGraph

States: TypeAlias = tuple[Float32Array, ...]
# Widths by name of what the graphs of a model that can adapt give besides log-probabilities.
Features: TypeAlias = Mapping[str, int]


class Stepper(Protocol):
    """One token a row and step, in place: arrays of `capacity` rows, of which the first step.

    A caller writes its rows' tokens and states, steps, and reads the rows' `logprobs` and states.
    """

    @property
    def capacity(self) -> int:
        """Most rows that can step together."""

    @property
    def tokens(self) -> Int64Array:
        """What each row reads next, [capacity]."""

    @property
    def logprobs(self) -> Float32Array:
        """log p of each row's next token, [capacity, V]."""

    @property
    def states(self) -> States:
        """Where each row stands, batch on axis 0. Other arrays after every step."""

    def step(self, rows: int) -> None:
        """Read one token in each of the first `rows` rows. If it raises, no state has moved."""


class LanguageModelSession(Protocol):
    """What the scheduler needs of a model. Rows are independent, bit for bit."""

    @property
    def vocab_size(self) -> int:
        """V."""

    def initial_states(self, rows: int) -> States:
        """The state before any token: zeros, batch on axis 0 of every tensor."""

    def pick(
        self, tokens: Int64Array, lengths: Int32Array, targets: Int64Array, states: States
    ) -> tuple[Float32Array, States]:
        """log p of `targets` [B, T] after each of `tokens` [B, T], and the states after.

        Row b reads its first `lengths[b]` tokens; its results past them mean nothing.
        """

    def read(
        self, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[Float32Array, States]:
        """log p [B, T, V] of every token after each of `tokens`, and the states after."""

    def stepper(self, capacity: int) -> Stepper:
        """Arrays to step in; each worker has its own."""


class OnnxLanguageModelSession:
    """A bundle's graphs in onnxruntime, on one thread each: the caller is an engine's own thread.

    Several threads may call it at the same time, each with its own stepper. Raises BundleError when
    a graph is not what the manifest says, and GoldenMismatch when the graphs do not reproduce the
    bundle's golden vectors.
    """

    def __init__(self, bundle: LanguageModelBundle, precision: Precision) -> None:
        manifest = bundle.manifest
        self.precision = precision
        self._name = manifest.name
        self._vocab_size = manifest.vocab.size
        self._state_names = [state.name for state in manifest.states]
        self._state_shapes = [tuple(state.shape) for state in manifest.states]
        self._states_out = [f"{name}_out" for name in self._state_names]
        self.features = _features(manifest)
        sequence = self._load(bundle, precision, "sequence")
        if sequence is None:
            available = ", ".join(bundle.precisions)
            raise BundleError(f"{self._name}: no {precision} graph; it has {available}")
        self._sequence = sequence
        self._step = self._load(bundle, precision, "step")
        known = [vector for vector in manifest.golden if not vector.adapt]
        check_golden(self._name, precision, known, partial(check_known, self))

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    def initial_states(self, rows: int) -> States:
        """Zeros, batch on axis 0."""
        return tuple(np.zeros((rows, *shape), np.float32) for shape in self._state_shapes)

    def pick(
        self, tokens: Int64Array, lengths: Int32Array, targets: Int64Array, states: States
    ) -> tuple[Float32Array, States]:
        """log p of `targets` [B, T], and the states after."""
        (picked,), after = self._run(["target_logprobs"], tokens, lengths, targets, states)
        return picked, after

    def read(
        self, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[Float32Array, States]:
        """log p [B, T, V], and the states after."""
        targets = np.full_like(tokens, PAD_ID)
        (logprobs,), after = self._run(["logprobs"], tokens, lengths, targets, states)
        return logprobs, after

    def read_features(
        self, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[list[Float32Array], States]:
        """The features [B, T, …] after each of `tokens`, in order, and the states after."""
        targets = np.full_like(tokens, PAD_ID)
        return self._run([*self.features], tokens, lengths, targets, states)

    def stepper(self, capacity: int) -> OnnxStepper:
        """Arrays to step in, on the step graph, or on the sequence graph where there is none."""
        tokens = np.zeros(capacity, np.int64)
        logprobs = np.zeros((capacity, self._vocab_size), np.float32)
        return OnnxStepper([self.stepped(tokens, {"logprobs": logprobs})])

    def stepped(self, tokens: Int64Array, outputs: Mapping[str, Float32Array]) -> SteppedGraph:
        """The graph that steps, to write its `outputs` [capacity, …] after `tokens` [capacity]."""
        return SteppedGraph(
            session=self._sequence if self._step is None else self._step,
            is_sequence=self._step is None,
            inputs={"tokens": tokens},
            outputs=outputs,
            state_names=self._state_names,
            states=(self.initial_states(len(tokens)), self.initial_states(len(tokens))),
        )

    def _run(
        self,
        outputs: Sequence[str],
        tokens: Int64Array,
        lengths: Int32Array,
        targets: Int64Array,
        states: States,
    ) -> tuple[list[Float32Array], States]:
        feeds = {"tokens": tokens, "lengths": lengths, "targets": targets}
        feeds |= dict(zip(self._state_names, states, strict=True))
        results = self._sequence.run([*outputs, *self._states_out], feeds)
        return results[: len(outputs)], tuple(results[len(outputs) :])

    def _load(
        self, bundle: LanguageModelBundle, precision: Precision, role: Role
    ) -> onnxruntime.InferenceSession | None:
        """A graph of the bundle, checked against what this code feeds; None where it has none."""
        found = bundle.graph(precision, role)
        if found is None:
            return None
        session = open_graph(self._name, *found)
        self._check_declared(f"{self._name}: {found[0].file}", found[0])
        return session

    def _check_declared(self, where: str, graph: Graph) -> None:
        """The manifest's graph must be the graph that this code feeds."""
        states = list(zip(self._state_names, self._state_shapes, strict=True))
        inputs: Declared
        outputs: Declared
        if graph.role == "sequence":
            inputs = {
                "tokens": ("int64", ["B", "T"]),
                "lengths": ("int32", ["B"]),
                "targets": ("int64", ["B", "T"]),
            }
            outputs = {
                "target_logprobs": ("float32", ["B", "T"]),
                "logprobs": ("float32", ["B", "T", self._vocab_size]),
            }
            outputs |= {x: ("float32", ["B", "T", n]) for x, n in self.features.items()}
        else:
            inputs = {"tokens": ("int64", ["B"])}
            outputs = {"logprobs": ("float32", ["B", self._vocab_size])}
            outputs |= {x: ("float32", ["B", n]) for x, n in self.features.items()}
        inputs |= {name: ("float32", ["B", *shape]) for name, shape in states}
        outputs |= {f"{name}_out": ("float32", ["B", *shape]) for name, shape in states}
        check_declared(where, graph, inputs, outputs)


def check_known(
    session: LanguageModelSession, where: str, vector: LanguageModelGoldenVector
) -> None:
    """Check a golden vector, read whole and in steps. Raises GoldenMismatch."""
    ids = np.array([vector.tokens], np.int64)
    read, wanted = ids[:, :-1], ids[:, 1:]
    lengths = np.array([read.shape[1]], np.int32)
    picked, after = session.pick(read, lengths, wanted, session.initial_states(1))
    check_answer(where, vector, picked[0])
    if not _steps_to(session, read[0], wanted[0], (picked[0], *after)):
        raise GoldenMismatch(
            f"{where}: on this machine the step graph does not give what the sequence graph "
            f"gives in {vector.precision}"
        )


def _steps_to(
    session: LanguageModelSession, tokens: Int64Array, targets: Int64Array, wanted: States
) -> bool:
    """Whether stepping gives the same log-probabilities and states as reading, bit for bit."""
    stepper = session.stepper(1)
    stepped = np.empty(len(tokens), np.float32)  # [T]
    for i, token in enumerate(tokens):
        stepper.tokens[0] = token
        stepper.step(1)
        stepped[i] = stepper.logprobs[0, targets[i]]
    return all(map(np.array_equal, (stepped, *stepper.states), wanted))


def _features(manifest: LanguageModelManifest) -> Features:
    """The other inputs of the adapt graph, besides tokens and states. Raises BundleError."""
    if manifest.adapt is None:
        return {}
    graph = next(x for x in manifest.graphs if x.role == "adapt")
    known = {"tokens", "lengths", "targets", *(state.name for state in manifest.adapt.states)}
    features: dict[str, int] = {}
    for tensor in graph.inputs:
        if tensor.name in known:
            continue
        match tensor.shape:
            case [_, _, int(width)]:
                features[tensor.name] = width
            case _:
                raise BundleError(f"{manifest.name}: {graph.file}: {tensor.name} must be [B, T, n]")
    return features
