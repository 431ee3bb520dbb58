"""A model that adapts, in a bundle: its graphs, their checks, known answers and scores.

B batch, T time, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor

from service.bundle.language_model import (
    Adapt,
    LanguageModelGoldenVector,
    LanguageModelMeasurement,
)
from service.bundle.manifest import Precision, StateTensor
from training.data.corpus import Split
from training.errors import ExportError, Unverifiable
from training.evaluation.language_model_report import measurement
from training.export.gate import PRECISIONS
from training.export.golden import known_answer
from training.export.language_model_parity import (
    States,
    check_golden,
    check_ragged,
    golden_texts,
    onnx_score,
)
from training.export.manifest_parts import Graphs
from training.export.precision import FAULT, MAX_DIFFERENCE, exact_programs, in_double, of_targets
from training.export.sessions import open_session
from training.graphs import adapting as adapting_graph
from training.graphs.language_model_reference import reference_hidden
from training.networks.adapting import Adaptation, Adapting
from training.networks.mixture import AnyLanguageModel

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Feeds = dict[str, npt.NDArray[Any]]
# Tokens of each row, in calls one after another, that are held to the formulas and to one call.
_PIECES = (1, 2, 13, 16, 17, 40)
_ROWS = 5


@dataclass(frozen=True, slots=True)
class OnnxAdapting:
    """A model's own sequence graph and the adapting one behind it, in onnxruntime."""

    model: AnyLanguageModel
    shapes: Mapping[str, list[int]]  # of the adapting graph's states
    own: onnxruntime.InferenceSession
    adapt: onnxruntime.InferenceSession
    features: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        names = {x.name for x in self.own.get_outputs()}
        found = [x.name for x in self.adapt.get_inputs() if x.name in names]
        object.__setattr__(self, "features", found)

    def initial_states(self, batch_size: int) -> tuple[Tensor, ...]:
        """Zeros: the model's, then the adapting graph's."""
        adapted = (torch.zeros(batch_size, *shape) for shape in self.shapes.values())
        return (*(x.float() for x in self.model.initial_states(batch_size)), *adapted)

    def run(
        self,
        tokens: Ids,
        targets: Ids,
        states: States,
        lengths: npt.NDArray[np.int32] | None = None,
    ) -> tuple[Floats, Floats, States]:
        """`target_logprobs` [B, T], `logprobs` [B, T, V] and the states after."""
        if lengths is None:
            lengths = np.full(len(tokens), tokens.shape[1], np.int32)
        feeds: Feeds = {"tokens": tokens, "lengths": lengths, "targets": targets}
        features, own_after, adapted = self._read(feeds, states)
        outputs = ["target_logprobs", "logprobs", *(f"{x}_out" for x in self.shapes)]
        picked, logprobs, *after = self.adapt.run(outputs, feeds | features | adapted)
        return picked, logprobs, [*own_after, *after]

    def step(self, session: onnxruntime.InferenceSession, tokens: Ids, states: States) -> States:
        """`logprobs` [B, V] by the adapting step graph, and the states after."""
        column = tokens[:, None]
        lengths = np.ones(len(tokens), np.int32)
        feeds: Feeds = {"tokens": column, "lengths": lengths, "targets": column}
        features, own_after, adapted = self._read(feeds, states)
        rows = {name: feature[:, 0] for name, feature in features.items()}
        outputs = ["logprobs", *(f"{x}_out" for x in self.shapes)]
        logprobs, *after = session.run(outputs, {"tokens": tokens} | rows | adapted)
        return [logprobs, *own_after, *after]

    def _read(
        self, feeds: Feeds, states: States
    ) -> tuple[dict[str, Floats], States, dict[str, Floats]]:
        """The model's own outputs by name and states after; the adapting graph's states before."""
        names = self.model.state_names
        before = dict(zip(names, states[: len(names)], strict=True))
        wanted = [*self.features, *(f"{x}_out" for x in names)]
        found = self.own.run(wanted, {**feeds, **before})
        count = len(self.features)
        features = dict(zip(self.features, found[:count], strict=True))
        return features, found[count:], dict(zip(self.shapes, states[len(names) :], strict=True))


