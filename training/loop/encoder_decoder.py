"""Training an encoder-decoder: teacher forcing on pairs, weights chosen by what users read.

B batch, T target positions, V target vocabulary.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from service.bundle.encoder_decoder import EncoderDecoderLimits, MetricName
from service.bundle.text import PAD_ID
from service.bundle.tokenization import Tokenizer
from training.config import EncoderDecoderConfig
from training.data.pair_batches import PairBatch, PairBatches, pair_batch
from training.data.pairs import PairCorpus, PairSplit
from training.data.stored_pairs import restored_tokenizer, tokenizer_record
from training.evaluation.beam_search import translate
from training.evaluation.metrics import has_bleu, measure, rank_of
from training.loop import checkpoint
from training.loop.replicas import Replicas, ShareLoss
from training.loop.task import Curve, Evaluation, TrainingError, open_device
from training.networks.encoder_decoder import EncoderDecoder

# What validation lets a target have: enough for any of the training split, and a way to end.
_EXTRA_TOKENS = 10
_MAX_RATIO = 3
_VALID_TOKENS = 8192  # target positions of one validation batch


def length_limits(split: PairSplit, max_source_tokens: int) -> EncoderDecoderLimits:
    """The bound ratio · source + extra that holds for every pair of a split, and a little more.

    Of those the least for a source of mean length: a search ends where nothing under the bound can
    beat what it has, so what is allowed in vain is searched in vain. The ratio is that of the means
    at least, so that it holds for longer sources, too.
    """
    sources = np.array([len(x) + 1 for x in split.sources])
    targets = np.array([len(y) + 1 for y in split.targets])
    least = math.ceil(20 * targets.mean() / sources.mean())
    ratios = np.arange(least, max(least, 20 * _MAX_RATIO) + 1) / 20
    over = [(targets - np.floor(ratio * sources)).max() for ratio in ratios]
    extras = np.maximum(over, 0) + _EXTRA_TOKENS
    best = int(np.argmin(ratios * sources.mean() + extras))
    return EncoderDecoderLimits(
        max_source_tokens=max_source_tokens,
        max_tokens_ratio=float(ratios[best]),
        max_tokens_extra=int(extras[best]),
    )


class EncoderDecoderTask:
    """Pairs of a corpus, a batch at a time."""

    unit = "token"
    curve = Curve("loss", "nats a target token")

    def __init__(self, config: EncoderDecoderConfig, corpus: PairCorpus) -> None:
        self._config = config
        self.corpus = corpus
        options = config.training
        self.device = open_device(options)
        if options.select_by == "bleu" and not has_bleu([*corpus.valid.references.values()]):
            raise TrainingError(
                "training.select_by: BLEU counts four words in a row, which no target to validate "
                "with has; choose chrf, exact_match, word_error_rate, symbol_error_rate or loss"
            )
        self._model = EncoderDecoder(config.model, len(corpus.source), len(corpus.target))
        self._model.to(self.device)
        self.batches = PairBatches(corpus.train, options.batch_size, seed=options.seed)
        self.replicas = Replicas(
            self._model,
            options.replicas,
            seed=options.seed,
            threads=options.threads,
            device=self.device,
        )
        self.limits = length_limits(corpus.train, config.data.max_source_tokens)

    @property
    def model(self) -> EncoderDecoder:
        """The model that is trained."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """Tokens that are predicted among."""
        return len(self.corpus.target)

    def identity(self) -> dict[str, Any]:
        """The pairs and both vocabularies."""
        return {
            "source": tokenizer_record(self.corpus.source),
            "target": tokenizer_record(self.corpus.target),
            "corpus_sha256": self.corpus.sha256,
        }

    def backward(self) -> tuple[float, int]:
        """The next batch; the loss is without the label smoothing that the gradient has."""
        batch = self.batches.next()
        predicted = batch.predicted
        nats = [0.0] * len(self.replicas)
        rows = min(len(self.replicas), len(batch.lengths))
        # Every so many rows, so that the shares are of like lengths.
        shares = [
            self._share(_rows(batch, slice(i, None, rows)), predicted, nats, i) for i in range(rows)
        ]
        objective = self.replicas.backward(shares)
        if not math.isfinite(objective):
            return objective, predicted
        return sum(nats) / predicted, predicted

    def _share(
        self, batch: PairBatch, predicted: int, nats: list[float], index: int
    ) -> ShareLoss[EncoderDecoder]:
        options = self._config.training

        def loss(model: EncoderDecoder, generator: torch.Generator) -> Tensor:
            logits = model(
                *self._inputs(batch), generator=generator, teacher_forcing=options.teacher_forcing
            )
            targets = torch.from_numpy(batch.targets).to(self.device)
            logprobs = torch.log_softmax(logits, dim=2)  # [B, T, V]
            counted = targets != PAD_ID
            picked = logprobs.gather(2, targets.unsqueeze(2)).squeeze(2)[counted]
            nats[index] = -float(picked.detach().sum())
            objective = -picked.sum()
            if options.label_smoothing:
                # Szegedy et al. 2016; pad and bos are never targets and get no share.
                uniform = -logprobs[..., 2:].mean(dim=2)[counted].sum()
                smoothing = options.label_smoothing
                objective = (1.0 - smoothing) * objective + smoothing * uniform
            return objective / predicted

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
            values |= self.metrics(
                model, self.corpus.valid, beam_size=1, at_most=options.max_valid_sources
            )
        return Evaluation(
            loss=loss,
            # Of equals, such as all that make no mistake, the one that is surest.
            rank=(rank_of(options.select_by, values), loss),
            values={str(name): value for name, value in values.items()},
            line=", ".join(f"{name} {value:.4f}" for name, value in values.items()),
        )

    def metrics(
        self,
        model: EncoderDecoder,
        split: PairSplit,
        *,
        beam_size: int,
        length_penalty: float = 1.0,
        at_most: int | None = None,
    ) -> dict[MetricName, float]:
        """What translations of the split's sources are worth."""
        texts = list(split.references)[:at_most]
        wanted = [split.references[text] for text in texts]
        found = translate_texts(
            model,
            self.corpus,
            texts,
            self.limits,
            beam_size=beam_size,
            length_penalty=length_penalty,
            device=self.device,
        )
        return measure(found, wanted, **metric_options(self._config))

    def show(self, model: EncoderDecoder, step: int) -> Sequence[str]:
        """Some sources of the validation split, others at each step, and their translations."""
        rng = np.random.default_rng(step)
        sources = list(self.corpus.valid.references)
        count = min(self._config.training.show, len(sources))
        texts = [sources[i] for i in rng.choice(len(sources), count, replace=False)]
        found = translate_texts(
            model, self.corpus, texts, self.limits, beam_size=1, device=self.device
        )
        return [f"    {text}  ->  {target}" for text, target in zip(texts, found, strict=True)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Generators, and where the batches stand."""
        return self.replicas.state(), self.batches.state()

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.replicas.restore(tensors)
        self.batches.restore(record)

    def close(self) -> None:
        """End the replicas' threads."""
        self.replicas.close()


def metric_options(config: EncoderDecoderConfig) -> dict[str, Any]:
    """How `measure` reads the target side: symbols between spaces, or characters."""
    symbols = config.data.target.tokenization == "whitespace"
    return {"split": str.split if symbols else list, "corpus_metrics": not symbols}


@torch.no_grad()
def mean_loss(model: EncoderDecoder, split: PairSplit, device: torch.device) -> float:
    """Mean nats a target token over a split, eos counted."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(split)), key=lambda i: (len(split.sources[i]), len(split.targets[i])))
    nats, predicted, start = 0.0, 0, 0
    while start < len(order):
        longest = max(len(split.targets[i]) for i in order[start : start + 64]) + 1
        size = max(1, _VALID_TOKENS // longest)
        batch = pair_batch(split, order[start : start + size])
        parts = (batch.sources, batch.lengths, batch.tokens)
        logits = model(*(torch.from_numpy(x).to(device) for x in parts))
        targets = torch.from_numpy(batch.targets).to(device)
        losses = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=PAD_ID, reduction="none"
        )
        nats += float(losses.double().sum())
        predicted += batch.predicted
        start += size
    model.train(was_training)
    return nats / predicted


def translate_texts(
    model: EncoderDecoder,
    corpus: PairCorpus,
    texts: Sequence[str],
    limits: EncoderDecoderLimits,
    *,
    beam_size: int,
    length_penalty: float = 1.0,
    device: torch.device,
) -> list[str]:
    """The best target of each normalized source text."""
    sources = [corpus.source.encode(text) for text in texts]
    hypotheses = translate(
        model,
        sources,
        beam_size=beam_size,
        length_penalty=length_penalty,
        max_tokens=[limits.max_tokens(len(source) + 1) for source in sources],
        device=device,
    )
    return [corpus.target.decode(found[0].tokens) for found in hypotheses]


def load_best_pairs(
    run_dir: Path,
) -> tuple[EncoderDecoderConfig, EncoderDecoder, Tokenizer, Tokenizer, dict[str, Any]]:
    """Config, best weights, both tokenizers and the checkpoint's record of a run's folder."""
    tensors, record = checkpoint.read(run_dir / checkpoint.BEST)
    config = EncoderDecoderConfig.model_validate(record["config"])
    source = restored_tokenizer(config.data.source, record["source"])
    target = restored_tokenizer(config.data.target, record["target"])
    model = EncoderDecoder(config.model, len(source), len(target))
    model.load_state_dict(tensors)
    return config, model.eval(), source, target, record


def _rows(batch: PairBatch, rows: slice) -> PairBatch:
    """Some rows, cut to what they need."""
    lengths, targets = batch.lengths[rows], batch.targets[rows]
    longest = int((targets != PAD_ID).sum(axis=1).max())
    return PairBatch(
        np.ascontiguousarray(batch.sources[rows, : int(lengths.max())]),
        lengths.copy(),
        np.ascontiguousarray(batch.tokens[rows, :longest]),
        np.ascontiguousarray(targets[:, :longest]),
    )
