"""Trains every case on the processes that torchrun has started: see `test_processes.py`.

Run by `torchrun … -m tests.training.loop.ranks FOLDER`, where FOLDER/case.N is the folder of case N
with its checkpoint of the first half on threads.
"""

import shutil
import sys
from pathlib import Path

from tests.training.loop.cases import CASES, train
from training.loop import processes
from training.loop.checkpoint import LAST


def main(folder: Path) -> None:
    """Leaves begun.safetensors, the first half, and ended.safetensors, resumed from threads."""
    with processes.joined():
        for number, make in enumerate(CASES.values()):
            case = folder / f"case.{number}"
            own = folder / f"rank.{processes.rank()}" / case.name
            run = make(own)
            train(run)
            if processes.rank() == 0:
                shutil.copy(own / LAST, case / "begun.safetensors")
            run.task.close()
            run = make(own)
            shutil.copy(case / "half.safetensors", own / LAST)
            run.resume()
            train(run)
            if processes.rank() == 0:
                shutil.copy(own / LAST, case / "ended.safetensors")
            run.task.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
