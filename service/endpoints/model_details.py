"""What `/models/{name}` shows of a model: of each kind the public part of its manifest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import Field

from service.bundle.confidence import Confidence
from service.bundle.encoder_decoder import (
    EncoderDecoderDataSource,
    EncoderDecoderLimits,
    EncoderDecoderManifest,
    EncoderDecoderMetrics,
    EncoderDecoderShape,
    Example,
)
from service.bundle.guesses import GuessCurve
from service.bundle.labeler import (
    LabelerDataSource,
    LabelerLimits,
    LabelerManifest,
    LabelerMetrics,
    LabelerShape,
    LabelledExample,
    Labels,
)
from service.bundle.language_model import (
    Adapt,
    Fit,
    LanguageModelDataSource,
    LanguageModelLimits,
    LanguageModelManifest,
    LanguageModelMetrics,
    LanguageModelShape,
    MixturePart,
)
from service.bundle.manifest import TrainingRecord
from service.bundle.percentiles import Percentiles
from service.bundle.text import EOS_ID, UNK_ID, Normalization, SideNormalization
from service.bundle.tokenization import Tokenization
from service.endpoints.models_wire import ModelSummary
from service.http.wire import Answer
from service.tasks.engine import CLASSIFY_IN_PARTS, Engine


class HeldOutTexts(Answer):
    """Held-out texts of similar lengths, whose bits per character the bundle has."""

    least_chars: int = Field(description="Characters of the shortest.")
    most_chars: int = Field(description="Characters of the longest.")
    texts: int = Field(description="How many there are.")

    @classmethod
    def of(cls, table: Percentiles | None) -> "list[HeldOutTexts] | None":
        """From the bundle's table."""
        return None if table is None else [cls.taken_from(x) for x in table.lengths]


class ModelDetail(ModelSummary):
    """Answer of `/models/{name}`: the manifest's public part."""

    license: str = Field(description="Terms of the weights.")
    created: str = Field(description="When it was exported.")
    precisions: list[str] = Field(description="Graphs in the bundle.")
    model: LanguageModelShape = Field(description="What the model is; the first part of a mixture.")
    parts: list[MixturePart] = Field(
        description="The models that are mixed, with weights and temperatures; empty in old "
        "bundles."
    )
    exponent: float = Field(
        description="The power that a mixture's probabilities are raised to; they are normalized "
        "again."
    )
    fit: Fit | None = Field(description="What weights, temperatures and rates were fitted on.")
    adapt: Adapt | None = Field(description="How it adapts; null where it cannot.")
    vocab_size: int = Field(description="Tokens, the four special ones included.")
    normalization: Normalization = Field(description="What is done to every text first.")
    limits: LanguageModelLimits = Field(description="What the bundle allows.")
    data: LanguageModelDataSource = Field(description="What it was trained on.")
    metrics: LanguageModelMetrics = Field(description="What it is worth, beside the baselines.")
    percentiles: list[HeldOutTexts] | None = Field(
        description="The held-out texts behind the percentiles of `/score`, by length; null if "
        "there are none."
    )
    guesses: GuessCurve | None = Field(
        description="The curve of guess numbers; null if the model has none."
    )
    training: TrainingRecord = Field(description="How it was trained.")
    examples: list[str] = Field(
        description="Held-out text, unpicked: whole ones where they are short, else how one begins."
    )

    @classmethod
    def of_manifest(cls, manifest: LanguageModelManifest, engine: Engine) -> "ModelDetail":
        """From an engine and its manifest."""
        return cls.taken_from(
            manifest,
            precision=engine.precision,
            precisions=sorted({graph.precision for graph in manifest.graphs}),
            adapts=engine.adapts,
            vocab_size=manifest.vocab.size,
            percentiles=HeldOutTexts.of(manifest.percentiles),
            examples=_examples(manifest, engine.vocabularies[None].tokens),
        )


