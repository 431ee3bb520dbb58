"""Checks of a labeler's graphs: parity with PyTorch, bitwise agreement, known answers.

N texts, S places (bos, the tokens and eos), L labels; T answers of a text: one, or one for each of
its own places; of several labels, one for each label.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional

from service.bundle.labeler import FORBIDDEN, LabelerGoldenVector, Labels
from service.bundle.manifest import Precision
from service.bundle.padding import padded_length
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from training.data.labelled import LabelledSplit
from training.data.labelled_batches import pad_texts
from training.errors import ExportError
from training.export.eight_bits import check_reference_difference
from training.export.golden import check_vectors, known_answer
from training.export.precision import (
    Agreement,
    Array,
    Exact,
    exact_programs,
    exact_values,
    of_targets,
)
from training.export.sessions import open_session
from training.graphs.labeler_reference import reference_logits
from training.networks.labeler import Labeler

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]

# Texts of each parity check, and of the others.
_PARITY_TEXTS = (1, 2, 5, 17, 33)
_COMPANY_TEXTS = 24
_INT8_TEXTS = 32
# Of a label that its character cannot have: differences there say nothing.
_IMPOSSIBLE = FORBIDDEN / 2
_GOLDEN_LABELS = 8  # of a text: the likeliest


@dataclass(frozen=True, slots=True)
class Tempered:
    """A labeler whose logits are divided by the temperature, and what its labels are."""

    network: Labeler
    labels: Labels

    @property
    def reads_forward(self) -> bool:
        """Whether there is an answer after each place."""
        return self.network.head.direction == "forward"

    def logprobs(self, logits: Tensor) -> Tensor:
        """log P of `logits` [.., L]; of impossible labels, one number."""
        if self.labels.several:
            return functional.logsigmoid(logits)
        return torch.log_softmax(logits, dim=-1).clamp(min=_IMPOSSIBLE)

    def exact(self, logits: Tensor, moved: Sequence[Tensor]) -> Exact:
        """From the logits [N, T, L] in double precision and those of the moved copies."""
        largest = logits.masked_fill(logits < _IMPOSSIBLE, 0.0).abs().amax(dim=-1)
        return exact_values(*(self.logprobs(x) for x in (logits, *moved)), largest=largest)

    def answers(self, found: Tensor) -> Tensor:
        """Logits or log-probabilities of all places or of texts, as [N, T, L] or [N, T, 1]."""
        if self.labels.several:
            return found.flatten(1).unsqueeze(2)
        return found if self.network.labels_places else found.unsqueeze(1)

    def counted(self, lengths: Ints, places: int) -> npt.NDArray[np.bool_]:
        """Which of a batch's answers mean something, [N, T]: of characters, those of no others."""
        if not self.network.labels_places:
            per_text = len(self.labels.names) if self.labels.several else 1
            return np.ones((len(lengths), per_text), np.bool_)
        place = np.arange(places)
        inside = place < lengths[:, None]
        if self.labels.scope == "character":
            inside = (place > 0) & (place < lengths[:, None] - 1)
        return np.repeat(inside, len(self.labels.names), axis=1) if self.labels.several else inside


@dataclass(frozen=True, slots=True)
class OnnxLabeler:
    """An exported graph in onnxruntime, as the checks use it."""

    graph: onnxruntime.InferenceSession
    model: Tempered

    @classmethod
    def load(cls, model: Tempered, graph: bytes) -> "OnnxLabeler":
        """On one thread, as the service runs it."""
        return cls(open_session(graph), model)

    def logprobs(self, tokens: Ints, lengths: Ints) -> Floats:
        """log P [N, L], or [N, S, L] of places, padded as the service pads texts."""
        padded = tokens
        if not self.model.reads_forward:
            padded = np.full((len(tokens), padded_length(int(lengths.max()))), PAD_ID, np.int64)
            padded[:, : tokens.shape[1]] = tokens
        states = self.model.network.initial_states(len(tokens))
        found = self.read_on(padded, lengths, [x.numpy() for x in states])[0]
        return found[:, : tokens.shape[1]] if self.model.network.labels_places else found

    def read(self, tokens: Ints, lengths: Ints) -> npt.NDArray[np.float64]:
        """The same, as evaluation reads texts."""
        return self.logprobs(tokens, lengths).astype(np.float64)

    def read_on(
        self, tokens: Ints, lengths: Ints, states: Sequence[Array]
    ) -> tuple[Floats, list[Array]]:
        """The graph's own answers, and the states after."""
        names = self.model.network.state_names
        feeds = {"tokens": tokens, "lengths": lengths.astype(np.int32)}
        feeds |= dict(zip(names, states, strict=True))
        found, *after = self.graph.run(["logprobs", *(f"{x}_out" for x in names)], feeds)
        return found, after


