"""Training an encoder-decoder: teacher forcing on pairs; a chosen metric decides the best weights.

B batch, T target positions, V target vocabulary.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.bundle.encoder_decoder import MetricName
from service.bundle.text import PAD_ID
from service.bundle.tokenization import Tokenizer
from training.config import EncoderDecoderConfig, pairs_config
from training.data.pair_batches import PairBatch, PairBatches
from training.data.pairs import PairCorpus
from training.data.stored import restored_tokenizer, tokenizer_record
from training.evaluation.encoder_decoder import (
    length_limits,
    mean_loss,
    translate_texts,
    translation_metrics,
)
from training.evaluation.metrics import has_bleu, rank_of
from training.loop import checkpoint
from training.loop.replicas import Replicas, ShareLoss
from training.loop.task import Curve, Evaluation, TrainingError, open_device
from training.networks.encoder_decoder import EncoderDecoder


class EncoderDecoderTask:
    """Trains on the pairs of a corpus, a batch at a time."""

    unit = "token"
    curve = Curve("loss", "nats a target token")

    def __init__(self, config: EncoderDecoderConfig, corpus: PairCorpus) -> None:
        self._config = config
        self.corpus = corpus
        options = config.training
        self.device = open_device(options)
        if options.select_by == "bleu" and not has_bleu([*corpus.valid.references.values()]):
            raise TrainingError(
                "training.select_by: BLEU counts four words in a row, and no validation target has "
                "so many; choose chrf, exact_match, word_error_rate, symbol_error_rate or loss"
            )
        self._model = EncoderDecoder(config.model, len(corpus.source), len(corpus.target))
        self._model.to(self.device)
        self.batches = PairBatches(
            corpus.train, options.batch_size, seed=options.seed, drawn=corpus.drawn
        )
        self.replicas = Replicas(self._model, options, self.device)
        self.limits = length_limits(corpus.train, config.data.max_source_tokens)

    @property
    def model(self) -> EncoderDecoder:
        """The model that is trained."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """Tokens in the target vocabulary."""
        return len(self.corpus.target)

    def identity(self) -> dict[str, Any]:
        """The pairs and both vocabularies."""
        return {
            "source": tokenizer_record(self.corpus.source),
            "target": tokenizer_record(self.corpus.target),
            "corpus_sha256": self.corpus.sha256,
        }

    def backward(self) -> tuple[float, int]:
        """Run the next batch; the gradient includes label smoothing, the returned loss does not."""
        batch = self.batches.next()
        predicted = batch.predicted
        rows = min(len(self.replicas), len(batch.lengths))
        # Interleaved rows: the batch is sorted by length, and the shares should take similar time.
        shares = [self._share(_rows(batch, slice(i, None, rows)), predicted) for i in range(rows)]
        objective, nats = self.replicas.backward(shares)
        if not math.isfinite(objective):
            return objective, predicted
        return nats / predicted, predicted

    def _share(self, batch: PairBatch, predicted: int) -> ShareLoss[EncoderDecoder]:
        options = self._config.training

        def loss(model: EncoderDecoder, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            logits = model(
                *self._inputs(batch), generator=generator, teacher_forcing=options.teacher_forcing
            )
            targets = torch.from_numpy(batch.targets).to(self.device)
            logprobs = torch.log_softmax(logits, dim=2)  # [B, T, V]
            counted = targets != PAD_ID
            picked = logprobs.gather(2, targets.unsqueeze(2)).squeeze(2)[counted]
            objective = nats = -picked.sum()
            if options.label_smoothing:
                # Szegedy et al. 2016; pad and bos are never targets and get no share.
                uniform = -logprobs[..., 2:].mean(dim=2)[counted].sum()
                smoothing = options.label_smoothing
                objective = (1.0 - smoothing) * objective + smoothing * uniform
            return objective / predicted, nats.detach()

        return loss

    def _inputs(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        parts = (batch.sources, batch.lengths, batch.tokens)
        sources, lengths, tokens = (torch.from_numpy(x).to(self.device) for x in parts)
        return sources, lengths, tokens

    def loss_values(self, loss: float) -> dict[str, float]:
        """Nats a target token."""
        return {"loss": loss, "perplexity": math.exp(min(loss, 100.0))}

    def describe(self, loss: float) -> str:
        """The same for people."""
        return f"loss {loss:.4f}"

    def evaluate(self, model: EncoderDecoder) -> Evaluation:
        """Loss over the validation split, and the metrics of greedy translations."""
        options = self._config.training
        loss = mean_loss(model, self.corpus.valid, self.device)
        values: dict[MetricName, float] = {"loss": loss}
        if options.select_by != "loss":
            values |= translation_metrics(
                self._config,
                model,
                self.corpus,
                self.corpus.valid,
                self.limits,
                beam_size=1,
                at_most=options.max_valid_sources,
                device=self.device,
            )
        return Evaluation(
            loss=loss,
            # The loss breaks ties, such as between several evaluations without a mistake.
            rank=(rank_of(options.select_by, values), loss),
            values={str(name): value for name, value in values.items()},
            line=", ".join(f"{name} {value:.4f}" for name, value in values.items()),
        )

    def show(self, model: EncoderDecoder, step: int) -> Sequence[str]:
        """A few sources of the validation split, new ones each time, with their translations."""
        rng = np.random.default_rng(step)
        sources = list(self.corpus.valid.references)
        count = min(self._config.training.show, len(sources))
        texts = [sources[i] for i in rng.choice(len(sources), count, replace=False)]
        found = translate_texts(
            model, self.corpus, texts, self.limits, beam_size=1, device=self.device
        )
        readable = self.corpus.readable
        return [
            f"    {readable(text)}  ->  {readable(target)}"
            for text, target in zip(texts, found, strict=True)
        ]

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
) -> tuple[EncoderDecoderConfig, EncoderDecoder, Tokenizer, Tokenizer, dict[str, Any]]:
    """The configuration, the best weights, both tokenizers and the record from a run's folder."""
    tensors, record = checkpoint.read(run_dir / checkpoint.BEST)
    config = pairs_config(record["config"])
    source = restored_tokenizer(config.data.source, record["source"])
    target = restored_tokenizer(config.data.target, record["target"])
    model = EncoderDecoder(config.model, len(source), len(target))
    model.load_state_dict(tensors)
    return config, model.eval(), source, target, record


def _rows(batch: PairBatch, rows: slice) -> PairBatch:
    """Some rows of a batch, cut to their own longest."""
    lengths, targets = batch.lengths[rows], batch.targets[rows]
    longest = int((targets != PAD_ID).sum(axis=1).max())
    return PairBatch(
        np.ascontiguousarray(batch.sources[rows, : int(lengths.max())]),
        lengths.copy(),
        np.ascontiguousarray(batch.tokens[rows, :longest]),
        np.ascontiguousarray(targets[:, :longest]),
    )
