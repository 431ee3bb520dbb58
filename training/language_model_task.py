"""Training a language model: windows of text, states that lanes carry from one to the next.

B batch, T time, V vocabulary.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from service.bundle import PAD_ID
from training import checkpoint
from training.config import Config
from training.corpus import Corpus
from training.evaluation import evaluate
from training.language_model import LanguageModel, States
from training.replicas import Replicas, ShareLoss
from training.sampling import sample
from training.task import Curve, Evaluation, TrainingError, open_device
from training.windows import Windows

_SAMPLED_LINES = 4
_LARGEST_EXPONENT = 700.0  # exp of more overflows a double


class LanguageModelTask:
    """Truncated backpropagation through time over a corpus."""

    unit = "char"
    curve = Curve("bits_per_char", "bits a character")

    def __init__(self, config: Config, corpus: Corpus) -> None:
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
        self.replicas = Replicas(
            self._model,
            options.replicas,
            seed=options.seed,
            threads=options.threads,
            device=self.device,
        )
        lanes = options.batch_size // options.replicas
        self._states = [self._model.initial_states(lanes) for _ in range(options.replicas)]

    @property
    def model(self) -> LanguageModel:
        """The model that is trained."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """Tokens that are predicted among."""
        return len(self.corpus.vocab)

    def identity(self) -> dict[str, Any]:
        """The text and its vocabulary."""
        return {"vocab": list(self.corpus.vocab.tokens), "corpus_sha256": self.corpus.sha256}

    def backward(self) -> tuple[float, int]:
        """The next window of every lane."""
        window = self.windows.next()
        parts = (window.tokens, window.targets, window.reset)
        tokens, targets, reset = (torch.from_numpy(x).to(self.device) for x in parts)
        predicted = int((window.targets != PAD_ID).sum())
        loss = self.replicas.backward(self.shares(tokens, targets, reset, predicted))
        return loss, predicted

    def shares(
        self, tokens: Tensor, targets: Tensor, reset: Tensor, predicted: int
    ) -> list[ShareLoss[LanguageModel]]:
        """Each replica's lanes of a window: `tokens` and `targets` [B, T], `reset` [B]."""
        count = len(self.replicas)
        chunks = zip(tokens.chunk(count), targets.chunk(count), reset.chunk(count), strict=True)
        return [self._share(index, *share, predicted) for index, share in enumerate(chunks)]

    def _share(
        self, index: int, tokens: Tensor, targets: Tensor, reset: Tensor, predicted: int
    ) -> ShareLoss[LanguageModel]:
        def loss(model: LanguageModel, generator: torch.Generator) -> Tensor:
            keep = (~reset).unsqueeze(1)  # [B, 1]
            states: Sequence[Tensor] = [state * keep for state in self._states[index]]
            logits, after = model(tokens, states, generator)  # [B, T, V]
            total = functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=PAD_ID, reduction="sum"
            )
            self._states[index] = tuple(state.detach() for state in after)
            return total / predicted

        return loss

    def loss_values(self, loss: float) -> dict[str, float]:
        """Nats a token, and bits a character of running text."""
        return {"loss": loss, "bits_per_char": loss / math.log(2)}

    def describe(self, loss: float) -> str:
        """Both of them."""
        return f"loss {loss:.4f}, {loss / math.log(2):.4f} bits/char"

    def evaluate(self, model: LanguageModel) -> Evaluation:
        """Score the validation split."""
        score = evaluate(model, self.corpus.valid, self.device)
        # A diverged model's has no number; the trainer stops it by its loss.
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
        """A sample, or a few where a document is a line."""
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
        """Generators, the lanes' states and where they stand."""
        tensors = self.replicas.state()
        for index, states in enumerate(self._states):
            tensors |= {f"{index}.states.{i}": x for i, x in enumerate(states)}
        return tensors, self.windows.state()

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.replicas.restore(tensors)
        self._states = [
            self._restored(tensors, index, states) for index, states in enumerate(self._states)
        ]
        self.windows.restore(record)

    def _restored(self, tensors: dict[str, Tensor], index: int, states: States) -> States:
        names = [f"{index}.states.{i}" for i in range(len(states))]
        return tuple(tensors[name].to(self.device) for name in names)

    def close(self) -> None:
        """End the replicas' threads."""
        self.replicas.close()


def load_best(run_dir: Path) -> tuple[Config, LanguageModel, dict[str, Any]]:
    """Config, best weights and the checkpoint's record of a run's folder."""
    tensors, record = checkpoint.read(run_dir / checkpoint.BEST)
    config = Config.model_validate(record["config"])
    model = LanguageModel(config.model, len(record["vocab"]))
    model.load_state_dict(tensors)
    return config, model.eval(), record