# --- parity ---------------------------------------------------------------------------------------


def agreement(
    model: Tempered, onnx_model: OnnxLabeler, held_out: LabelledSplit
) -> Iterator[Agreement]:
    """How far the graph and PyTorch agree with the exact values, after each further batch."""
    programs = (model.network, *exact_programs(model.network))
    so_far = Agreement()
    for count in _PARITY_TEXTS:
        tokens, lengths = _texts(model, held_out, count)
        inputs = torch.from_numpy(tokens), torch.from_numpy(lengths)
        with torch.no_grad():
            single, exact, *others = (model.answers(program(*inputs)) for program in programs)
        known = model.exact(exact, others)
        logprobs = model.answers(torch.from_numpy(onnx_model.logprobs(tokens, lengths)))
        so_far.add(
            known,
            logprobs.clamp(min=_IMPOSSIBLE).numpy(),
            model.logprobs(single).numpy(),
            known.values.argmax(axis=2),
            model.counted(lengths, tokens.shape[1]),
            is_text=True,
        )
        yield so_far


def check_parity(model: Tempered, onnx_model: OnnxLabeler, held_out: LabelledSplit) -> Agreement:
    """Hold the graph, and PyTorch in single precision, to PyTorch in double precision.

    Every log-probability must be within what `precision` allows there, those of the likeliest
    labels within MAX_DIFFERENCE on average, and every text bitwise what it is alone. Raises
    ExportError.
    """
    *_, whole = agreement(model, onnx_model, held_out)
    whole.check()
    check_company(model, onnx_model, held_out)
    return whole


def check_company(model: Tempered, onnx_model: OnnxLabeler, held_out: LabelledSplit) -> None:
    """Every text must have bitwise the numbers that it has alone. Raises ExportError.

    One that is read forward also in two parts.
    """
    tokens, lengths = _texts(model, held_out, _COMPANY_TEXTS)
    # Only texts of one padded length are read together.
    sizes = [0 if model.reads_forward else padded_length(int(length)) for length in lengths]
    for size in set(sizes):
        chosen = [i for i, own in enumerate(sizes) if own == size]
        longest = int(lengths[chosen].max())
        together = onnx_model.logprobs(tokens[chosen, :longest], lengths[chosen])
        for place, i in enumerate(chosen):
            own = slice(None, lengths[i])
            alone = _alone(model, onnx_model, tokens[i : i + 1, own])
            found = together[place, own] if model.network.labels_places else together[place]
            if not np.array_equal(found, alone):
                raise ExportError("the graph's results depend on what is read beside a text")


def _alone(model: Tempered, onnx_model: OnnxLabeler, tokens: Ints) -> Floats:
    """The answers for one text, [L] or [S, L]; in two parts if it is read forward."""
    if not model.reads_forward:
        found: Floats = onnx_model.logprobs(tokens, np.array([tokens.shape[1]]))[0]
        return found
    states: Sequence[Array] = [x.numpy() for x in model.network.initial_states(1)]
    parts = []
    for part in np.array_split(tokens, 2, axis=1):
        if part.shape[1]:
            found, states = onnx_model.read_on(part, np.array([part.shape[1]]), states)
            parts.append(found[0])
    return np.concatenate(parts)


def check_int8(model: Tempered, onnx_model: OnnxLabeler, held_out: LabelledSplit) -> float:
    """Mean difference in nats per label from the reference, of the labels that it finds likeliest.

    Raises ExportError, or Unverifiable if rounding alone makes as large a difference.
    """
    tokens, lengths = _texts(model, held_out, _INT8_TEXTS)
    inputs = torch.from_numpy(tokens), torch.from_numpy(lengths)
    counted = model.counted(lengths, tokens.shape[1])

    def logprobs(network: Labeler) -> Array:
        found: Array = model.logprobs(model.answers(reference_logits(network, *inputs))).numpy()
        return found

    likeliest = logprobs(model.network).argmax(axis=2)

    def picked(found: Array) -> Array:
        own: Array = of_targets(found, likeliest)[counted]
        return own

    found = model.answers(torch.from_numpy(onnx_model.logprobs(tokens, lengths))).numpy()
    difference = check_reference_difference(
        model.network, lambda moved: picked(logprobs(moved)), picked(found), "the int8 graph"
    )
    check_company(model, onnx_model, held_out)
    return difference