@dataclass(frozen=True, slots=True)
class Added:
    """What a bundle has more if its model adapts."""

    graphs: Graphs
    golden: Sequence[LanguageModelGoldenVector] = ()
    measurements: Sequence[LanguageModelMeasurement] = ()


def added(
    model: AnyLanguageModel, adaptation: Adaptation | None, graphs: Graphs, held_out: Split
) -> Added:
    """The adapting graphs beside a model's own `graphs`, after every check. Raises ExportError."""
    if adaptation is None:
        return Added({})
    found = adapting_graphs(model, adaptation)
    precisions = [x for x in PRECISIONS if (x, "sequence") in graphs]
    golden = adapting_golden(model, adaptation, held_out, precisions)
    whole = {**graphs, **found}
    return Added(found, golden, measured_adapting(model, adaptation, whole, held_out, golden))


def adapting_graphs(model: AnyLanguageModel, adaptation: Adaptation) -> Graphs:
    """Both adapting graphs; they serve every precision of the model's own graphs."""
    return {
        ("fp32", "adapt"): adapting_graph.build(model, adaptation, "adapt"),
        ("fp32", "adapt_step"): adapting_graph.build(model, adaptation, "adapt_step"),
    }


def adapt_record(
    model: AnyLanguageModel, adaptation: Adaptation, temperatures: Sequence[float]
) -> Adapt:
    """What the manifest says of it; `temperatures` are those that the networks' logits have."""
    shapes = adapting_graph.state_shapes(model, adaptation)
    projection = adaptation.projections[0]
    own = [t / s for t, s in zip(temperatures, adaptation.scales, strict=True)]
    return Adapt(
        states=[StateTensor(name=x, dtype="float32", shape=y) for x, y in shapes.items()],
        rank=None if projection is None else len(projection),
        rate=adaptation.rate,
        decay=adaptation.decay,
        weights=list(adaptation.weights),
        temperatures=[*own, *[None] * (len(adaptation.weights) - len(own))],
        exponent=adaptation.exponent,
    )


def adapting_golden(
    model: AnyLanguageModel,
    adaptation: Adaptation,
    held_out: Split,
    precisions: Sequence[Precision],
) -> list[LanguageModelGoldenVector]:
    """Known answers for each precision, by the formulas in double precision."""
    adapting = Adapting(model, adaptation)
    programs = exact_programs(adapting)
    return [
        _golden_vector(adapting, programs, tokens, precision)
        for precision in precisions
        for tokens in golden_texts(held_out, model.vocab_size)
    ]


def _golden_vector(
    adapting: Adapting, programs: Sequence[Adapting], tokens: list[int], precision: Precision
) -> LanguageModelGoldenVector:
    read = torch.tensor([tokens[:-1]])
    logprobs, tolerance = known_answer(
        adapting,
        programs,
        precision,
        tokens[1:],
        logits=lambda program: program(read, program.initial_states(1))[0],
        reference=lambda program: _reference(program, read),
    )
    return LanguageModelGoldenVector(
        precision=precision, adapt=True, tokens=tokens, logprobs=logprobs, tolerance=tolerance
    )


def _reference(program: Adapting, tokens: Tensor) -> Tensor:
    """log p [B, T, V] from the hidden outputs of the reference in eight bits."""
    exact = in_double(program)
    model = exact.model
    states = list(model.initial_states(len(tokens)))
    hidden = []
    with torch.no_grad():
        for network in model.networks:
            own, states = states[: len(network.state_names)], states[len(network.state_names) :]
            hidden.append(reference_hidden(network, tokens, own)[0])
        logits = [n.output(h) for n, h in zip(model.networks, hidden, strict=True)]
        probs = None
        if model.ngram is not None:
            probs = model.ngram.probabilities(tokens, states)[0]
        zeros = exact.initial_adapted(len(tokens))
        return exact.adapt(tokens, hidden, logits, probs, zeros)[0]


