"""Checks of a language model's graphs: parity with PyTorch, bitwise agreement, known answers.

B batch, T time, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor

from service.bundle.language_model import LanguageModelGoldenVector
from service.bundle.manifest import Precision
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, Vocabulary
from training.data.corpus import Split
from training.data.windows import SequentialWindows
from training.errors import ExportError, Unverifiable
from training.evaluation.language_model import Score
from training.export.golden import check_vectors, known_answer, mean_difference
from training.export.precision import (
    FAULT,
    MAX_INT8_DIFFERENCE,
    Agreement,
    Array,
    Exact,
    exact_of,
    exact_programs,
    exact_state,
    of_targets,
)
from training.export.sessions import open_session
from training.graphs.language_model_reference import reference_logprobs, reference_steps
from training.networks.mixture import AnyLanguageModel

# A graph is built once; in every one of these shapes it must give PyTorch's numbers.
_PARITY_SHAPES = ((1, 1), (1, 7), (2, 1), (3, 64), (17, 5), (64, 17))
_TEXT_SHAPE = (4, 128)
_STEP_BATCHES = (1, 2, 3, 4, 5, 8, 16, 33, 64)

States: TypeAlias = list[npt.NDArray[np.float32]]
_Ids: TypeAlias = npt.NDArray[np.int64]


class Reader(Protocol):
    """Exported graphs that read tokens."""

    def run(
        self,
        tokens: _Ids,
        targets: _Ids,
        states: States,
        lengths: npt.NDArray[np.int32] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], States]:
        """`target_logprobs` [B, T], `logprobs` [B, T, V] and the states after."""


class Stateful(Protocol):
    """Anything with initial states."""

    def initial_states(self, batch_size: int) -> tuple[Tensor, ...]:
        """Zeros, batch on axis 0."""


@dataclass(frozen=True, slots=True)
class OnnxLanguageModel:
    """An exported sequence graph in onnxruntime, as the parity checks use it."""

    session: onnxruntime.InferenceSession
    state_names: Sequence[str]

    @classmethod
    def load(cls, graph: bytes, state_names: Sequence[str]) -> "OnnxLanguageModel":
        """One thread, as the service runs it."""
        return cls(open_session(graph), state_names)

    def run(
        self,
        tokens: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        states: States,
        lengths: npt.NDArray[np.int32] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], States]:
        """`target_logprobs` [B, T], `logprobs` [B, T, V] and the states after."""
        if lengths is None:
            lengths = np.full(len(tokens), tokens.shape[1], np.int32)
        feeds = {"tokens": tokens, "lengths": lengths, "targets": targets}
        feeds |= dict(zip(self.state_names, states, strict=True))
        states_out = [f"{name}_out" for name in self.state_names]
        picked, logprobs, *after = self.session.run(
            ["target_logprobs", "logprobs", *states_out], feeds
        )
        return picked, logprobs, after


@dataclass(frozen=True, slots=True)
class Reading:
    """Tokens that a model reads, and the exact values there."""

    tokens: npt.NDArray[np.int64]  # [B, T]
    targets: npt.NDArray[np.int64]  # [B, T]
    before: States | None  # None: as the previous reading left them
    is_text: bool
    exact: Exact
    single: npt.NDArray[np.float32]  # [B, T, V] PyTorch in single precision
    exact_states: list[Exact]
    single_states: States


def readings(model: AnyLanguageModel, held_out: Split) -> Iterator[Reading]:
    """Several batch sizes and lengths, each in two calls.

    Held-out text, and random ids from random states: a layer that has no effect in trained states
    must be right too.
    """
    programs = [model, *exact_programs(model)]
    rng = np.random.default_rng(0)
    for batch, time in _PARITY_SHAPES:
        text = np.resize(np.asarray(held_out.ids, np.int64), (batch, 2 * time + 1))
        random = rng.integers(0, model.vocab_size, text.shape)
        zeros: States = [x.numpy() for x in model.initial_states(batch)]
        anything: States = [x.numpy() for x in model.random_states(batch, rng)]
        for ids, before in ((text, zeros), (random, anything)):
            states = [
                [
                    torch.from_numpy(x).to(like.dtype)
                    for x, like in zip(before, program.initial_states(1), strict=True)
                ]
                for program in programs
            ]
            for start in (0, time):
                tokens = ids[:, start : start + time]
                logits: list[Tensor] = []
                for i, program in enumerate(programs):
                    with torch.no_grad():
                        found, after = program(torch.from_numpy(tokens), states[i])
                    logits.append(found)
                    states[i] = list(after)
                yield Reading(
                    tokens,
                    ids[:, start + 1 : start + time + 1],
                    None if start else before,
                    ids is text,
                    exact_of(logits[1], logits[2:]),
                    torch.log_softmax(logits[0], dim=-1).numpy(),
                    [
                        exact_state(own, moved, start + time)
                        for own, *moved in zip(*states[1:], strict=True)
                    ],
                    [x.numpy() for x in states[0]],
                )


def agreement(onnx_model: OnnxLanguageModel, found: Iterable[Reading]) -> Iterator[Agreement]:
    """How far the graph and PyTorch agree with the exact values, after each further reading.

    Raises ExportError if a row depends on the rows beside it, or if a value is NaN.
    """
    so_far = Agreement()
    states: States = []
    for reading in found:
        states = states if reading.before is None else reading.before
        tokens, targets = reading.tokens, reading.targets
        picked, logprobs, after = onnx_model.run(tokens, targets, states)
        counted = np.ones(tokens.shape, np.bool_)
        so_far.add(
            reading.exact, logprobs, reading.single, targets, counted, is_text=reading.is_text
        )
        for right, own, single in zip(
            reading.exact_states, after, reading.single_states, strict=True
        ):
            so_far.add_state(right, own, single)
        if not np.array_equal(picked, of_targets(logprobs, targets)):
            raise ExportError("the graph's target_logprobs are not those of its logprobs")
        check_ragged(onnx_model, tokens, targets, states)
        states = after
        yield so_far


def check_parity(
    model: AnyLanguageModel, onnx_model: OnnxLanguageModel, held_out: Split
) -> Agreement:
    """Hold the graph, and PyTorch in single precision, to PyTorch in double precision.

    Every log-probability must be within what `precision` allows at its token, and the held-out
    text's own tokens within MAX_DIFFERENCE on average. Raises ExportError.
    """
    *_, whole = agreement(onnx_model, readings(model, held_out))
    whole.check()
    return whole


def check_int8(
    model: AnyLanguageModel, onnx_model: OnnxLanguageModel, step_graph: bytes, held_out: Split
) -> float:
    """Mean difference in nats per token from the reference on held-out text. Raises ExportError.

    From each of the reference's own states, the sequence graph must make the same step but for
    rounding. Each row must be bitwise what it is alone, and the step graph bitwise what the
    sequence graph is. Raises Unverifiable if all that holds and the whole text still differs: the
    model amplifies single steps of its states, which rounding decides.
    """
    batch, time = _TEXT_SHAPE
    text = np.resize(np.asarray(held_out.ids, np.int64), (batch, time + 1))
    every = np.resize(np.arange(model.vocab_size), (batch, -(-model.vocab_size // batch) + 1))
    difference = max(_check_int8_steps(model, onnx_model, x) for x in (text, every))
    tokens, targets = text[:, :-1], text[:, 1:]
    zeros: States = [state.numpy() for state in model.initial_states(batch)]
    picked, _, after = onnx_model.run(tokens, targets, zeros)
    check_ragged(onnx_model, tokens, targets, after)
    check_steps(model, onnx_model, step_graph, held_out)
    on_text = float(np.abs(picked - _reference(model, tokens, targets)).mean())
    _check_int8_text(on_text, MAX_INT8_DIFFERENCE)
    return max(difference, on_text)


def check_steps(
    model: AnyLanguageModel, onnx_model: OnnxLanguageModel, step_graph: bytes, held_out: Split
) -> None:
    """The step graph must be bitwise the sequence graph, on text and at many batch sizes.

    Raises ExportError.
    """
    batch, time = _TEXT_SHAPE
    text = np.resize(np.asarray(held_out.ids, np.int64), (batch, time))
    zeros: States = [state.numpy() for state in model.initial_states(batch)]
    _, _, after = onnx_model.run(text, text, zeros)
    step = open_session(step_graph)
    rng = np.random.default_rng(0)
    for rows in _STEP_BATCHES:
        ids = rng.integers(0, model.vocab_size, (rows, 2))
        states = [np.repeat(state[:1], rows, axis=0) for state in after]
        _check_stepping(model, onnx_model, step, ids, states)
    _check_stepping(model, onnx_model, step, text, zeros)


def _check_int8_steps(model: AnyLanguageModel, onnx_model: OnnxLanguageModel, ids: _Ids) -> float:
    """Mean difference over steps that each begin in one of the reference's states."""
    tokens, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:])
    logprobs, steps = reference_steps(model, tokens, model.initial_states(len(ids)))
    before, after = (
        [torch.cat(x).numpy() for x in zip(*part, strict=True)] for part in (steps[:-1], steps[1:])
    )  # [T · B, H] each, step after step
    picked, _, found = onnx_model.run(
        tokens.T.reshape(-1, 1).numpy(),
        targets.T.reshape(-1, 1).numpy(),
        [x.astype(np.float32) for x in before],
    )
    wanted = logprobs.gather(2, targets[..., None])[..., 0].T.reshape(-1, 1).numpy()
    distances = [float(np.abs(picked - wanted).mean())]
    distances += [
        float((np.abs(own - right) / np.maximum(1.0, np.abs(right))).mean())
        for own, right in zip(found, after, strict=True)
    ]
    # Written so that NaN fails too: Python's max would lose it.
    if not float(np.max(distances)) <= MAX_INT8_DIFFERENCE:
        raise ExportError(
            f"the int8 graphs and their reference differ by {np.max(distances):.2e} nats per token "
            f"from the same states; at most {MAX_INT8_DIFFERENCE} is allowed. {FAULT}"
        )
    return distances[0]


