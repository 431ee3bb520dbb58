"""The tasks of a labeler on text: labels of texts, or of their characters. No HTTP in here.

Texts become ids, ids become rows, the scheduler runs them, and their log-probabilities become
labels and tags.
"""

from collections.abc import Sequence

from service.bundle.arrays import Ids
from service.bundle.labeler import LabelerBundle
from service.bundle.manifest import Precision
from service.bundle.text import Normalization
from service.decoding.normal_form import normal_form
from service.observe.metrics import Metrics
from service.runtime.labeler import LabelerSession
from service.runtime.threads import off_loop
from service.scheduling.labeler import LabelerRunner, LabelWork
from service.scheduling.workers import Workers
from service.settings import Settings
from service.tasks.carried_labels import CarriedLabels
from service.tasks.classification import Classification, check_classify, likeliest_labels
from service.tasks.engine import CLASSIFY, CLASSIFY_IN_PARTS, SCORE_LABELS, TAG, Abilities
from service.tasks.label_model import LabelModel
from service.tasks.label_scoring import LabelScoring
from service.tasks.label_values import (
    Classified,
    ClassifyOptions,
    LabelProbability,
    Tagged,
    TagOptions,
)
from service.tasks.tag_spans import TagScheme
from service.tasks.tagging import TagRequest, check_tag
from service.tasks.values import Scored, ScoreOptions
from service.tasks.vocabularies import ClientVocabulary, Vocabularies

# Texts that a worker holds: enough for full runs of every length. A waiting text takes little more
# memory than its tokens.
_MAX_TEXTS = 1024
# A run of few texts takes hardly longer than a run of one.
_PACKED_TEXTS = 64


class LabelerEngine:
    """One labeler: its bundle, its workers and the tasks on text."""

    adapts = False

    def __init__(
        self,
        bundle: LabelerBundle,
        session: LabelerSession,
        settings: Settings,
        *,
        precision: Precision,
        threads: int = 1,
        metrics: Metrics | None = None,
    ) -> None:
        self.holds = 0
        self.manifest = bundle.manifest
        self.precision = precision
        self._model = LabelModel.of(bundle, precision, settings)
        self._scheme = TagScheme.of(bundle.manifest.labels)
        self.vocabularies: Vocabularies = {None: _client_vocabulary(bundle, self._model)}
        of_texts = [CLASSIFY.given_by(self), SCORE_LABELS.given_by(self)]
        if self.reads_in_parts:
            of_texts.append(CLASSIFY_IN_PARTS.given_by(self))
        given = {"text": of_texts, "character": [TAG.given_by(self)]}
        self.abilities: Abilities = dict(given[bundle.manifest.labels.scope])
        self.workers: Workers[LabelWork] = Workers(
            lambda name: LabelerRunner(session, name=name),
            bundle.manifest.name,
            settings,
            threads=threads,
            max_rows=_MAX_TEXTS,
            metrics=metrics,
            packed_rows=_PACKED_TEXTS,
        )

    def start(self) -> None:
        """Start the workers; call it in the event loop that requests run in."""
        self.workers.start()

    async def stop(self, timeout_s: float | None = None) -> None:
        """End the workers; one that hangs in a step is left after so long."""
        await self.workers.stop(timeout_s)

    @property
    def label_names(self) -> Sequence[str]:
        """Every label that a text can have; the index is the id."""
        return self._model.label_names

    @property
    def reads_in_parts(self) -> bool:
        """Whether a text can continue from a state."""
        return self._model.seal is not None

    @property
    def restores(self) -> bool:
        """Whether labels are the characters of a restored text."""
        return self.manifest.labels.applied

    @property
    def normalization(self) -> Normalization:
        """How every text is normalized first."""
        return self.manifest.text.normalization

    # --- labels of texts ------------------------------------------------------------------------

    def check_classify(self, options: ClassifyOptions) -> None:
        """Raise InvalidRequest for options that no text could be classified with."""
        check_classify(self._model, options)

    async def classify(self, texts: Sequence[str], options: ClassifyOptions) -> list[Classified]:
        """The labels of every text, likeliest first.

        Raises InvalidRequest, QueueFull, EngineStopped, ModelFailure and DeadlineExceeded.
        """
        self.workers.refuse_if_full()
        classification = Classification(self._model, texts, options)
        await off_loop(classification.size, classification.read)
        await self._run(classification.works, classification.prompt_tokens)
        return await self.workers.built(classification.answer_size, classification.results)

    async def score_labels(
        self, texts: Sequence[str], labels: Sequence[str], options: ScoreOptions
    ) -> list[Scored]:
        """log P(label | text) of every text with its label: the numbers of `classify`.

        Raises what `classify` raises.
        """
        self.workers.refuse_if_full()
        scoring = LabelScoring(self._model, texts, labels, options)
        classification = scoring.classification
        await off_loop(classification.size, classification.read)
        await self._run(classification.works, classification.prompt_tokens)
        return scoring.results()

    def ids_of(self, text: str) -> Ids:
        """The ids of a part's normalized characters."""
        return self._model.reader.tokenizer.encode(normal_form(text, self.normalization))

    async def carry_on(
        self, carried: CarriedLabels, ids: Ids, options: ClassifyOptions
    ) -> CarriedLabels:
        """The labels of a text in parts, including the next part.

        Raises what `classify` raises.
        """
        carried, work = carried.with_part(ids, options.unknown)
        if work is None:
            return carried
        await self._run([work], len(ids))
        return carried.after(work)

    def labels_of(self, carried: CarriedLabels, options: ClassifyOptions) -> list[LabelProbability]:
        """The labels of a text in parts so far, likeliest first."""
        if carried.logprobs is None:
            raise RuntimeError("nothing has been read")
        (labels,) = likeliest_labels(self.label_names, carried.logprobs[None], options)
        return labels

    # --- labels of characters -------------------------------------------------------------------

    def check_tag(self, options: TagOptions) -> None:
        """Raise InvalidRequest for options that no text could be tagged with."""
        check_tag(self._model, options)

    async def tag(self, texts: Sequence[str], options: TagOptions) -> list[Tagged]:
        """The tags of every text, in its likeliest taggings.

        Raises what `classify` raises.
        """
        self.workers.refuse_if_full()
        request = TagRequest(self._model, self._scheme, texts, options)
        await off_loop(request.size, request.read)
        await self._run(request.works, request.prompt_tokens)
        return await self.workers.built(request.answer_size, request.results)

    # --- shared ---------------------------------------------------------------------------------

    async def _run(self, works: Sequence[LabelWork], tokens: int) -> None:
        """Run all work to its end; count its tokens, without bos and eos."""
        with self.workers.deadline():
            await self.workers.run(works)
        self.workers.metrics.counted(prompt=tokens, completion=0, cached=0)


def _client_vocabulary(bundle: LabelerBundle, model: LabelModel) -> ClientVocabulary:
    text = bundle.manifest.text
    return ClientVocabulary(
        tokenization=text.tokenization,
        normalization=text.normalization,
        tokenizer=bundle.text,
        join=bundle.text.join,
        max_length=model.max_tokens,
    )
