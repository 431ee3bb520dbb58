"""Training a language model: lanes read windows of text and carry the state between them.

B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from service.bundle.text import PAD_ID
from training.config import (
    AnyLanguageModelConfig,
    LanguageModelConfig,
    NGramLanguageModelConfig,
    parse_config,
)
from training.data.corpus import Corpus
from training.data.windows import Window, Windows
from training.evaluation.language_model import evaluate
from training.evaluation.ngram_network import network
from training.evaluation.sampling import sample
from training.loop import checkpoint
from training.loop.ngram import model_of
from training.loop.ngram_targets import ngram_targets
from training.loop.replicas import Replicas, ShareLoss
from training.loop.task import Curve, Evaluation, TrainingError, open_device
from training.networks.language_model import LanguageModel
from training.networks.ngram import NGram
from training.networks.recurrent import States

Opened: TypeAlias = tuple[AnyLanguageModelConfig, LanguageModel | NGram, dict[str, Any]]

_SAMPLED_LINES = 4
_LARGEST_EXPONENT = 700.0  # exp of more overflows a double


class LanguageModelTask:
    """Truncated backpropagation through time over a corpus."""

    unit = "char"
    curve = Curve("bits_per_char", "bits a character")

    def __init__(self, config: LanguageModelConfig, corpus: Corpus) -> None:
        if corpus.train.chars == 0 or corpus.valid.chars == 0:
            raise TrainingError("the corpus leaves no text to train on or none to validate on")
        self._config = config
        self.corpus = corpus
        options = config.training
        self.device = open_device(options)
        self._model = LanguageModel(config.model, len(corpus.vocab)).to(self.device)
        order = options.order or ("stream" if config.data.documents == "file" else "shuffle")
        vocab = corpus.vocab
        self.windows = Windows(
            corpus.train,
            options.batch_size,
            options.bptt_len,
            order=order,
            seed=options.seed,
            restart_probability=options.restart_probability,
            line_end_id=vocab.tokens.index("\n") if "\n" in vocab.tokens else None,
        )
        self.replicas = Replicas(self._model, options, self.device)
        self._ngram_targets: Tensor | None = None  # [N, V]
        if options.ngram_targets:
            targets = ngram_targets(corpus.train, len(vocab))
            self._ngram_targets = torch.from_numpy(targets).to(self.device)
        lanes = options.batch_size // options.replicas
        # Of the shares that this process computes.
        self._states = {i: self._model.initial_states(lanes) for i in self.replicas.own}

    @property
    def model(self) -> LanguageModel:
        """The model that is trained."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return len(self.corpus.vocab)

    def identity(self) -> dict[str, Any]:
        """The text and its vocabulary."""
        return {"vocab": list(self.corpus.vocab.tokens), "corpus_sha256": self.corpus.sha256}

    def backward(self) -> tuple[float, int]:
        """Run the next window of every lane; the returned loss covers only the text's tokens."""
        window = self.windows.next()
        parts = (window.tokens, window.targets, window.reset)
        tokens, targets, reset = (torch.from_numpy(x).to(self.device) for x in parts)
        predicted = int((window.targets != PAD_ID).sum())
        shares = self.shares(tokens, targets, reset, predicted, self._expected(window))
        objective, nats = self.replicas.backward(shares)
        if self._ngram_targets is None or not math.isfinite(objective):
            return objective, predicted
        return nats / predicted, predicted

    def _expected(self, window: Window) -> Tensor | None:
        """An n-gram model's distributions [B, T, V] for a window; zeros where they do not apply."""
        if self._ngram_targets is None:
            return None
        ids = self.corpus.train.ids
        places = self.windows.places[:, np.newaxis] + np.arange(window.targets.shape[1])  # [B, T]
        places = np.minimum(places, len(ids) - 1)  # of padding
        expected = self._ngram_targets[torch.from_numpy(places)]
        # Excluded where a restart ends the text early: the target is eos there, not the next id.
        own = (window.targets == ids[places]) & (window.targets != PAD_ID)
        return expected * torch.from_numpy(own).to(self.device).unsqueeze(2)

    def shares(
        self,
        tokens: Tensor,
        targets: Tensor,
        reset: Tensor,
        predicted: int,
        expected: Tensor | None = None,
    ) -> list[ShareLoss[LanguageModel]]:
        """Each replica's lanes of a window: `tokens` and `targets` [B, T], `reset` [B].

        `expected` [B, T, V]: further distributions to learn from; zeros where there are none.
        """
        count = len(self.replicas)
        chunks = zip(tokens.chunk(count), targets.chunk(count), reset.chunk(count), strict=True)
        parts = [None] * count if expected is None else expected.chunk(count)
        return [
            self._share(index, *share, predicted, part)
            for index, (share, part) in enumerate(zip(chunks, parts, strict=True))
        ]

    def _share(  # noqa: PLR0917 (a window's parts)
        self,
        index: int,
        tokens: Tensor,
        targets: Tensor,
        reset: Tensor,
        predicted: int,
        expected: Tensor | None,
    ) -> ShareLoss[LanguageModel]:
        def loss(model: LanguageModel, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            keep = (~reset).unsqueeze(1)  # [B, 1]
            states: Sequence[Tensor] = [state * keep for state in self._states[index]]
            logits, after = model(tokens, states, generator)  # [B, T, V]
            total = functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=PAD_ID, reduction="sum"
            )
            self._states[index] = tuple(state.detach() for state in after)
            if expected is None:
                return total / predicted, total.detach()
            logprobs = torch.log_softmax(logits, dim=2)
            own = -logprobs.gather(2, targets.unsqueeze(2)).squeeze(2)  # [B, T]
            counted = expected.any(dim=2)
            cross = -(expected * logprobs).sum(dim=2)  # [B, T]
            share = self._config.training.ngram_targets
            return (total + share * (cross - own)[counted].sum()) / predicted, total.detach()

        return loss

    def loss_values(self, loss: float) -> dict[str, float]:
        """Nats a token, and bits a character of running text."""
        return {"loss": loss, "bits_per_char": loss / math.log(2)}

    def describe(self, loss: float) -> str:
        """The same for people."""
        return f"loss {loss:.4f}, {loss / math.log(2):.4f} bits/char"

    def evaluate(self, model: LanguageModel) -> Evaluation:
        """Score the validation split."""
        score = evaluate(model, self.corpus.valid, self.device)
        # A diverged model's perplexity may overflow a double; the trainer stops it by its loss.
        perplexity = score.perplexity if score.loss < _LARGEST_EXPONENT else math.inf
        return Evaluation(
            loss=score.loss,
            rank=(score.loss,),
            values={
                "loss": score.loss,
                "bits_per_char": score.bits_per_char,
                "perplexity": perplexity,
            },
            line=f"loss {score.loss:.4f}, {score.bits_per_char:.4f} bits/char, "
            f"perplexity {perplexity:.3f}",
        )

    def show(self, model: LanguageModel, step: int) -> Sequence[str]:
        """A sample, or several short ones where a document is a line."""
        options = self._config.training
        if not options.sample_chars:
            return []
        count = _SAMPLED_LINES if self._config.data.documents == "line" else 1
        texts = [
            sample(
                model,
                self.corpus.vocab,
                self._config.data.normalization,
                prompt=options.sample_prompt,
                max_tokens=options.sample_chars // count or 1,
                temperature=0.8,
                seed=step + i,
            )
            for i in range(count)
        ]
        shown = (options.sample_prompt + text + ("" if ended else " …") for text, ended in texts)
        return [f"    {text}".replace("\n", "\n    ") for text in shown]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The generators, and each lane's states and position."""
        tensors = self.replicas.state()
        for index, states in self._states.items():
            tensors |= {f"{index}.states.{i}": x for i, x in enumerate(states)}
        return tensors, self.windows.state()

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.replicas.restore(tensors)
        self._states = {
            index: self._restored(tensors, index, states) for index, states in self._states.items()
        }
        self.windows.restore(record)

    def _restored(self, tensors: dict[str, Tensor], index: int, states: States) -> States:
        names = [f"{index}.states.{i}" for i in range(len(states))]
        return tuple(tensors[name].to(self.device) for name in names)

    def close(self) -> None:
        """End the replicas' threads."""
        self.replicas.close()


