"""onnxruntime behind a small protocol: rows of tokens in, log-probabilities and states out.

B batch, T time, V vocabulary.
"""

import os
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from service.bundle import PAD_ID, Bundle, BundleError, Graph, Tensor

FloatArray: TypeAlias = npt.NDArray[np.float32]
IdArray: TypeAlias = npt.NDArray[np.int64]
States: TypeAlias = tuple[FloatArray, ...]

_ONNX_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}


class Session(Protocol):
    """What the scheduler needs of a model. Rows are independent, bit for bit."""

    @property
    def vocab_size(self) -> int:
        """V."""

    def initial_states(self, rows: int) -> States:
        """The state before any token: zeros, batch on axis 0 of every tensor."""

    def pick(
        self, tokens: IdArray, lengths: npt.NDArray[np.int32], targets: IdArray, states: States
    ) -> tuple[FloatArray, States]:
        """log p of `targets` [B, T] after each of `tokens` [B, T], and the states after.

        Row b reads its first `lengths[b]` tokens; its results past them mean nothing.
        """

    def read(
        self, tokens: IdArray, lengths: npt.NDArray[np.int32], states: States
    ) -> tuple[FloatArray, States]:
        """log p [B, T, V] of every token after each of `tokens`, and the states after."""


class OnnxSession:
    """A bundle's graph in onnxruntime, on one thread: the caller is the engine's own thread.

    Raises BundleError when the graph is not what the manifest says, or when it does not reproduce
    the bundle's golden vectors.
    """

    def __init__(self, bundle: Bundle, precision: str) -> None:
        graph, data = bundle.graph(precision)
        self._name = bundle.manifest.name
        self._vocab_size = bundle.manifest.vocab.size
        self._state_shapes = [tuple(state.shape) for state in bundle.manifest.states]
        state_names = [state.name for state in bundle.manifest.states]
        self._states_out = [f"{name}_out" for name in state_names]
        self._states_in = state_names
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Left alone, a graph from bytes takes weights from any file, from the working folder on.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.devnull
        )
        try:
            # From bytes, so that the checksum holds for what runs.
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base
            line = str(error).splitlines()[0]
            raise BundleError(f"{self._name}: {graph.file}: not a usable graph: {line}") from error
        self._check_interface(graph)
        self._check_golden(bundle, precision)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    def initial_states(self, rows: int) -> States:
        """Zeros, batch on axis 0."""
        return tuple(np.zeros((rows, *shape), np.float32) for shape in self._state_shapes)

    def pick(
        self, tokens: IdArray, lengths: npt.NDArray[np.int32], targets: IdArray, states: States
    ) -> tuple[FloatArray, States]:
        """log p of `targets` [B, T], and the states after."""
        return self._run("target_logprobs", tokens, lengths, targets, states)

    def read(
        self, tokens: IdArray, lengths: npt.NDArray[np.int32], states: States
    ) -> tuple[FloatArray, States]:
        """log p [B, T, V], and the states after."""
        return self._run("logprobs", tokens, lengths, np.full_like(tokens, PAD_ID), states)

    def _run(
        self,
        output: str,
        tokens: IdArray,
        lengths: npt.NDArray[np.int32],
        targets: IdArray,
        states: States,
    ) -> tuple[FloatArray, States]:
        feeds = {"tokens": tokens, "lengths": lengths, "targets": targets}
        feeds |= dict(zip(self._states_in, states, strict=True))
        result, *after = self._session.run([output, *self._states_out], feeds)
        return result, tuple(after)

    def _check_interface(self, graph: Graph) -> None:
        where = f"{self._name}: {graph.file}"
        for kind, declared, actual in (
            ("input", graph.inputs, self._session.get_inputs()),
            ("output", graph.outputs, self._session.get_outputs()),
        ):
            found = {x.name: (x.type, x.shape) for x in actual}
            expected = {x.name: (_ONNX_TYPES[x.dtype], x.shape) for x in declared}
            if found != expected:
                raise BundleError(f"{where}: its {kind}s are not the manifest's: {found}")
        self._check_declared(where, graph)

    def _check_declared(self, where: str, graph: Graph) -> None:
        """The manifest's graph must be the graph that this code feeds."""
        states = list(zip(self._states_in, self._state_shapes, strict=True))
        inputs = {
            "tokens": ("int64", ["B", "T"]),
            "lengths": ("int32", ["B"]),
            "targets": ("int64", ["B", "T"]),
            **{name: ("float32", ["B", *shape]) for name, shape in states},
        }
        outputs = {
            "target_logprobs": ("float32", ["B", "T"]),
            "logprobs": ("float32", ["B", "T", self._vocab_size]),
            **{f"{name}_out": ("float32", ["B", *shape]) for name, shape in states},
        }
        for kind, declared, needed in (
            ("input", graph.inputs, inputs),
            ("output", graph.outputs, outputs),
        ):
            if _by_name(declared) != needed:
                raise BundleError(f"{where}: {kind}s must be {needed}")

    def _check_golden(self, bundle: Bundle, precision: str) -> None:
        for index, vector in enumerate(bundle.manifest.golden):
            if vector.precision != precision:
                continue
            ids = np.array([vector.tokens], np.int64)
            lengths = np.array([ids.shape[1] - 1], np.int32)
            picked, _ = self.pick(ids[:, :-1], lengths, ids[:, 1:], self.initial_states(1))
            difference = float(np.abs(picked[0] - np.array(vector.logprobs)).mean())
            # Written so that NaN fails too.
            if not difference <= vector.tolerance:
                raise BundleError(
                    f"{self._name}: golden vector {index}: this machine differs by "
                    f"{difference:.2e} nats a token, at most {vector.tolerance} is allowed"
                )


def _by_name(tensors: Sequence[Tensor]) -> dict[str, tuple[str, list[int | str]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
