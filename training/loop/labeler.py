"""Training a labeler: cross entropy of labels; a chosen metric decides the best weights.

B batch, S places (bos, tokens and eos), L labels.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.bundle.labeler import Labels
from service.bundle.tokenization import Tokenizer
from training.config import LabelerConfig, labeler_config
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.data.labelled_batches import NO_LABEL, LabelledBatch, LabelledBatches
from training.data.stored import restored_tokenizer, tokenizer_record
from training.evaluation.label_answers import answer_lines
from training.evaluation.labeler import judge_network, rank_of
from training.evaluation.restore_report import split_values
from training.loop import checkpoint
from training.loop.label_losses import LabelLoss, balanced_weights
from training.loop.replicas import Replicas, ShareLoss
from training.loop.task import Curve, Evaluation, TrainingError, open_device
from training.networks.labeler import Head, Labeler

_SHOWN_CHARS = 100  # of a text that is shown
_SHOWN = ("loss", "accuracy", "macro_f1", "exact_match", "span_f1", "word_error_rate")


class LabelerTask:
    """Trains on the labelled texts of a corpus, a batch at a time."""

    unit = "label"
    curve = Curve("loss", "nats a label")

    def __init__(self, config: LabelerConfig, corpus: LabelledCorpus) -> None:
        self._config = config
        self.corpus = corpus
        options = config.training
        self.device = open_device(options)
        balanced = options.class_weights == "balanced"
        if config.model.crf and (balanced or options.label_smoothing):
            raise TrainingError(
                "model.crf: the loss of a CRF is that of a whole text's labels together; leave out "
                "training.class_weights and training.label_smoothing"
            )
        self._model = Labeler(config.model, _head(config, corpus), len(corpus.tokenizer))
        self._model.to(self.device)
        self._forward = config.model.direction == "forward"
        weights = torch.from_numpy(balanced_weights(corpus)).to(self.device) if balanced else None
        self._loss = LabelLoss(smoothing=options.label_smoothing, weights=weights)
        self.batches = LabelledBatches(
            corpus.train,
            corpus.labels,
            options.batch_size,
            seed=options.seed,
            forward=self._forward,
        )
        self.replicas = Replicas(self._model, options, self.device)
        self.valid = spread(corpus.valid, options.max_valid_texts)

    @property
    def model(self) -> Labeler:
        """The model that is trained."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """Labels to choose from; if texts may have several, each is a choice of two."""
        labels = self.corpus.labels
        return 2 if labels.several else len(labels.names)

    def identity(self) -> dict[str, Any]:
        """The texts, their vocabulary and the labels."""
        return {
            "text": tokenizer_record(self.corpus.tokenizer),
            "labels": self.corpus.labels.model_dump(mode="json"),
            "corpus_sha256": self.corpus.sha256,
        }

    def backward(self) -> tuple[float, int]:
        """Run the next batch.

        The gradient includes label smoothing and weights of labels, the returned loss does not. Of
        a text that is read forward, the label is predicted after each character: every prefix of
        at least one is an example.
        """
        batch = self.batches.next()
        predicted = self._decisions(batch)
        rows = min(len(self.replicas), len(batch.lengths))
        # Interleaved rows: the batch is sorted by length, and the shares should take similar time.
        of_places = self.corpus.labels.scope == "character"
        parts = [_rows(batch, slice(i, None, rows), of_places=of_places) for i in range(rows)]
        objective, nats = self.replicas.backward([self._share(x, predicted) for x in parts])
        if not math.isfinite(objective):
            return objective, predicted
        return nats / predicted, predicted

    def _decisions(self, batch: LabelledBatch) -> int:
        """What the loss is the mean of."""
        labels = self.corpus.labels
        if labels.scope == "character":
            return batch.counted
        examples = int((batch.lengths - 1).sum()) if self._forward else len(batch.lengths)
        return examples * len(labels.names) if labels.several else examples

    def _share(self, batch: LabelledBatch, predicted: int) -> ShareLoss[Labeler]:
        parts = (batch.tokens, batch.lengths, batch.labels)

        def loss(model: Labeler, generator: torch.Generator) -> tuple[Tensor, float]:
            tokens, lengths, wanted = (torch.from_numpy(x).to(self.device) for x in parts)
            logits = model(tokens, lengths, generator)
            objective, nats = self._objective(model, logits, tokens, lengths, wanted)
            return objective / predicted, nats

        return loss

    def _objective(
        self, model: Labeler, logits: Tensor, tokens: Tensor, lengths: Tensor, wanted: Tensor
    ) -> tuple[Tensor, float]:
        """The objective and the plain nats of a batch, as sums."""
        if model.chain is not None:
            # Without bos and eos; past a text's end any label will do.
            labels = wanted[:, 1:-1].clamp(min=0)
            nats = -model.chain.logprob(logits[:, 1:-1], labels, lengths - 2).sum()
            return nats, float(nats.detach())
        allowed = None
        if self.corpus.labels.scope == "character":
            counted = wanted != NO_LABEL  # [B, S]
            logits, wanted = logits[counted], wanted[counted]
            if model.allowed is not None:
                allowed = model.allowed[tokens[counted]]
        elif self._forward:
            place = torch.arange(tokens.shape[1], device=tokens.device)
            logits = logits[(place > 0) & (place < lengths.unsqueeze(1))]
            wanted = wanted.repeat_interleave(lengths - 1, dim=0)
        if self.corpus.labels.several:
            return self._loss.several(logits, wanted)
        return self._loss.one(logits, wanted, allowed)

    def loss_values(self, loss: float) -> dict[str, float]:
        """Nats a label."""
        return {"loss": loss}

    def describe(self, loss: float) -> str:
        """The same for people."""
        return f"loss {loss:.4f}"

    def evaluate(self, model: Labeler) -> Evaluation:
        """The metrics of at most `max_valid_texts` validation texts."""
        labels = self.corpus.labels
        found = judge_network(model, self.valid, labels, self.device)
        values = split_values(found, self.valid, labels)
        return Evaluation(
            loss=values["loss"],
            # The loss breaks ties, such as between several evaluations without a mistake.
            rank=(rank_of(self._config.training.select_by, values), values["loss"]),
            values={str(name): value for name, value in values.items()},
            line=", ".join(f"{x} {values[x]:.4f}" for x in values if x in _SHOWN),
        )

    def show(self, model: Labeler, step: int) -> Sequence[str]:
        """A few texts of the validation split, new ones each time, with their labels."""
        rng = np.random.default_rng(step)
        count = min(self._config.training.show, len(self.valid))
        chosen = part(self.valid, rng.choice(len(self.valid), count, replace=False).tolist())
        lines = answer_lines(
            model, self.corpus.labels, chosen.texts, chosen.tokens, self.device, top=2
        )
        shown = zip(map(_one_line, chosen.texts), map(_one_line, lines), strict=True)
        return [f"    {text}  ->  {line}" for text, line in shown]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The generators, and the position in the batches."""
        return self.replicas.state(), self.batches.state()

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.replicas.restore(tensors)
        self.batches.restore(record)

    def close(self) -> None:
        """End the replicas' threads."""
        self.replicas.close()


