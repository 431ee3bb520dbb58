"""Translations by exported graphs, for their confidence.

N sources, S source positions, B rows, V target vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.store import MANIFEST_FILE, write_bundle
from training.data.pairs import PairSplit
from training.errors import ExportError
from training.evaluation.confidence import LEAST_SOURCES, Judge, measured_confidence
from training.export.encoder_decoder_parity import OnnxEncoderDecoder


@dataclass(frozen=True, slots=True)
class GraphSteps:
    """The steps of exported graphs, for the search of the evaluation."""

    graphs: OnnxEncoderDecoder

    def encode(self, sources: Tensor, lengths: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The first states and the memory of `sources` [N, S] of `lengths` [N]."""
        states, memory = self.graphs.encode(sources.numpy(), lengths.numpy())
        return [torch.from_numpy(x) for x in states], [torch.from_numpy(x) for x in memory]

    def step(
        self, tokens: Tensor, states: Sequence[Tensor], memory: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """log p [B, V] after `tokens` [B], and the states after."""
        found, after = self.graphs.step(
            tokens.numpy(), [x.numpy() for x in states], [x.numpy() for x in memory]
        )
        return torch.from_numpy(found), [torch.from_numpy(x) for x in after]


def write_confidence(
    models_dir: Path,
    bundle: EncoderDecoderBundle,
    fitted: PairSplit,
    tests: Sequence[PairSplit],
) -> Path:
    """Write a bundle again, with the confidence of its translations; all else stays as it is.

    Raises ExportError where there are too few pairs, and nothing is written.
    """
    manifest = bundle.manifest
    judge = Judge(
        steps=GraphSteps(OnnxEncoderDecoder.of_bundle(bundle)),
        precision=manifest.precision,
        source=bundle.source,
        target=bundle.target,
        limits=manifest.limits,
    )
    confidence = measured_confidence(judge, fitted, tests)
    if confidence is None:
        raise ExportError(
            f"{fitted.name}: a confidence is fitted on {LEAST_SOURCES} sources at least, and there "
            f"are {len(fitted.references)}"
        )
    folder = models_dir / manifest.name
    names = {path.name for path in folder.iterdir()} - {MANIFEST_FILE}
    files = {name: (folder / name).read_bytes() for name in names}
    return write_bundle(models_dir, manifest.model_copy(update={"confidence": confidence}), files)
