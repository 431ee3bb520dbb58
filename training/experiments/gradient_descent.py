"""Training by gradient descent, as every kind of network is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import TrainedConfig
from training.experiments.experiment import Start
from training.loop.task import Task
from training.loop.trainer import Trainer


@dataclass(frozen=True, slots=True)
class GradientDescent:
    """See `experiment.Training`."""

    trainer: Trainer[Any]
    resumed: bool

    def run(self) -> Sequence[str]:
        """Every step that is left."""
        trainer = self.trainer
        valid = trainer.run(resumed=self.resumed)
        lines = [
            f"best step {trainer.best_step}; {trainer.seconds:.0f} s of training and evaluation",
            f"valid: {valid.line}",
        ]
        if trainer.step < trainer.config.training.steps:
            waited = trainer.evaluations_since_best
            lines.append(
                f"ended after step {trainer.step}: {waited} evaluations without a better one "
                "(patience)"
            )
        return lines

    def follow(self) -> int | None:
        """Every step that rank 0 announces."""
        return self.trainer.follow()


def gradient_descent(
    config: TrainedConfig, task: Task[Any], run_dir: Path, start: Start | None, *, resume: bool
) -> GradientDescent:
    """A training from the start, from other weights, or from the run's last checkpoint.

    Raises TrainingError for a checkpoint of another experiment.
    """
    if start is not None:
        start.load_into(task.model)
    parent = start.record if start is not None else None
    trainer: Trainer[Any] = Trainer(config, task, run_dir, parent=parent)
    if resume:
        trainer.resume()
    return GradientDescent(trainer, resume)
