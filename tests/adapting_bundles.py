"""Small bundles that adapt: untrained models, with rates high enough to make a difference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from service.bundle.language_model import (
    Adapt,
    LanguageModelBundle,
    LanguageModelGoldenVector,
    LanguageModelManifest,
)
from service.bundle.manifest import Role, StateTensor
from service.bundle.text import Vocabulary
from tests.bundles import ALPHABET, HIDDEN, in_memory, tiny_files, tiny_model
from training.export.manifest_parts import describe_graph, file_name
from training.graphs import adapting as adapting_graph
from training.graphs import language_model as graph
from training.networks.adapting import Adaptation, Adapting


def adapting_files(
    cell: str, *, rank: int | None = None, decay: float = 0.0, **changes: Any
) -> tuple[LanguageModelManifest, dict[str, bytes]]:
    """`tiny-<cell>` that adapts, with its matrix D whole or projected to `rank`."""
    plain, files = tiny_files(cell)
    vocab = Vocabulary.of_characters(ALPHABET)
    model = tiny_model(cell, len(vocab))
    projection = None
    if rank is not None:
        rng = np.random.default_rng(0)
        projection = rng.normal(size=(rank, HIDDEN)).astype(np.float32)
    adaptation = Adaptation(
        rate=0.05,
        decay=decay,
        projections=[projection],
        scales=[1.0],
        weights=[1.0],
        exponent=1.0,
    )
    graphs = {
        (precision, role): graph.build(model, precision, role, adapting=True)
        for precision, roles in graph.ROLES.items()
        for role in roles
    }
    roles: tuple[Role, ...] = ("adapt", "adapt_step")
    for role in roles:
        graphs["fp32", role] = adapting_graph.build(model, adaptation, role)
    shapes = adapting_graph.state_shapes(model, adaptation)
    adapt = Adapt(
        states=[StateTensor(name=x, dtype="float32", shape=shape) for x, shape in shapes.items()],
        rank=rank,
        rate=adaptation.rate,
        decay=decay,
        weights=[],
        temperatures=[],
    )
    tokens = plain.golden[0].tokens
    exact = _exact(Adapting(model, adaptation), tokens)
    golden = [
        LanguageModelGoldenVector(
            precision=precision, adapt=True, tokens=tokens, logprobs=exact, tolerance=tolerance
        )
        for precision, tolerance in (("fp32", 1e-5), ("int8", 0.1))
    ]
    manifest = LanguageModelManifest.model_validate(
        plain.model_dump()
        | {
            "graphs": [describe_graph(*kind, data).model_dump() for kind, data in graphs.items()],
            "golden": [x.model_dump() for x in (*plain.golden, *golden)],
            "adapt": adapt.model_dump(),
        }
        | changes
    )
    files = {"vocab.json": files["vocab.json"]} | {
        file_name(*kind): data for kind, data in graphs.items()
    }
    return manifest, files


def _exact(model: Adapting, tokens: Sequence[int]) -> list[float]:
    """log p of every token after the first."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logprobs, _ = model(ids[:, :-1], model.initial_states(1))
    picked: list[float] = logprobs[0].gather(1, ids[0, 1:, None])[:, 0].tolist()
    return picked


def adapting_bundle(cell: str, **options: Any) -> LanguageModelBundle:
    """The bundle as a reader would give it."""
    return in_memory(*adapting_files(cell, **options))