def _check_stepping(
    model: AnyLanguageModel,
    onnx_model: OnnxLanguageModel,
    step: onnxruntime.InferenceSession,
    ids: _Ids,
    states: States,
) -> None:
    """The step graph must give, bit for bit, what the sequence graph gives for `ids` [B, T]."""
    rows = len(ids)
    outputs = ["logprobs", *(f"{name}_out" for name in model.state_names)]
    _, wanted_logprobs, wanted_states = onnx_model.run(ids, ids, states)
    for column in range(ids.shape[1]):
        feeds = {"tokens": ids[:, column], **dict(zip(model.state_names, states, strict=True))}
        logprobs, *states = step.run(outputs, feeds)
        if not np.array_equal(logprobs, wanted_logprobs[:, column]):
            raise ExportError(f"the step and the sequence graph differ at {rows} rows")
    if not all(map(np.array_equal, states, wanted_states)):
        raise ExportError(f"the states of step and sequence graph differ at {rows} rows")


def onnx_score(onnx_model: Reader, model: Stateful, split: Split) -> Score:
    """The split's score as the exported graph computes it, with carried state."""
    lanes = min(split.documents, 64)
    states: States = [state.numpy() for state in model.initial_states(lanes)]
    nats = 0.0
    for window in SequentialWindows(split, lanes, max(1, 2048 // lanes)):
        for state in states:
            state[window.reset] = 0.0
        counted = window.targets != PAD_ID
        lengths = np.maximum(counted.sum(axis=1), 1).astype(np.int32)
        picked, _, states = onnx_model.run(window.tokens, window.targets, states, lengths)
        nats -= float(picked[counted].sum(dtype=np.float64))
    return Score(nats, split.tokens, split.chars)


def golden_vectors(
    model: AnyLanguageModel, held_out: Split, vocab: Vocabulary, precisions: Sequence[Precision]
) -> list[LanguageModelGoldenVector]:
    """Known answers for each precision, computed by PyTorch in double precision.

    They are the beginning of the held-out text, the empty text, and every token once.
    """
    programs = exact_programs(model)
    return [
        _golden_vector(model, programs, tokens, precision)
        for precision in precisions
        for tokens in golden_texts(held_out, len(vocab))
    ]


def golden_texts(held_out: Split, vocab_size: int) -> list[list[int]]:
    """The texts of the known answers: ids from bos on."""
    ids = [int(i) for i in held_out.ids[:129]]
    return [ids, [BOS_ID, EOS_ID], [BOS_ID, *range(EOS_ID + 1, vocab_size), EOS_ID]]


def _golden_vector(
    model: AnyLanguageModel,
    programs: Sequence[AnyLanguageModel],
    tokens: list[int],
    precision: Precision,
) -> LanguageModelGoldenVector:
    read = torch.tensor([tokens[:-1]])
    logprobs, tolerance = known_answer(
        model,
        programs,
        precision,
        tokens[1:],
        logits=lambda program: program(read, program.initial_states(1))[0],
        reference=lambda program: reference_logprobs(program, read, program.initial_states(1))[0],
    )
    return LanguageModelGoldenVector(
        precision=precision, tokens=tokens, logprobs=logprobs, tolerance=tolerance
    )


def check_golden(
    model: Stateful,
    onnx_model: Reader,
    golden: Sequence[LanguageModelGoldenVector],
    precision: Precision,
) -> None:
    """The known answers of a precision. Raises ExportError, or Unverifiable like `check_int8`."""

    def answer(vector: LanguageModelGoldenVector) -> Array:
        ids = np.array([vector.tokens], np.int64)
        zeros: States = [x.numpy() for x in model.initial_states(1)]
        picked: Array = onnx_model.run(ids[:, :-1], ids[:, 1:], zeros)[0]
        found: Array = picked[0]
        return found

    def check_text(vector: LanguageModelGoldenVector, found: Array) -> None:
        _check_int8_text(mean_difference(vector, found), vector.tolerance)

    check_vectors(golden, precision, answer, check_text)


def _check_int8_text(difference: float, allowed: float) -> None:
    """Raise Unverifiable if a whole text differs too much although each step is right."""
    # Written so that NaN fails too.
    if not difference <= allowed:
        raise Unverifiable(
            f"a text differs from the reference by {difference:.2e} nats per token, and at most "
            f"{allowed} is allowed: rounding decides single steps of its states, and the model "
            "amplifies them, so every machine would get different numbers"
        )


def _reference(model: AnyLanguageModel, tokens: _Ids, targets: _Ids) -> Array:
    """log p of `targets` [B, T] after each of `tokens` [B, T] by the reference in eight bits."""
    start = model.initial_states(len(tokens))
    logprobs, _ = reference_logprobs(model, torch.from_numpy(tokens), start)
    return of_targets(logprobs.numpy(), targets)


def check_ragged(
    onnx_model: Reader,
    tokens: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    states: States,
) -> None:
    """A row among shorter and longer ones must give, bit for bit, what it gives alone."""
    lengths = 1 + np.arange(len(tokens), dtype=np.int32) % tokens.shape[1]
    _, ragged, after = onnx_model.run(tokens, targets, states, lengths)
    for row, length in enumerate(lengths):
        only = slice(row, row + 1)
        _, alone, after_alone = onnx_model.run(
            tokens[only, :length], targets[only, :length], [state[only] for state in states]
        )
        same_states = all(map(np.array_equal, [state[only] for state in after], after_alone))
        if not (same_states and np.array_equal(ragged[only, :length], alone)):
            raise ExportError("the graph's results depend on the rows beside a row")
