"""What holds an encoder-decoder's graphs to PyTorch, to a reference and to themselves.

N sources, K rows of one source, S source positions, T target positions, V target vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor

from service.bundle.encoder_decoder import EncoderDecoderGoldenVector
from service.bundle.manifest import Precision
from service.bundle.padding import padded_length
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from training.data.pair_batches import IdArray, PairBatch, pair_batch
from training.data.pairs import PairSplit
from training.export.manifest_parts import MAX_INT8_DIFFERENCE, ExportError, open_session
from training.export.precision import (
    Agreement,
    Exact,
    check_golden_difference,
    check_int8_difference,
    exact_of,
    golden_tolerance,
    in_double,
    moved_copies,
)
from training.graphs.encoder_decoder_reference import reference_logprobs
from training.graphs.interface import memory_shapes, state_sizes
from training.networks.encoder_decoder import EncoderDecoder

# Pairs a shape of the parity check has, and rows of each source: none is a traced one.
_PARITY_SHAPES = ((1, 1), (2, 1), (5, 3), (17, 1), (33, 5))
_CHECKED_PAIRS = 512  # of the held-out split, for the losses of each precision

Floats: TypeAlias = list[npt.NDArray[np.float32]]
Inputs: TypeAlias = tuple[IdArray, IdArray, IdArray]  # sources, lengths, tokens


@dataclass(frozen=True, slots=True)
class OnnxEncoderDecoder:
    """Exported graphs in onnxruntime, as the parity checks use them."""

    encoder: onnxruntime.InferenceSession
    decoder: onnxruntime.InferenceSession
    state_names: Sequence[str]
    memory_names: Sequence[str]

    @classmethod
    def load(cls, model: EncoderDecoder, encoder: bytes, decoder: bytes) -> "OnnxEncoderDecoder":
        """One thread each, as the service runs them."""
        return cls(
            open_session(encoder),
            open_session(decoder),
            list(state_sizes(model)),
            list(memory_shapes(model)),
        )

    def logprobs(
        self, sources: IdArray, lengths: IdArray, tokens: IdArray, rows: int = 1
    ) -> npt.NDArray[np.float32]:
        """log p [N · rows, T, V] after each of `tokens` [N, T], every source `rows` times."""
        states, memory = self.encode(sources, lengths)
        states = [np.repeat(state, rows, axis=0) for state in states]
        outputs = ["logprobs", *(f"{name}_out" for name in self.state_names)]
        steps = []
        for t in range(tokens.shape[1]):
            feeds: dict[str, npt.NDArray[Any]] = {"tokens": np.repeat(tokens[:, t], rows)}
            feeds |= dict(zip(self.state_names, states, strict=True))
            feeds |= dict(zip(self.memory_names, memory, strict=True))
            found, *states = self.decoder.run(outputs, feeds)
            steps.append(found)
        return np.stack(steps, axis=1)

    def encode(self, sources: IdArray, lengths: IdArray) -> tuple[Floats, Floats]:
        """The decoder's first states and the memory, sources padded as the service pads them."""
        padded = np.full((len(sources), padded_length(int(lengths.max()))), PAD_ID, np.int64)
        shown = min(padded.shape[1], sources.shape[1])
        padded[:, :shown] = sources[:, :shown]
        names = [f"{name}_out" for name in self.state_names]
        feeds = {"tokens": padded, "lengths": lengths.astype(np.int32)}
        found = self.encoder.run([*names, *self.memory_names], feeds)
        return found[: len(names)], found[len(names) :]


@dataclass(frozen=True, slots=True)
class PairReading:
    """Pairs that a model reads, each source as often as `rows`, and what is right there."""

    batch: PairBatch
    rows: int
    exact: Exact
    single: npt.NDArray[np.float32]  # [N, T, V] PyTorch in single precision