def _texts(model: Tempered, held_out: LabelledSplit, count: int) -> tuple[Ints, Ints]:
    """The first `count` texts, from the beginning again if there are fewer."""
    chosen = [held_out.tokens[i % len(held_out)] for i in range(count)]
    return pad_texts(chosen, forward=model.reads_forward)


# --- known answers --------------------------------------------------------------------------------


def golden_vectors(
    model: Tempered, held_out: LabelledSplit, precisions: Sequence[Precision]
) -> list[LabelerGoldenVector]:
    """Known answers for each precision, computed by PyTorch in double precision.

    They are two held-out texts, and up to 128 tokens once; of a text, its likeliest labels.
    """
    longest = sorted(range(min(256, len(held_out))), key=lambda i: -len(held_out.tokens[i]))
    texts = [held_out.tokens[i].tolist() for i in (longest[0], longest[len(longest) // 2])]
    texts.append(list(range(EOS_ID + 1, min(model.network.vocab_size, 128))))
    end = [] if model.reads_forward else [EOS_ID]
    tokens = [[BOS_ID, *text, *end] for text in texts if text]
    programs = exact_programs(model.network)
    return [
        _golden_vector(model, programs, x, precision) for precision in precisions for x in tokens
    ]


def _golden_vector(
    model: Tempered, programs: Sequence[Labeler], tokens: list[int], precision: Precision
) -> LabelerGoldenVector:
    inputs = torch.tensor([tokens]), torch.tensor([len(tokens)])
    with torch.no_grad():
        likeliest = _labelled(model, model.network(*inputs))[0]  # [T, L]
    labels = likeliest.argmax(dim=1).tolist()
    if model.labels.scope == "text":
        labels = likeliest[-1].argsort(descending=True)[:_GOLDEN_LABELS].tolist()

    def answers(logits: Tensor) -> Tensor:
        """[1, len(labels), L]: of a text, the same for each label."""
        return _labelled(model, logits).expand(-1, len(labels), -1)

    logprobs, tolerance = known_answer(
        model.network,
        programs,
        precision,
        labels,
        logits=lambda program: answers(program(*inputs)),
        reference=lambda program: model.logprobs(answers(reference_logits(program, *inputs))),
        exact=model.exact,
    )
    return LabelerGoldenVector(
        precision=precision, tokens=tokens, labels=labels, logprobs=logprobs, tolerance=tolerance
    )


def _labelled(model: Tempered, found: Tensor) -> Tensor:
    """Of one text, what the service labels: [1, n, L] its characters, or [1, 1, L] the text."""
    if model.labels.scope == "character":
        return found[:, 1:-1]
    return found[:, -1:] if found.dim() == 3 else found.unsqueeze(1)


def check_golden(
    model: Tempered,
    onnx_model: OnnxLabeler,
    golden: Sequence[LabelerGoldenVector],
    precision: Precision,
) -> None:
    """The known answers of a precision. Raises ExportError, or Unverifiable like `check_int8`."""

    def picked(vector: LabelerGoldenVector, found: Tensor) -> Array:
        answers = _labelled(model, found)[0].expand(len(vector.labels), -1)
        own: Array = answers[torch.arange(len(vector.labels)), vector.labels].numpy()
        return own

    def answer(vector: LabelerGoldenVector) -> Array:
        found = onnx_model.logprobs(np.array([vector.tokens]), np.array([len(vector.tokens)]))
        return picked(vector, torch.from_numpy(found))

    def check_reference(vector: LabelerGoldenVector, found: Array) -> None:
        inputs = torch.tensor([vector.tokens]), torch.tensor([len(vector.tokens)])
        check_reference_difference(
            model.network,
            lambda moved: picked(vector, model.logprobs(reference_logits(moved, *inputs))),
            found,
            "the int8 graph's known answers",
        )

    check_vectors(golden, precision, answer, check_reference)
