"""The training loop: truncated backpropagation through time, resumable to the last digit.

B batch, T time, V vocabulary.
"""

import copy
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from tqdm import tqdm

from service.bundle import PAD_ID
from training import checkpoint
from training.config import Config, TrainingConfig
from training.corpus import Corpus
from training.evaluation import Score, evaluate
from training.language_model import LanguageModel
from training.replicas import Replicas
from training.run_log import RunLog
from training.sampling import sample
from training.windows import Windows

LAST = "last.safetensors"  # everything needed to go on
BEST = "best.safetensors"  # the weights of the best evaluation
# A mean loss that no model has which can still be saved, overfitted ones included.
_HOPELESS_NATS = 100.0


class TrainingError(Exception):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


class Stopped(Exception):
    """A signal asked the run to stop; the checkpoint is written."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to the final ratio (Loshchilov and Hutter 2017)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    floor = config.final_learning_rate_ratio
    return config.learning_rate * (floor + (1.0 - floor) * cosine)


class Trainer:
    """One run. All that changes while it trains is saved by `save` and put back by `resume`."""

    def __init__(self, config: Config, corpus: Corpus, run_dir: Path) -> None:
        if corpus.train.chars == 0 or corpus.valid.chars == 0:
            raise TrainingError("the corpus leaves no text to train on or none to validate on")
        self.config = config
        self.corpus = corpus
        self.run_dir = run_dir
        options = config.training
        if options.device == "cuda" and not torch.cuda.is_available():
            raise TrainingError('training.device: "cuda" is not available here; "cpu" is')
        torch.manual_seed(options.seed)
        self.device = torch.device(options.device)
        self.model = LanguageModel(config.model, len(corpus.vocab)).to(self.device)
        self.average = copy.deepcopy(self.model) if options.ema_decay is not None else None
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
        )
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
            self.model,
            options.replicas,
            options.batch_size,
            options.seed,
            options.threads or len(os.sched_getaffinity(0)),
        )
        self.step = 0
        self.best_loss = math.inf
        self.best_step = 0
        self.evaluations_since_best = 0
        self.seconds = 0.0  # spent training, over all resumed parts
        self.interval_nats = 0.0  # since the last log line
        self.interval_tokens = 0
        self._signal: int | None = None

    # --- one step -------------------------------------------------------------------------------

    def train_step(self) -> tuple[float, int]:
        """One window: total nats and predicted tokens. Raises TrainingError when not finite."""
        options = self.config.training
        window = self.windows.next()
        tokens = torch.from_numpy(window.tokens).to(self.device)
        targets = torch.from_numpy(window.targets).to(self.device)
        reset = torch.from_numpy(window.reset).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, options)
        loss = self.replicas.backward(tokens, targets, reset)
        if options.grad_clip_value is not None:
            clip_grad_value_(self.model.parameters(), options.grad_clip_value)
        # Measured even when nothing is clipped: a norm that is not finite must stop the run.
        norm = clip_grad_norm_(self.model.parameters(), options.grad_clip_norm or math.inf)
        self._check_finite(loss, float(norm))
        self.optimizer.step()
        self.step += 1
        self._update_average()
        predicted = int((window.targets != PAD_ID).sum())
        return loss * predicted, predicted

    def _update_average(self) -> None:
        if self.average is None:
            return
        decay = self.config.training.ema_decay or 0.0
        # Short at first: the initial weights are worth nothing.
        weight = 1.0 - min(decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for mean, parameter in zip(
                self.average.parameters(), self.model.parameters(), strict=True
            ):
                mean.lerp_(parameter, weight)

    def _check_finite(self, loss: float, norm: float) -> None:
        uniform = math.log(len(self.corpus.vocab))
        if math.isfinite(loss) and math.isfinite(norm) and loss < 4.0 * uniform:
            return
        raise self._diverged(
            f"loss {loss:.4g} nats (uniform guessing has {uniform:.2f}), gradient norm {norm:.4g}"
        )

    def _diverged(self, what: str) -> TrainingError:
        good = self.run_dir / (BEST if self.best_step else LAST)
        where = f"the last good checkpoint is {good}" if good.exists() else "no checkpoint yet"
        return TrainingError(
            f"diverged at step {self.step}: {what}; {where}. "
            "Lower training.learning_rate, or clip with training.grad_clip_norm"
        )

    # --- the loop -------------------------------------------------------------------------------

    @property
    def evaluated_model(self) -> LanguageModel:
        """The model that is evaluated, kept and exported: the average where there is one."""
        return self.average if self.average is not None else self.model

    def run(self, *, resumed: bool = False) -> Score:
        """Train to the end; the score is the best evaluation's, anew on its weights.

        Raises Stopped after SIGTERM or SIGINT (the checkpoint is written) and TrainingError.
        """
        options = self.config.training
        log = RunLog(self.run_dir, resume_step=self.step if resumed else None)
        bar = tqdm(
            total=options.steps, initial=self.step, unit="step", dynamic_ncols=True, smoothing=0.1
        )
        try:
            with self._signals():
                while self.step < options.steps and not self._exhausted():
                    self._one_iteration(log, bar)
        finally:
            bar.close()
            log.close()
            self.replicas.close()
        return self.finish()

    def _one_iteration(self, log: RunLog, bar: "tqdm[Any]") -> None:
        options = self.config.training
        started = time.monotonic()
        nats, predicted = self.train_step()
        self.seconds += time.monotonic() - started
        self.interval_nats += nats
        self.interval_tokens += predicted
        chars_per_s = predicted / (time.monotonic() - started)
        bar.update()
        if self.step % options.log_every == 0:
            loss = self.interval_nats / self.interval_tokens
            values = {
                "loss": loss,
                "bits_per_char": loss / math.log(2),
                "learning_rate": learning_rate(self.step - 1, options),
                "chars_per_s": chars_per_s,
                "seconds": self.seconds,
            }
            log.add("train", self.step, values)
            bar.set_postfix_str(
                f"loss {loss:.4f}, {values['bits_per_char']:.4f} bits/char, "
                f"{chars_per_s:,.0f} chars/s"
            )
            self.interval_nats, self.interval_tokens = 0.0, 0
        if self.step % options.eval_every == 0 or self.step == options.steps:
            self._evaluate(log, bar)
        done = self.step == options.steps or self._exhausted()
        stop_signal = self._signal  # read once: what comes after the check stops the next step
        if self.step % options.checkpoint_every == 0 or done or stop_signal is not None:
            self.save()
        if stop_signal is not None:
            raise Stopped(stop_signal)

    def _evaluate(self, log: RunLog, bar: "tqdm[Any]") -> None:
        options = self.config.training
        started = time.monotonic()
        score = evaluate(self.evaluated_model, self.corpus.valid, self.device)
        self.seconds += time.monotonic() - started
        if not score.loss < _HOPELESS_NATS:
            raise self._diverged(f"validation loss {score.loss:.4g} nats")
        improved = score.loss < self.best_loss
        log.add(
            "valid",
            self.step,
            {
                "loss": score.loss,
                "bits_per_char": score.bits_per_char,
                "perplexity": score.perplexity,
                "seconds": self.seconds,
            },
        )
        log.draw(self.config.name)
        mark = " (best)" if improved else ""
        bar.write(
            f"step {self.step}: valid loss {score.loss:.4f}, {score.bits_per_char:.4f} "
            f"bits/char, perplexity {score.perplexity:.3f}, {self.seconds:.0f} s{mark}",
            file=sys.stderr,
        )
        if options.sample_chars:
            text = sample(
                self.evaluated_model,
                self.corpus.vocab,
                self.config.data.normalization,
                prompt=options.sample_prompt,
                max_tokens=options.sample_chars,
                temperature=0.8,
                seed=self.step,
            )
            bar.write(f"    {options.sample_prompt}{text}".replace("\n", "\n    "), file=sys.stderr)
        if improved:
            self.best_loss, self.best_step = score.loss, self.step
            self.evaluations_since_best = 0
            record = {"step": self.step, "loss": score.loss, **self._identity()}
            checkpoint.save(self.run_dir / BEST, self.evaluated_model.state_dict(), record)
        else:
            self.evaluations_since_best += 1

    def _exhausted(self) -> bool:
        patience = self.config.training.patience
        return patience is not None and self.evaluations_since_best >= patience

    def finish(self) -> Score:
        """Load the best weights into `evaluated_model` and score them on the validation split."""
        tensors, _ = checkpoint.read(self.run_dir / BEST)
        self.evaluated_model.load_state_dict(tensors)
        return evaluate(self.evaluated_model, self.corpus.valid, self.device)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run after the step in hand."""

        def ask_to_stop(number: int, _: FrameType | None) -> None:
            self._signal = number

        before = {number: signal.signal(number, ask_to_stop) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- save and resume ------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "vocab": list(self.corpus.vocab.tokens),
            "corpus_sha256": self.corpus.sha256,
        }

    def save(self) -> None:
        """Write everything that the run needs to go on as if it had never stopped."""
        tensors = {
            **checkpoint.prefixed("model", self.model.state_dict()),
            **checkpoint.prefixed("optimizer", checkpoint.optimizer_tensors(self.optimizer)),
            **checkpoint.prefixed("replicas", self.replicas.state()),
        }
        if self.average is not None:
            tensors |= checkpoint.prefixed("average", self.average.state_dict())
        record = {
            **self._identity(),
            "step": self.step,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_step": self.best_step,
            "evaluations_since_best": self.evaluations_since_best,
            "seconds": self.seconds,
            "interval_nats": self.interval_nats,
            "interval_tokens": self.interval_tokens,
            "windows": self.windows.state(),
        }
        checkpoint.save(self.run_dir / LAST, tensors, record)

    def resume(self) -> None:
        """Go on from the last checkpoint. Raises TrainingError if it is of another experiment."""
        tensors, record = checkpoint.read(self.run_dir / LAST)
        self._check_same_experiment(record)
        self.model.load_state_dict(checkpoint.unprefixed("model", tensors))
        if self.average is not None:
            self.average.load_state_dict(checkpoint.unprefixed("average", tensors))
        checkpoint.restore_optimizer(self.optimizer, checkpoint.unprefixed("optimizer", tensors))
        self.replicas.restore(checkpoint.unprefixed("replicas", tensors))
        self.step = record["step"]
        self.best_loss = math.inf if record["best_loss"] is None else record["best_loss"]
        self.best_step = record["best_step"]
        self.evaluations_since_best = record["evaluations_since_best"]
        self.seconds = record["seconds"]
        self.interval_nats = record["interval_nats"]
        self.interval_tokens = record["interval_tokens"]
        self.windows.restore(record["windows"])

    def _check_same_experiment(self, record: dict[str, Any]) -> None:
        mine = self._identity()
        if record["corpus_sha256"] != mine["corpus_sha256"] or record["vocab"] != mine["vocab"]:
            raise TrainingError("the text has changed since the checkpoint was written")
        # Device and threads may differ: the run goes on, to the last digit only on the same ones.
        for document in (record["config"], mine["config"]):
            for option in ("device", "threads"):
                document["training"].pop(option, None)
        if record["config"] != mine["config"]:
            old, new = (json.dumps(x, sort_keys=True) for x in (record["config"], mine["config"]))
            raise TrainingError(
                f"the configuration has changed since the checkpoint was written: "
                f"it had {old}, it has {new}"
            )


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def load_best(run_dir: Path) -> tuple[Config, LanguageModel, dict[str, Any]]:
    """Config, best weights and the checkpoint's record of a run's folder."""
    tensors, record = checkpoint.read(run_dir / BEST)
    config = Config.model_validate(record["config"])
    model = LanguageModel(config.model, len(record["vocab"]))
    model.load_state_dict(tensors)
    return config, model.eval(), record


def parameter_count(model: LanguageModel) -> int:
    """Trained parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
