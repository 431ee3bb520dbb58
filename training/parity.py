"""What holds a graph to PyTorch and to itself: parity, bitwise agreement, scores, known answers.

B batch, T time, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from service.bundle import BOS_ID, EOS_ID, PAD_ID, GoldenVector, Precision, Vocabulary
from training.bundle_parts import (
    MAX_DIFFERENCE,
    MAX_INT8_DIFFERENCE,
    ExportError,
    open_session,
)
from training.corpus import Split
from training.evaluation import Score
from training.language_model import LanguageModel
from training.quantization import reference_logprobs
from training.windows import SequentialWindows

# The graphs are built once; every one of these shapes must give the same numbers as PyTorch.
_PARITY_SHAPES = ((1, 1), (1, 7), (2, 1), (3, 64), (17, 5), (64, 33))
_INT8_SHAPE = (4, 128)
_STEP_BATCHES = (1, 2, 3, 4, 5, 8, 16, 33, 64)

States: TypeAlias = list[npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An exported sequence graph in onnxruntime, as the parity checks use it."""

    session: onnxruntime.InferenceSession
    state_names: Sequence[str]

    @classmethod
    def load(cls, graph: bytes, state_names: Sequence[str]) -> "OnnxModel":
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
        picked, logprobs, *after = self.session.run(None, feeds)
        return picked, logprobs, after


def check_parity(model: LanguageModel, onnx_model: OnnxModel, held_out: Split) -> float:
    """Largest difference in nats over several shapes, with carried state. Raises ExportError.

    Held-out text (its own tokens each; every other log-probability relative to its size) and
    random ids (the mean over each row's tokens), at several batch and length sizes, with states
    carried over two calls.
    """
    rng = np.random.default_rng(0)
    differences: list[float] = []
    for batch, time in _PARITY_SHAPES:
        text = np.resize(np.asarray(held_out.ids, np.int64), (batch, 2 * time + 1))
        random = rng.integers(0, model.vocab_size, text.shape)
        for ids in (text, random):
            torch_states = model.initial_states(batch)
            states: States = [state.numpy() for state in torch_states]
            for start in (0, time):
                tokens = ids[:, start : start + time]
                targets = ids[:, start + 1 : start + time + 1]
                with torch.no_grad():
                    logits, torch_states = model(torch.from_numpy(tokens), torch_states)
                expected = torch.log_softmax(logits, dim=-1).numpy()  # [B, T, V]
                picked, logprobs, after = onnx_model.run(tokens, targets, states)
                wanted = np.take_along_axis(expected, targets[..., None], 2)[..., 0]
                # A mean over each row's tokens: a random walk through an RNN meets single steps
                # that are so badly conditioned that single precision has no fourth digit there.
                differences.append(float(np.abs(picked - wanted).mean(axis=1).max()))
                if ids is text:
                    differences.append(float(np.abs(picked - wanted).max()))
                    # What the text does not say can have log-probabilities of -30 and less, where
                    # single precision itself has steps of 2e-6: those are held relatively.
                    scale = np.maximum(1.0, np.abs(expected))
                    differences.append(float((np.abs(logprobs - expected) / scale).max()))
                _check_ragged(onnx_model, tokens, targets, states)
                states = after
    # Written so that NaN fails too: Python's max would lose it.
    worst = float(np.max(differences))
    if not worst <= MAX_DIFFERENCE:
        raise ExportError(
            f"the exported graph and PyTorch differ by {worst:.2e} nats a token; "
            f"at most {MAX_DIFFERENCE} is allowed"
        )
    return worst


def check_int8(
    model: LanguageModel, onnx_model: OnnxModel, step_graph: bytes, held_out: Split
) -> float:
    """Mean difference in nats a token from the reference. Raises ExportError.

    The sequence graph must agree with the reference on held-out text but for roundings, each row
    must be bitwise what it is alone, and the step graph bitwise what the sequence graph is.
    """
    batch, time = _INT8_SHAPE
    text = np.resize(np.asarray(held_out.ids, np.int64), (batch, time + 1))
    tokens, targets = text[:, :-1], text[:, 1:]
    start = model.initial_states(batch)
    zeros: States = [state.numpy() for state in start]
    expected, _ = reference_logprobs(model, torch.from_numpy(tokens), start)
    picked, _, after = onnx_model.run(tokens, targets, zeros)
    wanted = np.take_along_axis(expected.numpy(), targets[..., None], 2)[..., 0]
    difference = float(np.abs(picked - wanted).mean())
    # Written so that NaN fails too.
    if not difference <= MAX_INT8_DIFFERENCE:
        raise ExportError(
            f"the int8 graph and its reference differ by {difference:.2e} nats a token; "
            f"at most {MAX_INT8_DIFFERENCE} is allowed"
        )
    _check_ragged(onnx_model, tokens, targets, after)
    step = open_session(step_graph)
    rng = np.random.default_rng(0)
    for rows in _STEP_BATCHES:
        ids = rng.integers(0, model.vocab_size, (rows, 2))
        states: States = [np.repeat(state[:1], rows, axis=0) for state in after]
        _, wanted_logprobs, wanted_states = onnx_model.run(ids, ids, states)
        for column in range(ids.shape[1]):
            feeds = {"tokens": ids[:, column], **dict(zip(model.state_names, states, strict=True))}
            logprobs, *states = step.run(None, feeds)
            if not np.array_equal(logprobs, wanted_logprobs[:, column]):
                raise ExportError(f"the step and the sequence graph differ at {rows} rows")
        if not all(map(np.array_equal, states, wanted_states)):
            raise ExportError(f"the states of step and sequence graph differ at {rows} rows")
    return difference


def onnx_score(onnx_model: OnnxModel, model: LanguageModel, split: Split) -> Score:
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
    model: LanguageModel, held_out: Split, vocab: Vocabulary, precisions: Sequence[Precision]
) -> list[GoldenVector]:
    """Known answers for each precision, computed by PyTorch in double precision.

    The beginning of the held-out text, the empty text, and every token of the vocabulary once.
    """
    ids = [int(i) for i in held_out.ids[:129]]
    vectors = [ids, [BOS_ID, EOS_ID], [BOS_ID, *range(EOS_ID + 1, len(vocab)), EOS_ID]]
    return [
        _golden_vector(model, tokens, precision) for precision in precisions for tokens in vectors
    ]


def _golden_vector(model: LanguageModel, tokens: list[int], precision: Precision) -> GoldenVector:
    read = torch.tensor([tokens[:-1]])
    if precision == "int8":
        logprobs, _ = reference_logprobs(model, read, model.initial_states(1))
    else:
        exact = LanguageModel(model.config, model.vocab_size).double().eval()
        exact.load_state_dict(model.state_dict())
        with torch.no_grad():
            logits, _ = exact(read, exact.initial_states(1))
        logprobs = torch.log_softmax(logits, dim=-1)  # [1, T, V]
    picked = logprobs[0, torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    return GoldenVector(
        precision=precision,
        tokens=tokens,
        logprobs=[round(x, 8) for x in picked.tolist()],
        tolerance=MAX_INT8_DIFFERENCE if precision == "int8" else MAX_DIFFERENCE,
    )


def _check_ragged(
    onnx_model: OnnxModel,
    tokens: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    states: States,
) -> None:
    """A row among shorter and longer ones gives, bit by bit, what it gives alone."""
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
