"""A run in several processes: rank 0 sends the others what they need to train their shares.

That is the configuration and the prepared data, so that the other machines need neither the user's
files nor a shared folder.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from training.config import AnyConfig, ConfigError, parse_config
from training.experiments.experiment import Experiment
from training.experiments.kinds import experiment_of, trained_experiment_of
from training.loop import processes
from training.loop.checkpoint import LAST
from training.loop.replicas import own_shares
from training.loop.task import TrainingError


def check_divides(config: AnyConfig) -> None:
    """Raise TrainingError unless these processes can share the training of a configuration."""
    if processes.count() == 1:
        return
    try:
        options = trained_experiment_of(config).config.training
    except ConfigError as error:
        raise TrainingError(f"{error}; one process is enough: start it without torchrun") from error
    own_shares(options.replicas)


def offer(experiment: Experiment[Any], run_dir: Path, *, resume: bool) -> None:
    """On rank 0: send the other processes what they need; see `follow_run`."""
    names = [experiment.stored, *([LAST] if resume else [])]
    document = {
        "torch": torch.__version__,
        "config": experiment.config.model_dump(mode="json"),
        "resume": resume,
    }
    processes.offer(run_dir, names, document)


def follow_run() -> int:
    """On any other rank: train until rank 0 ends. Returns 0, or 128 + n if signal n ended it.

    Raises LostContact if rank 0 ends in another way, and TrainingError if the run cannot start.
    """
    scratch = Path(tempfile.mkdtemp(prefix="unroll-rank-"))
    try:
        run_dir, document = processes.received(scratch)
        if document["torch"] != torch.__version__:
            raise TrainingError(
                f"rank {processes.rank()}: torch {torch.__version__} is installed here, and "
                f"{document['torch']} on the machine of rank 0; install the same version"
            )
        experiment = experiment_of(parse_config(document["config"]))
        resume: bool = document["resume"]
        data = experiment.open(run_dir)
        ended_by = experiment.training(run_dir, data, start=None, resume=resume).follow()
        return 128 + ended_by if ended_by else 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