def pair_readings(model: EncoderDecoder, held_out: PairSplit) -> Iterator[PairReading]:
    """Held-out pairs at several batch sizes."""
    double = in_double(model)
    moved = moved_copies(double)
    for count, rows in _PARITY_SHAPES:
        batch = pair_batch(held_out, [i % len(held_out) for i in range(count)])
        with torch.no_grad():
            single, exact, *others = (
                program(*_tensors(batch)) for program in (model, double, *moved)
            )
        yield PairReading(
            batch, rows, exact_of(exact, others), torch.log_softmax(single, dim=2).numpy()
        )


def pair_agreement(
    onnx_model: OnnxEncoderDecoder, found: Iterable[PairReading]
) -> Iterator[Agreement]:
    """How the graphs and PyTorch agree with what is right, after each further reading."""
    so_far = Agreement()
    for reading in found:
        batch, rows = reading.batch, reading.rows
        parts: Inputs = (batch.sources, batch.lengths, batch.tokens)
        logprobs = onnx_model.logprobs(*parts, rows=rows)[::rows]
        counted = batch.targets != PAD_ID
        so_far.add(reading.exact, logprobs, reading.single, batch.targets, counted, is_text=True)
        yield so_far


def check_pair_parity(
    model: EncoderDecoder, onnx_model: OnnxEncoderDecoder, held_out: PairSplit
) -> Agreement:
    """Hold the graphs, and PyTorch in single precision, to PyTorch in double precision.

    Every log-probability of every counted token within what `precision` allows there, the tokens
    themselves within MAX_DIFFERENCE on the mean, and every row bitwise what its source gives alone.
    Raises ExportError.
    """
    *_, whole = pair_agreement(onnx_model, pair_readings(model, held_out))
    whole.check()
    check_company(onnx_model, held_out)
    return whole


