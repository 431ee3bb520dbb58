"""Stepping in onnxruntime: one token a row, through arrays that are bound once.

B batch, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import Float32Array, Int64Array
from service.bundle.text import PAD_ID
from service.runtime.onnxruntime import onnxruntime

# Two sets of states: each step reads one and writes the other.
StateSets: TypeAlias = tuple[tuple[Float32Array, ...], tuple[Float32Array, ...]]

_Arrays: TypeAlias = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SteppedGraph:
    """A graph and its arrays by name, batch on axis 0, as many rows as can step together."""

    session: onnxruntime.InferenceSession
    is_sequence: bool  # a sequence graph, which steps over one token a row
    inputs: _Arrays
    outputs: _Arrays
    state_names: Sequence[str]
    states: StateSets

    def bound(self, current: int, rows: int) -> Callable[[], None]:
        """A run of the first `rows` rows, from one set of states to the other."""
        inputs = {name: self._one_token(x[:rows]) for name, x in self.inputs.items()}
        outputs = {name: self._one_token(x[:rows]) for name, x in self.outputs.items()}
        if self.is_sequence:
            inputs["lengths"] = np.ones(rows, np.int32)
            inputs["targets"] = np.full((rows, 1), PAD_ID, np.int64)
        before, after = self.states[current], self.states[1 - current]
        for name, old, new in zip(self.state_names, before, after, strict=True):
            inputs[name] = old[:rows]
            outputs[f"{name}_out"] = new[:rows]
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, _shared(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, _shared(array))
        return partial(self.session.run_with_iobinding, binding)

    def _one_token(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return array[:, None] if self.is_sequence else array


class OnnxStepper:
    """Steps through graphs that run one after another, each on the outputs of those before it.

    Binding saves what onnxruntime's own `run` spends on names, copies and new arrays: 10 to 25 µs a
    step. States go back and forth between two sets of arrays.
    """

    def __init__(self, graphs: Sequence[SteppedGraph]) -> None:
        """The first graph reads `tokens`, and the last one gives `logprobs`."""
        self._graphs = graphs
        self._current = 0
        self._tokens: Int64Array = graphs[0].inputs["tokens"].view(np.int64)
        self._logprobs: Float32Array = graphs[-1].outputs["logprobs"].view(np.float32)
        self._states = [
            tuple(state for graph in graphs for state in graph.states[i]) for i in range(2)
        ]
        self._runs: dict[tuple[int, int], list[Callable[[], None]]] = {}

    @property
    def capacity(self) -> int:
        """Most rows that can step together."""
        return len(self._tokens)

    @property
    def tokens(self) -> Int64Array:
        """What each row reads next, [capacity]."""
        return self._tokens

    @property
    def logprobs(self) -> Float32Array:
        """log p of each row's next token, [capacity, V]."""
        return self._logprobs

    @property
    def states(self) -> tuple[Float32Array, ...]:
        """Where each row stands: the states of the first graph, then those of the next."""
        return self._states[self._current]

    def step(self, rows: int) -> None:
        """Read one token in each of the first `rows` rows. If it raises, no state has moved."""
        key = (self._current, rows)
        runs = self._runs.get(key)
        if runs is None:
            runs = self._runs[key] = [graph.bound(*key) for graph in self._graphs]
        for run in runs:
            run()
        self._current = 1 - self._current


def _shared(array: npt.NDArray[np.generic]) -> onnxruntime.OrtValue:
    """onnxruntime's view of an array: the same memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
