"""A language model that adapts: its own graphs, then a graph of an output layer that learns.

The second graph scores each token before it learns from it (Krause et al., Dynamic Evaluation of
Neural Sequence Models, ICML 2018, of the last layer alone). What it has learned is explicit state,
carried like any other. B batch, T time, V vocabulary.
"""

from functools import partial

import numpy as np

from service.bundle.arrays import Float32Array, Int32Array, Int64Array
from service.bundle.files import BundleError
from service.bundle.language_model import Adapt, LanguageModelBundle
from service.bundle.manifest import Graph, Precision, Role
from service.bundle.text import PAD_ID
from service.runtime.golden import check_golden
from service.runtime.graphs import Declared, check_declared, open_graph
from service.runtime.language_model import OnnxLanguageModelSession, States, check_known
from service.runtime.onnxruntime import onnxruntime
from service.runtime.stepping import OnnxStepper, SteppedGraph

# Of the graphs that adapt, whatever the other graphs run in.
_PRECISION: Precision = "fp32"


class AdaptingSession:
    """A `LanguageModelSession` whose states are the model's own, then what it has learned.

    Several threads may call it at the same time, each with its own stepper. Raises BundleError when
    a graph is not what the manifest says, and GoldenMismatch when the graphs do not reproduce the
    bundle's golden vectors that adapt.
    """

    def __init__(
        self, bundle: LanguageModelBundle, adapt: Adapt, base: OnnxLanguageModelSession
    ) -> None:
        """`base` is the same bundle's."""
        self._name = bundle.manifest.name
        self._base = base
        self._base_states = len(bundle.manifest.states)
        self._state_names = [state.name for state in adapt.states]
        self._state_shapes = [tuple(state.shape) for state in adapt.states]
        self._states_out = [f"{name}_out" for name in self._state_names]
        sequence = self._load(bundle, "adapt")
        if sequence is None:
            raise BundleError(f"{self._name}: the graph that adapts must be in {_PRECISION}")
        self._sequence = sequence
        self._step = self._load(bundle, "adapt_step")
        known = [vector for vector in bundle.manifest.golden if vector.adapt]
        check_golden(self._name, base.precision, known, partial(check_known, self))

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._base.vocab_size

    def initial_states(self, rows: int) -> States:
        """Zeros, batch on axis 0."""
        return (*self._base.initial_states(rows), *self._zeros(rows))

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

    def stepper(self, capacity: int) -> OnnxStepper:
        """Arrays to step in: the first graph's outputs are the second one's inputs."""
        tokens = np.zeros(capacity, np.int64)
        features = {
            name: np.zeros((capacity, width), np.float32)
            for name, width in self._base.features.items()
        }
        second = SteppedGraph(
            session=self._sequence if self._step is None else self._step,
            is_sequence=self._step is None,
            inputs={"tokens": tokens, **features},
            outputs={"logprobs": np.zeros((capacity, self.vocab_size), np.float32)},
            state_names=self._state_names,
            states=(self._zeros(capacity), self._zeros(capacity)),
        )
        return OnnxStepper([self._base.stepped(tokens, features), second])

    def _run(
        self,
        output: str,
        tokens: Int64Array,
        lengths: Int32Array,
        targets: Int64Array,
        states: States,
    ) -> tuple[Float32Array, States]:
        own, learned = states[: self._base_states], states[self._base_states :]
        features, after = self._base.read_features(tokens, lengths, own)
        feeds = {"tokens": tokens, "lengths": lengths, "targets": targets}
        feeds |= dict(zip(self._base.features, features, strict=True))
        feeds |= dict(zip(self._state_names, learned, strict=True))
        result, *learned_after = self._sequence.run([output, *self._states_out], feeds)
        return result, (*after, *learned_after)

    def _zeros(self, rows: int) -> States:
        return tuple(np.zeros((rows, *shape), np.float32) for shape in self._state_shapes)

    def _load(self, bundle: LanguageModelBundle, role: Role) -> onnxruntime.InferenceSession | None:
        """A graph of the bundle, checked against what this code feeds; None where it has none."""
        found = bundle.graph(_PRECISION, role)
        if found is None:
            return None
        session = open_graph(self._name, *found)
        self._check_declared(found[0])
        return session

    def _check_declared(self, graph: Graph) -> None:
        """The manifest's graph must be the graph that this code feeds."""
        is_sequence = graph.role == "adapt"
        axes: list[int | str] = ["B", "T"] if is_sequence else ["B"]
        features = {x: ("float32", [*axes, n]) for x, n in self._base.features.items()}
        states = list(zip(self._state_names, self._state_shapes, strict=True))
        inputs: Declared = {
            "tokens": ("int64", axes),
            **({"lengths": ("int32", ["B"]), "targets": ("int64", axes)} if is_sequence else {}),
            **features,
            **{name: ("float32", ["B", *shape]) for name, shape in states},
        }
        outputs: Declared = {
            **({"target_logprobs": ("float32", axes)} if is_sequence else {}),
            "logprobs": ("float32", [*axes, self.vocab_size]),
            **{f"{name}_out": ("float32", ["B", *shape]) for name, shape in states},
        }
        check_declared(f"{self._name}: {graph.file}", graph, inputs, outputs)


def language_model_sessions(
    bundle: LanguageModelBundle, precision: Precision
) -> tuple[OnnxLanguageModelSession, AdaptingSession | None]:
    """The session of a bundle, and the one that adapts if it can. Raises BundleError."""
    base = OnnxLanguageModelSession(bundle, precision)
    adapt = bundle.manifest.adapt
    return base, None if adapt is None else AdaptingSession(bundle, adapt, base)
