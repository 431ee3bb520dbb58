"""A model's card: what the server knows from the manifest, whether the model is open or not.

With `models_bytes`, a server knows thousands of models and has few of them open. Everything that
lists models, or chooses one, reads the cards.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from service.bundle.encoder_decoder import EncoderDecoderManifest
from service.bundle.labeler import LabelerManifest
from service.bundle.language_model import LanguageModelManifest
from service.bundle.manifest import Precision, VocabFile
from service.bundle.store import Manifest
from service.tasks.engine import (
    CLASSIFY,
    CLASSIFY_IN_PARTS,
    DECIDE,
    GENERATE,
    INFILL,
    PROPOSE,
    SCORE,
    SCORE_IN_PARTS,
    SCORE_LABELS,
    TAG,
    TRANSLATE,
    Ability,
    Engine,
)
from service.tasks.folders import Stamp
from service.tasks.label_model import reads_in_parts

# Memory of an open engine, measured on the bundles that ship (docs/scale.md): threads, sessions and
# the manifest; each graph; its weights, packed for the processor; the entries of a token.
ENGINE_BYTES = 4 * 2**20
GRAPH_BYTES = 2 * 2**20
WEIGHT_FACTOR = 1.5
TOKEN_BYTES = 512
_MOST_SHOWN = 20
_ALWAYS = ("adapt", "adapt_step")  # roles of graphs that are opened in any precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A model, as listed."""

    name: str
    task: str
    description: str
    created: str  # ISO 8601
    precision: Precision
    adapts: bool
    fills: bool
    parameters: int
    sources: tuple[str, ...]  # languages that it translates from
    target: str  # the language that it translates to; empty if it does not translate
    abilities: tuple[Ability[Any], ...]
    open_bytes: int  # an estimate of its memory when it is open

    @classmethod
    def of_manifest(cls, manifest: Manifest, precision: Precision) -> "Card":
        """The card of a model that would be served in this precision."""
        traits = _TRAITS[manifest.task](manifest)
        graphs = [x for x in manifest.graphs if x.precision == precision or x.role in _ALWAYS]
        tokens = sum(vocab.size for vocab in traits.vocabularies)
        return cls(
            name=manifest.name,
            task=manifest.task,
            description=manifest.description,
            created=manifest.created,
            precision=precision,
            adapts=traits.adapts,
            fills=manifest.fills,
            parameters=manifest.model.parameters,
            sources=tuple(traits.sources),
            target=traits.target,
            abilities=tuple(traits.abilities),
            open_bytes=ENGINE_BYTES
            + GRAPH_BYTES * len(graphs)
            + round(WEIGHT_FACTOR * sum(graph.size_bytes for graph in graphs))
            + TOKEN_BYTES * tokens,
        )

    @classmethod
    def of_engine(cls, engine: Engine) -> "Card":
        """The card of an open model."""
        card = cls.of_manifest(engine.manifest, engine.precision)
        return replace(card, adapts=engine.adapts, abilities=tuple(engine.abilities))


@dataclass(frozen=True, slots=True)
class _Traits:
    """What each kind of manifest has in a different place."""

    abilities: Sequence[Ability[Any]]
    vocabularies: Collection[VocabFile]
    adapts: bool = False
    sources: Sequence[str] = ()
    target: str = ""


def _of_language_model(manifest: LanguageModelManifest) -> _Traits:
    abilities = (GENERATE, SCORE, SCORE_IN_PARTS, INFILL, DECIDE)
    return _Traits(abilities, [manifest.vocab], manifest.adapt is not None)


def _of_encoder_decoder(manifest: EncoderDecoderManifest) -> _Traits:
    vocabularies = [manifest.source.vocab, manifest.target.vocab]
    if manifest.infill is not None:
        return _Traits((INFILL, PROPOSE), vocabularies)
    sources = [code.strip() for code in manifest.source.lang.split(",")]
    return _Traits((TRANSLATE, SCORE), vocabularies, sources=sources, target=manifest.target.lang)


def _of_labeler(manifest: LabelerManifest) -> _Traits:
    of_texts: list[Ability[Any]] = [CLASSIFY, SCORE_LABELS]
    if reads_in_parts(manifest):
        of_texts.append(CLASSIFY_IN_PARTS)
    given = {"text": of_texts, "character": [TAG]}
    return _Traits(given[manifest.labels.scope], [manifest.text.vocab])


_TRAITS: Mapping[str, Callable[[Any], _Traits]] = {
    "language_model": _of_language_model,
    "encoder_decoder": _of_encoder_decoder,
    "labeler": _of_labeler,
}


@dataclass(slots=True)
class Catalogue:
    """Every model that is served, open or not."""

    cards: dict[str, Card] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # bundles that cannot be served, and why
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of the folders when last handled
    # Versions that a trial process has opened, with the stamps of their folders.
    tried: dict[str, tuple[Stamp, str]] = field(default_factory=dict)

    @staticmethod
    def shown(names: Iterable[str]) -> str:
        """Names for an error message."""
        listed = sorted(names)
        more = len(listed) - _MOST_SHOWN
        rest = f" and {more} more, which /models lists" if more > 0 else ""
        return (", ".join(listed[:_MOST_SHOWN]) or "none") + rest