def measured_adapting(
    model: AnyLanguageModel,
    adaptation: Adaptation,
    graphs: Graphs,
    held_out: Split,
    golden: Sequence[LanguageModelGoldenVector],
) -> list[LanguageModelMeasurement]:
    """What the graphs measure while adapting, in each precision, after every check.

    Raises ExportError.
    """
    shapes = adapting_graph.state_shapes(model, adaptation)
    adapt, step = (open_session(graphs["fp32", role]) for role in ("adapt", "adapt_step"))
    found = []
    for precision in PRECISIONS:
        if (precision, "sequence") not in graphs:
            continue
        pair = OnnxAdapting(model, shapes, open_session(graphs[precision, "sequence"]), adapt)
        _check_company(pair, step, held_out)
        if precision == "fp32":
            _check_formulas(pair, Adapting(model, adaptation), held_out)
        known = [x for x in golden if x.adapt]
        try:
            check_golden(pair, pair, known, precision)
        except Unverifiable as why:
            raise ExportError(str(why)) from why
        found.append(measurement(precision, "adapting", onnx_score(pair, pair, held_out)))
    return found


def _text(held_out: Split) -> Ids:
    return np.resize(np.asarray(held_out.ids, np.int64), (_ROWS, sum(_PIECES) + 1))


def _check_formulas(pair: OnnxAdapting, adapting: Adapting, held_out: Split) -> None:
    """The pair of graphs must be PyTorch in double precision, but for rounding."""
    ids = _text(held_out)
    exact = in_double(adapting)
    with torch.no_grad():
        wanted, _ = exact(torch.from_numpy(ids[:, :-1]), exact.initial_states(len(ids)))
    picked, _, _ = pair.run(ids[:, :-1], ids[:, 1:], _zeros(pair, len(ids)))
    difference = float(np.abs(picked - of_targets(wanted.numpy(), ids[:, 1:])).mean())
    # Written so that NaN fails too.
    if not difference <= MAX_DIFFERENCE:
        raise ExportError(
            f"the adapting graphs and PyTorch in double precision differ by {difference:.2e} nats "
            f"per token; at most {MAX_DIFFERENCE} is allowed. {FAULT}"
        )


def _check_company(pair: OnnxAdapting, step: onnxruntime.InferenceSession, held_out: Split) -> None:
    """Rows must be the same, bit for bit, alone, in pieces and token by token."""
    ids = _text(held_out)
    tokens, targets = ids[:, :-1], ids[:, 1:]
    _, wanted, wanted_after = pair.run(tokens, targets, _zeros(pair, len(ids)))
    check_ragged(pair, tokens, targets, _zeros(pair, len(ids)))
    states, start = _zeros(pair, len(ids)), 0
    for size in _PIECES:
        now = slice(start, start + size)
        _, found, states = pair.run(tokens[:, now], targets[:, now], states)
        _check_same([found], [wanted[:, now]])
        check_ragged(pair, tokens[:, now], targets[:, now], states)
        start += size
    _check_same(states, wanted_after)
    states = _zeros(pair, len(ids))
    for t in range(tokens.shape[1]):
        logprobs, *states = pair.step(step, tokens[:, t], states)
        _check_same([logprobs], [wanted[:, t]])
    _check_same(states, wanted_after)


def _check_same(found: Sequence[Floats], wanted: Sequence[Floats]) -> None:
    if not all(map(np.array_equal, found, wanted)):
        raise ExportError(
            f"the adapting graphs' results depend on how a text is cut into calls. {FAULT}"
        )


def _zeros(pair: OnnxAdapting, rows: int) -> States:
    return [x.numpy() for x in pair.initial_states(rows)]
