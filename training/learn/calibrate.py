"""How fast this machine trains: real steps of the model, timed for a few seconds."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.experiments.experiment import Data, TrainedExperiment
from training.learn.plan import Speed
from training.loop.trainer import Trainer

_WARM_UP_STEPS = 3
_SECONDS = 3.0
_MAX_STEPS = 200

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of a short training."""

    loss: float  # the best on the validation split
    step: int  # of that
    step_s: float  # seconds a step, evaluations included


def measure(
    experiment: TrainedExperiment[Data], data: Data, clock: Clock = time.monotonic
) -> Speed:
    """The seconds of a step and of an evaluation. The weights are thrown away."""
    with _trainer(experiment, data) as trainer:
        step_s = _step_seconds(trainer, clock)
        started = clock()
        trainer.task.evaluate(trainer.evaluated_model)
        return Speed(step_s, clock() - started)


def try_out(experiment: TrainedExperiment[Data], data: Data) -> Trial:
    """Train to the end and keep nothing but the result."""
    options = experiment.config.training
    best, waited = Trial(math.inf, 0, 0.0), 0
    started = time.monotonic()
    with _trainer(experiment, data) as trainer:
        while trainer.step < options.steps and waited < (options.patience or options.steps):
            trainer.train_step()
            if trainer.step % options.eval_every == 0 or trainer.step == options.steps:
                loss = trainer.task.evaluate(trainer.evaluated_model).loss
                waited = 0 if loss < best.loss else waited + 1
                if loss < best.loss:
                    best = Trial(loss, trainer.step, 0.0)
        return replace(best, step_s=(time.monotonic() - started) / trainer.step)


@contextmanager
def _trainer(experiment: TrainedExperiment[Data], data: Data) -> Iterator[Trainer[Any]]:
    task = experiment.task(data)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            yield Trainer(experiment.config, task, Path(scratch))
        finally:
            task.close()


def _step_seconds(trainer: Trainer[Any], clock: Clock) -> float:
    """The mean without the slowest steps, which another program may have interrupted."""
    for _ in range(_WARM_UP_STEPS):
        trainer.train_step()
    seconds: list[float] = []
    started = clock()
    while len(seconds) < _MAX_STEPS and (clock() - started < _SECONDS or len(seconds) < 3):
        before = clock()
        trainer.train_step()
        seconds.append(clock() - before)
    return statistics.mean(sorted(seconds)[: max(1, len(seconds) * 19 // 20)])
