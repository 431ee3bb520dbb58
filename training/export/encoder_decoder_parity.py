"""Checks of an encoder-decoder's graphs: parity with PyTorch, bitwise agreement, known answers.

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

from service.bundle.encoder_decoder import EncoderDecoderBundle, EncoderDecoderGoldenVector
from service.bundle.manifest import Precision
from service.bundle.padding import padded_length
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from training.data.pair_batches import PairBatch, pair_batch
from training.data.pairs import PairSplit
from training.data.shuffled import IdArray
from training.errors import ExportError
from training.export.eight_bits import check_reference_difference
from training.export.golden import check_vectors, known_answer
from training.export.precision import (
    Agreement,
    Array,
    Exact,
    exact_of,
    exact_programs,
    of_targets,
)
from training.export.sessions import open_session
from training.graphs.encoder_decoder_reference import reference_logprobs
from training.graphs.interface import memory_shapes, state_sizes
from training.networks.encoder_decoder import EncoderDecoder

# For each parity check: the number of pairs, and of rows for each source.
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
    def of_bundle(cls, bundle: EncoderDecoderBundle) -> "OnnxEncoderDecoder":
        """The graphs that a bundle serves by default."""
        manifest = bundle.manifest
        files = {x.role: x.file for x in manifest.graphs if x.precision == manifest.precision}
        return cls(
            open_session(bundle.graphs[files["encoder"]]),
            open_session(bundle.graphs[files["decoder"]]),
            [x.name for x in manifest.states],
            [x.name for x in manifest.memory],
        )

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
        steps = []
        for t in range(tokens.shape[1]):
            found, states = self.step(np.repeat(tokens[:, t], rows), states, memory)
            steps.append(found)
        return np.stack(steps, axis=1)

    def step(
        self, tokens: IdArray, states: Floats, memory: Floats
    ) -> tuple[npt.NDArray[np.float32], Floats]:
        """log p [B, V] after `tokens` [B], and the states after; B / N rows for each source."""
        outputs = ["logprobs", *(f"{name}_out" for name in self.state_names)]
        feeds: dict[str, npt.NDArray[Any]] = {"tokens": tokens}
        feeds |= dict(zip(self.state_names, states, strict=True))
        feeds |= dict(zip(self.memory_names, memory, strict=True))
        found, *after = self.decoder.run(outputs, feeds)
        return found, after

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
class Reading:
    """Pairs that a model reads, each source `rows` times, and the exact values there."""

    batch: PairBatch
    rows: int
    exact: Exact
    single: npt.NDArray[np.float32]  # [N, T, V] PyTorch in single precision


def readings(model: EncoderDecoder, held_out: PairSplit) -> Iterator[Reading]:
    """Held-out pairs at several batch sizes."""
    programs = (model, *exact_programs(model))
    for count, rows in _PARITY_SHAPES:
        batch = pair_batch(held_out, [i % len(held_out) for i in range(count)])
        with torch.no_grad():
            single, exact, *others = (program(*_tensors(batch)) for program in programs)
        yield Reading(
            batch, rows, exact_of(exact, others), torch.log_softmax(single, dim=2).numpy()
        )


def agreement(onnx_model: OnnxEncoderDecoder, found: Iterable[Reading]) -> Iterator[Agreement]:
    """How far the graphs and PyTorch agree with the exact values, after each further reading."""
    so_far = Agreement()
    for reading in found:
        batch, rows = reading.batch, reading.rows
        parts: Inputs = (batch.sources, batch.lengths, batch.tokens)
        logprobs = onnx_model.logprobs(*parts, rows=rows)[::rows]
        counted = batch.targets != PAD_ID
        so_far.add(reading.exact, logprobs, reading.single, batch.targets, counted, is_text=True)
        yield so_far


def check_parity(
    model: EncoderDecoder, onnx_model: OnnxEncoderDecoder, held_out: PairSplit
) -> Agreement:
    """Hold the graphs, and PyTorch in single precision, to PyTorch in double precision.

    Every log-probability must be within what `precision` allows at its token, the targets' own
    tokens within MAX_DIFFERENCE on average, and every row bitwise what its source gives alone.
    Raises ExportError.
    """
    *_, whole = agreement(onnx_model, readings(model, held_out))
    whole.check()
    check_company(onnx_model, held_out)
    return whole


def _tensors(batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    sources, lengths, tokens = (
        torch.from_numpy(x) for x in (batch.sources, batch.lengths, batch.tokens)
    )
    return sources, lengths, tokens


def check_company(onnx_model: OnnxEncoderDecoder, held_out: PairSplit) -> None:
    """Every row must be bitwise what its source gives in one row alone. Raises ExportError."""
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


def check_int8(model: EncoderDecoder, onnx_model: OnnxEncoderDecoder, held_out: PairSplit) -> float:
    """Mean difference in nats per token from the reference.

    Raises ExportError, or Unverifiable if rounding alone makes as large a difference.
    """
    batch = pair_batch(held_out, range(min(32, len(held_out))))
    counted = batch.targets != PAD_ID

    def picked(logprobs: Array) -> Array:
        found: Array = of_targets(logprobs, batch.targets)[counted]
        return found

    difference = check_reference_difference(
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
        picked = of_targets(found, batch.targets)
        nats -= float(picked[batch.targets != PAD_ID].sum(dtype=np.float64))
        predicted += batch.predicted
    return nats / predicted


def golden_vectors(
    model: EncoderDecoder, held_out: PairSplit, precisions: Sequence[Precision]
) -> list[EncoderDecoderGoldenVector]:
    """Known answers for each precision, computed by PyTorch in double precision.

    They are two held-out pairs, an empty pair, and up to 128 tokens of each side once.
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
    programs = exact_programs(model)
    return [
        _golden_vector(model, programs, *pair, precision)
        for precision in precisions
        for pair in pairs
    ]


def _golden_vector(
    model: EncoderDecoder,
    programs: Sequence[EncoderDecoder],
    source: list[int],
    tokens: list[int],
    precision: Precision,
) -> EncoderDecoderGoldenVector:
    inputs = (torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([tokens[:-1]]))
    logprobs, tolerance = known_answer(
        model,
        programs,
        precision,
        tokens[1:],
        logits=lambda program: program(*inputs),
        reference=lambda program: reference_logprobs(program, *inputs),
    )
    return EncoderDecoderGoldenVector(
        precision=precision, source=source, tokens=tokens, logprobs=logprobs, tolerance=tolerance
    )


def check_golden(
    model: EncoderDecoder,
    onnx_model: OnnxEncoderDecoder,
    golden: Sequence[EncoderDecoderGoldenVector],
    precision: Precision,
) -> None:
    """The known answers of a precision. Raises ExportError, or Unverifiable like `check_int8`."""

    def inputs(vector: EncoderDecoderGoldenVector) -> Inputs:
        lengths = np.array([len(vector.source)])
        return np.array([vector.source]), lengths, np.array([vector.tokens[:-1]])

    def own(vector: EncoderDecoderGoldenVector, logprobs: Array) -> Array:
        found: Array = of_targets(logprobs, np.array([vector.tokens[1:]]))[0]
        return found

    def check_reference(vector: EncoderDecoderGoldenVector, found: Array) -> None:
        read = [torch.from_numpy(x) for x in inputs(vector)]
        check_reference_difference(
            model,
            lambda moved: own(vector, reference_logprobs(moved, *read).numpy()),
            found,
            "the int8 graphs' known answers",
        )

    check_vectors(
        golden,
        precision,
        lambda vector: own(vector, onnx_model.logprobs(*inputs(vector))),
        check_reference,
    )
