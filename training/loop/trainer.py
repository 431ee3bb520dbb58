"""The training loop: optimizer, schedule, evaluations, signals; resumable to the last digit.

A task (`task.py`) provides the batches, the loss and the evaluation of one kind of model.
"""

import copy
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from training.config import OptimizerConfig, TrainedConfig, parse_config
from training.loop import checkpoint, processes
from training.loop.changes import forbidden_change
from training.loop.checkpoint import BEST, LAST
from training.loop.processes import LostContact, Order
from training.loop.progress import Progress, open_progress
from training.loop.run_log import RunLog
from training.loop.task import Evaluation, Task, TrainingError

Model = TypeVar("Model", bound=nn.Module)

# Nats a token: no model that can recover has such a validation loss, not even an overfitted one.
_HOPELESS_NATS = 100.0
# Guessing among fewer is no measure of it: of two labels, a small batch may be all wrong.
_LEAST_CHOICES = 16


class Stopped(Exception):
    """A signal has stopped the run; its checkpoint is written."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def learning_rate(step: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine down to the final ratio (Loshchilov and Hutter 2017)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    floor = config.final_learning_rate_ratio
    return config.learning_rate * (floor + (1.0 - floor) * cosine)


class Trainer(Generic[Model]):
    """One run. `save` keeps all state that changes while it trains, and `resume` restores it."""

    def __init__(
        self,
        config: TrainedConfig,
        task: Task[Model],
        run_dir: Path,
        *,
        parent: dict[str, str] | None = None,
    ) -> None:
        """`parent` names the run or bundle whose weights the task's model starts from, if any."""
        self.config = config
        self.parent = parent
        self.task = task
        self.run_dir = run_dir
        options = config.training
        self.model = task.model
        self.average = copy.deepcopy(self.model) if options.ema_decay is not None else None
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
        )
        self.step = 0
        self.best_rank: tuple[float, ...] | None = None
        self.best_step = 0
        self.evaluations_since_best = 0
        self.seconds = 0.0  # spent training, over all resumed parts
        self.interval_nats = 0.0  # since the last log line
        self.interval_tokens = 0
        self._signal: int | None = None

    # --- one step -------------------------------------------------------------------------------

    def train_step(self) -> tuple[float, int]:
        """Train on one batch. Returns its total nats and its number of predicted tokens.

        Raises TrainingError when the loss or the gradient is not finite.
        """
        options = self.config.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, options)
        loss, predicted = self.task.backward()
        if options.grad_clip_value is not None:
            clip_grad_value_(self.model.parameters(), options.grad_clip_value)
        # Computed even when nothing is clipped: a norm that is not finite must stop the run.
        norm = clip_grad_norm_(self.model.parameters(), options.grad_clip_norm or math.inf)
        self._check_finite(loss, float(norm))
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return loss * predicted, predicted

    def _update_average(self) -> None:
        if self.average is None:
            return
        decay = self.config.training.ema_decay or 0.0
        # A short average at first: the initial weights are worth nothing.
        weight = 1.0 - min(decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for mean, parameter in zip(
                self.average.parameters(), self.model.parameters(), strict=True
            ):
                mean.lerp_(parameter, weight)

    def _check_finite(self, loss: float, norm: float) -> None:
        uniform = math.log(self.task.vocab_size)
        limit = max(uniform, math.log(_LEAST_CHOICES))
        if math.isfinite(loss) and math.isfinite(norm) and loss < 4.0 * limit:
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
    def evaluated_model(self) -> Model:
        """The model that is evaluated and saved: the average where there is one."""
        return self.average if self.average is not None else self.model

    def run(self, *, resumed: bool = False) -> Evaluation:
        """Train to the end. Returns a new evaluation of the best weights. Only for rank 0.

        Raises Stopped after SIGTERM or SIGINT, when the checkpoint is written, and TrainingError.
        """
        options = self.config.training
        log = RunLog(self.run_dir, resume_step=self.step if resumed else None)
        progress = open_progress(self.step, options.steps)
        try:
            self._agree()
            with self._signals():
                while self.step < options.steps and not self._exhausted():
                    self._one_iteration(log, progress)
        finally:
            progress.close()
            log.close()
            self.task.close()
        return self.finish()

    def _one_iteration(self, log: RunLog, progress: Progress) -> None:
        options = self.config.training
        started = time.monotonic()
        self._announce(Order.STEP)
        nats, predicted = self.train_step()
        self.seconds += time.monotonic() - started
        self.interval_nats += nats
        self.interval_tokens += predicted
        rate = predicted / (time.monotonic() - started)
        progress.advance()
        if self.step % options.log_every == 0:
            loss = self.interval_nats / self.interval_tokens
            values = {
                **self.task.loss_values(loss),
                "learning_rate": learning_rate(self.step - 1, options),
                f"{self.task.unit}s_per_s": rate,
                "seconds": self.seconds,
            }
            log.add("train", self.step, values)
            progress.describe(f"{self.task.describe(loss)}, {rate:,.0f} {self.task.unit}s/s")
            self.interval_nats, self.interval_tokens = 0.0, 0
        if self.step % options.eval_every == 0 or self.step == options.steps:
            self._evaluate(log, progress)
        done = self.step == options.steps or self._exhausted()
        stop_signal = self._signal  # read once: a later signal stops the run after the next step
        if self.step % options.checkpoint_every == 0 or done or stop_signal is not None:
            self._announce(Order.SAVE)
            self.save()
        if stop_signal is not None:
            raise Stopped(stop_signal)

    def _announce(self, order: Order | None) -> Order:
        """Agree on what all processes do next: rank 0 decides, and a signal to one reaches all."""
        order, signal_number = processes.exchange(order, self._signal)
        self._signal = self._signal or signal_number
        return order

    def follow(self) -> int | None:
        """Train on another rank, until rank 0 ends or is lost (LostContact).

        Returns the signal that ended it.
        """
        try:
            self._agree()
            with self._signals():
                while (order := self._announce(None)) is not Order.END:
                    if order is Order.STEP:
                        self.train_step()
                    else:
                        self.save()
        except TrainingError as error:  # diverged: rank 0 has the same error, and reports it
            raise LostContact(str(error)) from error
        finally:
            self.task.close()
        return self._signal

    def _evaluate(self, log: RunLog, progress: Progress) -> None:
        started = time.monotonic()
        found = self.task.evaluate(self.evaluated_model)
        self.seconds += time.monotonic() - started
        if not found.loss < _HOPELESS_NATS:
            raise self._diverged(f"validation loss {found.loss:.4g} nats")
        improved = self.best_rank is None or found.rank < self.best_rank
        log.add("valid", self.step, {**found.values, "seconds": self.seconds})
        log.draw(self.config.name, self.task.curve)
        mark = " (best)" if improved else ""
        line = f"step {self.step}: valid {found.line}, {self.seconds:.0f} s{mark}"
        progress.write([line, *self.task.show(self.evaluated_model, self.step)])
        if improved:
            self.best_rank, self.best_step = found.rank, self.step
            self.evaluations_since_best = 0
            size = {"parameters": parameter_count(self.model)}
            record = {"step": self.step, **size, **found.values, **self._identity()}
            checkpoint.save(self.run_dir / BEST, self.evaluated_model.state_dict(), record)
        else:
            self.evaluations_since_best += 1

    def _exhausted(self) -> bool:
        patience = self.config.training.patience
        return patience is not None and self.evaluations_since_best >= patience

    def finish(self) -> Evaluation:
        """Load the best weights into `evaluated_model` and evaluate them again.

        Raises TrainingError where there are none, because the run ended before an evaluation.
        """
        if not (self.run_dir / BEST).exists():
            raise TrainingError(
                f"{self.run_dir}: ended after {self.step} steps, before the first evaluation; "
                "raise training.steps, or lower training.eval_every"
            )
        tensors, _ = checkpoint.read(self.run_dir / BEST)
        self.evaluated_model.load_state_dict(tensors)
        return self.task.evaluate(self.evaluated_model)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the run after the current step."""

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
            "parent": self.parent,
            **self.task.identity(),
        }

    def _agree(self) -> None:
        """Copy the weights and the optimizer's state from rank 0."""
        average = [] if self.average is None else self.average.parameters()
        state = checkpoint.optimizer_tensors(self.optimizer)
        with torch.no_grad():
            processes.agree([*self.model.parameters(), *average, *state.values()])

    def save(self) -> None:
        """Write everything that the run needs to continue as if it had never stopped.

        All processes call it together, and rank 0 writes.
        """
        self._agree()
        task_tensors, task_record = self.task.state()
        task_tensors = processes.collected(task_tensors)
        if processes.rank():
            return
        tensors = {
            **checkpoint.prefixed("model", self.model.state_dict()),
            **checkpoint.prefixed("optimizer", checkpoint.optimizer_tensors(self.optimizer)),
            **checkpoint.prefixed("task", task_tensors),
        }
        if self.average is not None:
            tensors |= checkpoint.prefixed("average", self.average.state_dict())
        record = {
            **self._identity(),
            "step": self.step,
            "best_rank": self.best_rank,
            "best_step": self.best_step,
            "evaluations_since_best": self.evaluations_since_best,
            "seconds": self.seconds,
            "interval_nats": self.interval_nats,
            "interval_tokens": self.interval_tokens,
            "task": task_record,
        }
        checkpoint.save(self.run_dir / LAST, tensors, record)

    def resume(self) -> None:
        """Continue from the last checkpoint. Raises TrainingError if it is another experiment's.

        Options that may change (`changes.py`) take their new values from here on.
        """
        tensors, record = checkpoint.read(self.run_dir / LAST)
        self._check_same_experiment(record)
        self.model.load_state_dict(checkpoint.unprefixed("model", tensors))
        if self.average is not None:
            self.average.load_state_dict(checkpoint.unprefixed("average", tensors))
        checkpoint.restore_optimizer(self.optimizer, checkpoint.unprefixed("optimizer", tensors))
        self.task.restore(checkpoint.unprefixed("task", tensors), record["task"])
        self.step = record["step"]
        best_rank = record["best_rank"]
        self.best_rank = None if best_rank is None else tuple(best_rank)
        self.best_step = record["best_step"]
        self.evaluations_since_best = record["evaluations_since_best"]
        self.seconds = record["seconds"]
        self.interval_nats = record["interval_nats"]
        self.interval_tokens = record["interval_tokens"]
        self.parent = record.get("parent")
        if processes.rank() == 0:
            self._update_best_record()

    def _check_same_experiment(self, record: dict[str, Any]) -> None:
        where = self.run_dir
        other = "train it as a run of its own (--run)"
        # Parsed, so that an option that is newer than the run has its default in both.
        old = parse_config(record["config"]).model_dump(mode="json")
        change = forbidden_change(old, self.config.model_dump(mode="json"))
        if change is not None:
            raise TrainingError(f"{where}: {change}; set it back to continue, or {other}")
        mine = self.task.identity()
        if record["corpus_sha256"] != mine["corpus_sha256"]:
            raise TrainingError(
                f"{where}: the text has changed since the run began; put it back, or {other}"
            )
        if any(record.get(key) != value for key, value in mine.items()):
            raise TrainingError(f"{where}: the text gives another vocabulary than before; {other}")

    def _update_best_record(self) -> None:
        """Store the current configuration beside the best weights: a bundle quotes it."""
        path = self.run_dir / BEST
        if not path.exists():
            return
        tensors, record = checkpoint.read(path)
        if record["config"] != self._identity()["config"]:
            checkpoint.save(path, tensors, {**record, **self._identity()})


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def parameter_count(model: nn.Module) -> int:
    """Trained parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
