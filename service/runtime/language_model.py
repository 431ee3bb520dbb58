"""onnxruntime behind a small protocol: rows of tokens in, log-probabilities and states out.

B batch, T time, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import Float32Array, Int32Array, Int64Array
from service.bundle.files import BundleError
from service.bundle.language_model import LanguageModelBundle, LanguageModelGoldenVector
from service.bundle.manifest import Graph, Precision, Role
from service.bundle.text import PAD_ID
from service.runtime.golden import GoldenMismatch, check_answer, check_golden
from service.runtime.graphs import Declared, check_declared, open_graph
from service.runtime.onnxruntime import onnxruntime

States: TypeAlias = tuple[Float32Array, ...]


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
        sequence = self._load(bundle, precision, "sequence")
        if sequence is None:
            available = ", ".join(bundle.precisions)
            raise BundleError(f"{self._name}: no {precision} graph; it has {available}")
        self._sequence = sequence
        self._step = self._load(bundle, precision, "step")
        check_golden(self._name, precision, manifest.golden, self._check_golden)

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
        return self._run("target_logprobs", tokens, lengths, targets, states)

    def read(
        self, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[Float32Array, States]:
        """log p [B, T, V], and the states after."""
        return self._run("logprobs", tokens, lengths, np.full_like(tokens, PAD_ID), states)

    def stepper(self, capacity: int) -> "OnnxStepper":
        """Arrays to step in, on the step graph, or on the sequence graph where there is none."""
        states = [self.initial_states(capacity) for _ in range(2)]
        names = self._state_names
        if self._step is not None:
            return OnnxStepper(self._step, names, states, self._vocab_size, alone=True)
        return OnnxStepper(self._sequence, names, states, self._vocab_size, alone=False)

    def _run(
        self,
        output: str,
        tokens: Int64Array,
        lengths: Int32Array,
        targets: Int64Array,
        states: States,
    ) -> tuple[Float32Array, States]:
        feeds = {"tokens": tokens, "lengths": lengths, "targets": targets}
        feeds |= dict(zip(self._state_names, states, strict=True))
        result, *after = self._sequence.run([output, *self._states_out], feeds)
        return result, tuple(after)

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
        else:
            inputs = {"tokens": ("int64", ["B"])}
            outputs = {"logprobs": ("float32", ["B", self._vocab_size])}
        inputs |= {name: ("float32", ["B", *shape]) for name, shape in states}
        outputs |= {f"{name}_out": ("float32", ["B", *shape]) for name, shape in states}
        check_declared(where, graph, inputs, outputs)

    def _check_golden(self, where: str, vector: LanguageModelGoldenVector) -> None:
        ids = np.array([vector.tokens], np.int64)
        read, wanted = ids[:, :-1], ids[:, 1:]
        lengths = np.array([read.shape[1]], np.int32)
        picked, after = self.pick(read, lengths, wanted, self.initial_states(1))
        check_answer(where, vector, picked[0])
        if not self._steps_to(read[0], wanted[0], picked[0], after):
            raise GoldenMismatch(
                f"{where}: on this machine the step graph does not give what the sequence graph "
                f"gives in {self.precision}"
            )

    def _steps_to(
        self, tokens: Int64Array, targets: Int64Array, picked: Float32Array, states: States
    ) -> bool:
        """Whether stepping gives what reading gave on the way and in the end, bit for bit."""
        stepper = self.stepper(1)
        stepped = np.empty_like(picked)  # [T]
        for i, token in enumerate(tokens):
            stepper.tokens[0] = token
            stepper.step(1)
            stepped[i] = stepper.logprobs[0, targets[i]]
        return all(map(np.array_equal, (stepped, *stepper.states), (picked, *states)))


class OnnxStepper:
    """Steps through arrays that are bound once for each number of rows.

    Binding saves what onnxruntime's own `run` spends on names, copies and new arrays: 10 to 25 µs a
    step. States go back and forth between two sets of arrays.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        state_names: Sequence[str],
        states: Sequence[States],
        vocab_size: int,
        *,
        alone: bool,
    ) -> None:
        self._session = session
        self._state_names = state_names
        self._states = states  # [2]
        self._current = 0
        self._alone = alone  # a step graph: it takes nothing but tokens and states
        self._capacity = len(states[0][0])
        self._tokens = np.zeros(self._capacity, np.int64)
        self._logprobs = np.zeros((self._capacity, vocab_size), np.float32)
        self._lengths = np.ones(self._capacity, np.int32)
        self._targets = np.full(self._capacity, PAD_ID, np.int64)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    @property
    def capacity(self) -> int:
        """Most rows that can step together."""
        return self._capacity

    @property
    def tokens(self) -> Int64Array:
        """What each row reads next, [capacity]."""
        return self._tokens

    @property
    def logprobs(self) -> Float32Array:
        """log p of each row's next token, [capacity, V]."""
        return self._logprobs

    @property
    def states(self) -> States:
        """Where each row stands."""
        return self._states[self._current]

    def step(self, rows: int) -> None:
        """Read one token in each of the first `rows` rows."""
        key = (self._current, rows)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bind(*key)
        self._session.run_with_iobinding(binding)
        self._current = 1 - self._current

    def _bind(self, current: int, rows: int) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        inputs: dict[str, npt.NDArray[np.generic]] = {"tokens": self._tokens[:rows]}
        outputs: dict[str, npt.NDArray[np.generic]] = {"logprobs": self._logprobs[:rows]}
        if not self._alone:
            # The sequence graph, over one token a row.
            inputs = {
                "tokens": self._tokens[:rows, None],
                "targets": self._targets[:rows, None],
                "lengths": self._lengths[:rows],
            }
            outputs = {"logprobs": self._logprobs[:rows, None]}
        for name, before, after in zip(
            self._state_names, self._states[current], self._states[1 - current], strict=True
        ):
            inputs[name] = before[:rows]
            outputs[f"{name}_out"] = after[:rows]
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, _shared(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, _shared(array))
        return binding


def _shared(array: npt.NDArray[np.generic]) -> onnxruntime.OrtValue:
    """onnxruntime's view of an array: the same memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
