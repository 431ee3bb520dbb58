"""`python -m training.datasets NAME [OUT_FOLDER]`."""

import argparse
import sys
from pathlib import Path

from training.datasets.errors import DatasetError
from training.datasets.table import DATASETS


def main(argv: list[str] | None = None) -> int:
    """Build one data set and say what it holds; 1 with one `error:` line if it cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m training.datasets")
    parser.add_argument("name", choices=list(DATASETS), metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument("folder", nargs="?", type=Path, help="default: data/NAME")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path("data", arguments.name)
    try:
        lines = DATASETS[arguments.name](folder)
    except DatasetError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.writelines(f"{line}\n" for line in [*lines, f"written to {folder}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