def load_best(run_dir: Path) -> tuple[LanguageModelConfig, LanguageModel, dict[str, Any]]:
    """The configuration, the best weights and the checkpoint's record from a network's run."""
    return _network(*checkpoint.read(run_dir / checkpoint.BEST))


def open_best(run_dir: Path) -> Opened:
    """As `load_best`, from the run of a network or an n-gram."""
    tensors, record = checkpoint.read(run_dir / checkpoint.BEST)
    return _OPEN[parse_config(record["config"]).kind](tensors, record)


def _network(
    tensors: Mapping[str, Tensor], record: dict[str, Any]
) -> tuple[LanguageModelConfig, LanguageModel, dict[str, Any]]:
    config = LanguageModelConfig.model_validate(record["config"])
    model = LanguageModel(config.model, len(record["vocab"]))
    model.load_state_dict(tensors)
    return config, model.eval(), record


def _ngram(tensors: Mapping[str, Tensor], record: dict[str, Any]) -> Opened:
    config = NGramLanguageModelConfig.model_validate(record["config"])
    return config, network(model_of(config.model, tensors)).eval(), record


# By a configuration's kind.
_OPEN: Mapping[str, Callable[[Mapping[str, Tensor], dict[str, Any]], Opened]] = {
    LanguageModelConfig.kind: _network,
    NGramLanguageModelConfig.kind: _ngram,
}
