#!/bin/bash
# A grid as a Slurm job array, with one run for each task. Give the numbers that `sweep --list` prints:
#
#   sbatch --array=0-3 docker/sweep/slurm.sh CONFIG.toml --set model.hidden_size=256,512 --set …
#
#SBATCH --job-name=sweep
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%A_%a.log
# Two minutes before the time is up, and at preemption, the run writes its checkpoint.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
exec "${PYTHON:-.venv/training/bin/python}" -m training sweep "$@" --only "$SLURM_ARRAY_TASK_ID"
