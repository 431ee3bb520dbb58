"""An encoder-decoder in onnxruntime: sources to memories, rows of tokens to log-probabilities.

N sources, K rows of each, B = N · K, S source positions, M memory positions, V target vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import Float32Array, Int32Array, Int64Array
from service.bundle.encoder_decoder import EncoderDecoderBundle, EncoderDecoderGoldenVector
from service.bundle.files import BundleError
from service.bundle.manifest import Precision, Role
from service.runtime.golden import check_answer, check_golden
from service.runtime.graphs import Declared, check_declared, open_graph
from service.runtime.onnxruntime import onnxruntime
from service.runtime.runs import order_of, pad_sources, padded, read_together, rows_of

Tensors: TypeAlias = tuple[Float32Array, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Sources, read."""

    states: Tensors  # [N, …] each: where the decoder begins
    memory: Tensors  # [N, …] each: what it attends to

    def some(self, sources: slice) -> "Encoded":
        """Some of the sources."""
        return Encoded(
            tuple(state[sources] for state in self.states),
            tuple(tensor[sources] for tensor in self.memory),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a step."""

    logprobs: Float32Array  # [B, V]
    states: Tensors  # [B, …] each
    attention: Float32Array | None  # [B, M]

    @classmethod
    def joined(cls, steps: "Sequence[Step]") -> "Step":
        """Of the rows of all steps."""
        attentions = [step.attention for step in steps if step.attention is not None]
        return cls(
            np.concatenate([step.logprobs for step in steps]),
            tuple(map(np.concatenate, zip(*(step.states for step in steps), strict=True))),
            np.concatenate(attentions) if attentions else None,
        )

    def repeated(self, times: int) -> "Step":
        """Of each row several times."""
        if times == 1:
            return self
        return self.some(np.repeat(np.arange(len(self.logprobs)), times))

    def some(self, rows: Int64Array) -> "Step":
        """Of some of the rows."""
        attention = None if self.attention is None else self.attention[rows]
        return Step(self.logprobs[rows], tuple(state[rows] for state in self.states), attention)


class EncoderDecoderSession(Protocol):
    """What a search needs from a model. Rows are independent, bit for bit."""

    @property
    def vocab_size(self) -> int:
        """V."""

    def encode(self, tokens: Int64Array, lengths: Int32Array) -> Encoded:
        """Read sources [N, S], all padded to the length that `padded_length` gives for each."""

    def step(
        self, tokens: Int64Array, states: Tensors, memory: Tensors, *, attention: bool
    ) -> Step:
        """Read one token in each of B rows; the K rows of a source stand together."""


class OnnxEncoderDecoderSession:
    """A bundle's encoder and decoder, on one thread each; several threads may call it.

    Raises BundleError when a graph is not what the manifest says, and GoldenMismatch when the
    graphs do not reproduce the bundle's golden vectors.
    """

    def __init__(self, bundle: EncoderDecoderBundle, precision: Precision) -> None:
        manifest = bundle.manifest
        self.precision = precision
        self._name = manifest.name
        self._vocab_size = manifest.target.vocab.size
        self._has_attention = bool(manifest.memory)
        self._state_names = [state.name for state in manifest.states]
        self._memory_names = [tensor.name for tensor in manifest.memory]
        self._position_axes = [tensor.shape.index("M") for tensor in manifest.memory]
        # Pads can change the last bits of convolutions.
        self._has_own_positions = manifest.model.encoder == "recurrent"
        self._states_out = [f"{name}_out" for name in self._state_names]
        states = {x.name: ("float32", x.shape) for x in manifest.states}
        memory: Declared = {x.name: ("float32", ["N", *x.shape]) for x in manifest.memory}
        rows: Declared = {name: (kind, ["B", *shape]) for name, (kind, shape) in states.items()}
        rows_out: Declared = {f"{name}_out": value for name, value in rows.items()}
        sources_out: Declared = {
            f"{name}_out": (kind, ["N", *shape]) for name, (kind, shape) in states.items()
        }
        self._encoder = self._open(
            bundle,
            precision,
            "encoder",
            {"tokens": ("int64", ["N", "S"]), "lengths": ("int32", ["N"])},
            {**memory, **sources_out},
        )
        attention: Declared = {"attention": ("float32", ["B", "M"])} if memory else {}
        self._decoder = self._open(
            bundle,
            precision,
            "decoder",
            {"tokens": ("int64", ["B"]), **rows, **memory},
            {"logprobs": ("float32", ["B", self._vocab_size]), **rows_out, **attention},
        )
        check_golden(self._name, precision, manifest.golden, self._check_golden)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    def encode(self, tokens: Int64Array, lengths: Int32Array) -> Encoded:
        """Read sources [N, S], padded.

        A recurrent encoder runs over a source's own positions, about: zeros after them are as good
        as what it would make of pads, and nobody sees the difference.
        """
        if not self._has_own_positions:
            return self._encode(tokens, lengths)
        positions = tokens.shape[1]
        runs = read_together(lengths)
        found = [
            self._encode(tokens[rows, :own], lengths[rows]) for rows, own in map(rows_of, runs)
        ]
        order = order_of(runs)
        states = zip(*(part.states for part in found), strict=True)
        memory = zip(*(part.memory for part in found), strict=True)
        return Encoded(
            tuple(np.concatenate(state)[order] for state in states),
            tuple(
                padded(tensors, runs, 1 + axis, positions)
                for tensors, axis in zip(memory, self._position_axes, strict=True)
            ),
        )

    def step(
        self, tokens: Int64Array, states: Tensors, memory: Tensors, *, attention: bool
    ) -> Step:
        """Read one token in each of B rows."""
        feeds: dict[str, npt.NDArray[np.generic]] = {"tokens": tokens}
        feeds |= dict(zip(self._state_names, states, strict=True))
        feeds |= dict(zip(self._memory_names, memory, strict=True))
        outputs = ["logprobs", *self._states_out]
        if attention and self._has_attention:
            logprobs, weights, *after = self._decoder.run(
                [outputs[0], "attention", *outputs[1:]], feeds
            )
            return Step(logprobs, tuple(after), weights)
        logprobs, *after = self._decoder.run(outputs, feeds)
        return Step(logprobs, tuple(after), None)

    def _encode(self, tokens: Int64Array, lengths: Int32Array) -> Encoded:
        outputs = [*self._states_out, *self._memory_names]
        found = self._encoder.run(outputs, {"tokens": tokens, "lengths": lengths})
        count = len(self._states_out)
        return Encoded(tuple(found[:count]), tuple(found[count:]))

    def _open(
        self,
        bundle: EncoderDecoderBundle,
        precision: Precision,
        role: Role,
        inputs: Declared,
        outputs: Declared,
    ) -> onnxruntime.InferenceSession:
        found = bundle.graph(precision, role)
        if found is None:
            available = ", ".join(bundle.precisions)
            raise BundleError(f"{self._name}: no {precision} {role}; it has {available}")
        graph, data = found
        session = open_graph(self._name, graph, data)
        check_declared(f"{self._name}: {graph.file}", graph, inputs, outputs)
        return session

    def _check_golden(self, where: str, vector: EncoderDecoderGoldenVector) -> None:
        source = pad_sources([np.array(vector.source)])
        encoded = self.encode(source, np.array([len(vector.source)], np.int32))
        states = encoded.states
        picked = []
        for token, target in zip(vector.tokens[:-1], vector.tokens[1:], strict=True):
            step = self.step(np.array([token]), states, encoded.memory, attention=False)
            states = step.states
            picked.append(step.logprobs[0, target])
        check_answer(where, vector, np.array(picked))