def _tensors(batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    sources, lengths, tokens = (
        torch.from_numpy(x) for x in (batch.sources, batch.lengths, batch.tokens)
    )
    return sources, lengths, tokens


def check_company(onnx_model: OnnxEncoderDecoder, held_out: PairSplit) -> None:
    """Every row is bitwise what a single row of its source gives alone. Raises ExportError."""
    rows = 3
    batch = pair_batch(held_out, [i % len(held_out) for i in range(16)])
    sizes = [padded_length(int(length)) for length in batch.lengths]
    for size in set(sizes):
        # Only sources of one padded length are read together.
        chosen = [i for i, own in enumerate(sizes) if own == size]
        parts: Inputs = (batch.sources[chosen], batch.lengths[chosen], batch.tokens[chosen])
        together = onnx_model.logprobs(*parts, rows=rows)
        for place in range(len(chosen)):
            only = slice(place, place + 1)
            alone = onnx_model.logprobs(parts[0][only], parts[1][only], parts[2][only])
            own = together[place * rows : (place + 1) * rows]
            if not np.array_equal(own, np.repeat(alone, rows, axis=0)):
                raise ExportError("the graphs' results depend on the rows beside a row")


def check_pair_int8(
    model: EncoderDecoder, onnx_model: OnnxEncoderDecoder, held_out: PairSplit
) -> float:
    """Mean difference in nats a token from the reference.

    Raises ExportError, and Unverifiable where roundings alone make as much of a difference.
    """
    batch = pair_batch(held_out, range(min(32, len(held_out))))
    counted = batch.targets != PAD_ID

    def picked(logprobs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        own = np.take_along_axis(logprobs, batch.targets[..., None], 2)[..., 0]
        found: npt.NDArray[Any] = own[counted]
        return found

    difference = check_int8_difference(
        model,
        lambda moved: picked(reference_logprobs(moved, *_tensors(batch)).numpy()),
        picked(onnx_model.logprobs(batch.sources, batch.lengths, batch.tokens)),
        "the int8 graphs",
    )
    check_company(onnx_model, held_out)
    return difference


def onnx_loss(onnx_model: OnnxEncoderDecoder, held_out: PairSplit) -> float:
    """Mean nats a target token over the first held-out pairs."""
    chosen = sorted(
        range(min(_CHECKED_PAIRS, len(held_out))),
        key=lambda i: padded_length(len(held_out.sources[i]) + 1),
    )
    nats, predicted = 0.0, 0
    for start in range(0, len(chosen), 64):
        batch = pair_batch(held_out, chosen[start : start + 64])
        found = onnx_model.logprobs(batch.sources, batch.lengths, batch.tokens)
        picked = np.take_along_axis(found, batch.targets[..., None], 2)[..., 0]
        nats -= float(picked[batch.targets != PAD_ID].sum(dtype=np.float64))
        predicted += batch.predicted
    return nats / predicted


def pair_golden_vectors(
    model: EncoderDecoder, held_out: PairSplit, precisions: Sequence[Precision]
) -> list[EncoderDecoderGoldenVector]:
    """Known answers for each precision, computed by PyTorch in double precision.

    Some held-out pairs, the empty source with the empty target, and every token of both sides once.
    """
    longest = sorted(range(min(256, len(held_out))), key=lambda i: -len(held_out.sources[i]))
    pairs = [
        ([*held_out.sources[i].tolist(), EOS_ID], [BOS_ID, *held_out.targets[i].tolist(), EOS_ID])
        for i in (longest[0], longest[len(longest) // 2])
    ]
    source_size = model.encoder.embedding.num_embeddings
    target_size = model.decoder.vocab_size
    pairs += [
        ([EOS_ID], [BOS_ID, EOS_ID]),
        (
            [*range(EOS_ID + 1, min(source_size, 128)), EOS_ID],
            [BOS_ID, *range(EOS_ID + 1, min(target_size, 128)), EOS_ID],
        ),
    ]
    return [_golden(model, *pair, precision) for precision in precisions for pair in pairs]


def _golden(
    model: EncoderDecoder, source: list[int], tokens: list[int], precision: Precision
) -> EncoderDecoderGoldenVector:
    inputs = (torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([tokens[:-1]]))
    tolerance = MAX_INT8_DIFFERENCE
    if precision == "int8":
        logprobs = reference_logprobs(model, *inputs)
    else:
        double = in_double(model)
        with torch.no_grad():
            logits = [program(*inputs) for program in (double, *moved_copies(double))]
        exact = exact_of(logits[0], logits[1:])
        logprobs = torch.from_numpy(exact.values)
        tolerance = golden_tolerance(exact)
    picked = logprobs[0, torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    return EncoderDecoderGoldenVector(
        precision=precision,
        source=source,
        tokens=tokens,
        logprobs=[round(x, 8) for x in picked.tolist()],
        tolerance=tolerance,
    )


def check_pair_golden(
    model: EncoderDecoder,
    onnx_model: OnnxEncoderDecoder,
    golden: Sequence[EncoderDecoderGoldenVector],
    precision: Precision,
) -> None:
    """The known answers, as the service checks them when it loads the bundle.

    Raises ExportError, or Unverifiable as `check_pair_int8`.
    """
    for vector in golden:
        if vector.precision != precision:
            continue
        source, lengths = np.array([vector.source]), np.array([len(vector.source)])
        tokens = np.array([vector.tokens[:-1]])
        own = (0, np.arange(tokens.shape[1]), vector.tokens[1:])
        picked = onnx_model.logprobs(source, lengths, tokens)[own]
        if precision == "fp32":
            difference = float(np.abs(picked - np.array(vector.logprobs)).mean())
            check_golden_difference(difference, vector.tolerance)
            continue
        inputs = tuple(torch.from_numpy(x) for x in (source, lengths, tokens))

        def reference(
            moved: EncoderDecoder,
            inputs: tuple[Tensor, ...] = inputs,
            own: tuple[Any, ...] = own,
        ) -> npt.NDArray[Any]:
            found: npt.NDArray[Any] = reference_logprobs(moved, *inputs).numpy()[own]
            return found

        check_int8_difference(model, reference, picked, "the int8 graphs' known answers")