def load_best(
    run_dir: Path,
) -> tuple[LabelerConfig, Labeler, Tokenizer, Labels, dict[str, Any]]:
    """From a run's folder: the configuration, best weights, tokenizer, labels and the record."""
    tensors, record = checkpoint.read(run_dir / checkpoint.BEST)
    config = labeler_config(record["config"])
    tokenizer = restored_tokenizer(config.data.text, record["text"])
    labels = Labels.model_validate(record["labels"])
    head = _head_of(config, labels, tensors.get("allowed"))
    model = Labeler(config.model, head, len(tokenizer))
    model.load_state_dict(tensors)
    return config, model.eval(), tokenizer, labels, record


def _head(config: LabelerConfig, corpus: LabelledCorpus) -> Head:
    allowed = None if corpus.allowed is None else torch.from_numpy(corpus.allowed)
    return _head_of(config, corpus.labels, allowed)


def _head_of(config: LabelerConfig, labels: Labels, allowed: Tensor | None) -> Head:
    return Head(
        num_labels=len(labels.names),
        direction=config.model.direction,
        pooling=config.model.pooling,
        crf=config.model.crf,
        allowed=allowed,
    )


def spread(split: LabelledSplit, at_most: int) -> LabelledSplit:
    """At most so many texts, spread over the whole split: files are often sorted by label."""
    if len(split) <= at_most:
        return split
    return part(split, [i * len(split) // at_most for i in range(at_most)])


def part(split: LabelledSplit, indices: Sequence[int]) -> LabelledSplit:
    """The texts at these indices."""
    return replace(
        split,
        texts=[split.texts[i] for i in indices],
        tokens=[split.tokens[i] for i in indices],
        labels=[split.labels[i] for i in indices],
    )


def _one_line(text: str) -> str:
    """A text that may be a whole file, for people."""
    line = " ".join(text.splitlines())
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}…"


def _rows(batch: LabelledBatch, rows: slice, *, of_places: bool) -> LabelledBatch:
    """Some rows of a batch, cut to their own longest; `of_places` are labels [B, S]."""
    lengths = batch.lengths[rows]
    longest = int(lengths.max())
    labels: Any = batch.labels[rows]
    return LabelledBatch(
        np.ascontiguousarray(batch.tokens[rows, :longest]),
        lengths.copy(),
        np.ascontiguousarray(labels[:, :longest] if of_places else labels),
    )