def _examples(manifest: LanguageModelManifest, tokens: Sequence[str]) -> list[str]:
    """The held-out texts that the first golden vector holds, but one that it cuts off.

    Of a single long text that is all there is.
    """
    texts = [""]
    for token in manifest.golden[0].tokens:
        if token == EOS_ID:
            texts.append("")
        elif token > UNK_ID:
            texts[-1] += tokens[token]
    return texts[:-1] or texts


class EncoderDecoderDetail(ModelSummary):
    """Answer of `/models/{name}` for an encoder-decoder: the manifest's public part."""

    license: str = Field(description="Terms of the weights.")
    created: str = Field(description="When it was exported.")
    precisions: list[str] = Field(description="Decoders in the bundle.")
    source_lang: str = Field(description="Language of the sources.")
    target_lang: str = Field(description="Language of the targets.")
    model: EncoderDecoderShape = Field(description="What the model is.")
    limits: EncoderDecoderLimits = Field(description="What the bundle allows.")
    data: EncoderDecoderDataSource = Field(description="What it was trained on.")
    metrics: list[EncoderDecoderMetrics] = Field(
        description="What it is worth, beside the baselines."
    )
    confidence: Confidence | None = Field(
        description="How `confidence` is computed, and how good it is; null if there is none."
    )
    examples: list[Example] = Field(description="Held-out sources, unpicked.")
    training: TrainingRecord = Field(description="How it was trained.")

    @classmethod
    def of_manifest(
        cls, manifest: EncoderDecoderManifest, engine: Engine
    ) -> "EncoderDecoderDetail":
        """From an engine and its manifest."""
        return cls.taken_from(
            manifest,
            precision=engine.precision,
            precisions=sorted({x.precision for x in manifest.graphs if x.role == "decoder"}),
            adapts=engine.adapts,
            source_lang=manifest.source.lang,
            target_lang=manifest.target.lang,
        )


class LabelerDetail(ModelSummary):
    """Answer of `/models/{name}` for a labeler: the manifest's public part."""

    license: str = Field(description="Terms of the weights.")
    created: str = Field(description="When it was exported.")
    precisions: list[str] = Field(description="Graphs in the bundle.")
    labels: Labels = Field(description="The labels it gives, and to what.")
    has_chain: bool = Field(
        description="Whether the labels of neighbouring characters depend on each other (a "
        "linear-chain CRF)."
    )
    reads_in_parts: bool = Field(
        description="Whether `/classify` takes `state` and `return_state`, to continue a text."
    )
    model: LabelerShape = Field(description="What the model is.")
    tokenization: Tokenization = Field(description="What the model reads: characters or subwords.")
    vocab_size: int = Field(description="Tokens, the four special ones included.")
    normalization: SideNormalization = Field(description="What is done to every text first.")
    temperature: float = Field(
        description="What the logits are divided by, fitted on the validation split."
    )
    limits: LabelerLimits = Field(description="What the bundle allows.")
    data: LabelerDataSource = Field(description="What it was trained on.")
    metrics: list[LabelerMetrics] = Field(description="What it is worth, beside the baselines.")
    examples: list[LabelledExample] = Field(description="Held-out texts, unpicked.")
    training: TrainingRecord = Field(description="How it was trained.")

    @classmethod
    def of_manifest(cls, manifest: LabelerManifest, engine: Engine) -> "LabelerDetail":
        """From an engine and its manifest."""
        return cls.taken_from(
            manifest,
            precision=engine.precision,
            precisions=sorted({graph.precision for graph in manifest.graphs}),
            adapts=engine.adapts,
            has_chain=manifest.chain is not None,
            reads_in_parts=CLASSIFY_IN_PARTS.of(engine) is not None,
            tokenization=manifest.text.tokenization,
            vocab_size=manifest.text.vocab.size,
            normalization=manifest.text.normalization,
        )


Detail: TypeAlias = ModelDetail | EncoderDecoderDetail | LabelerDetail

# Of a model of each kind, by the manifest's `task`.
DETAILS: Mapping[str, Callable[[Any, Engine], Detail]] = {
    "language_model": ModelDetail.of_manifest,
    "encoder_decoder": EncoderDecoderDetail.of_manifest,
    "labeler": LabelerDetail.of_manifest,
}
