"""Ray Data: `python -m service.cluster.scoring` scores files on all nodes of a cluster.

    python -m service.cluster.scoring --bundle models/alice-lstm --input logs --output scores

`ScoreTexts` is the stage alone, for your own pipelines: `dataset.map_batches(ScoreTexts, …)`.
Bundle, inputs and output are paths that exist on every node, such as a shared volume.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from service.cli.answers import CommandError
from service.cli.bundle import Bundle
from service.cli.file_scorer import FileScorer, Item
from service.cli.parser import command_parser
from service.cli.scored_rows import figure_columns

# Large enough that rows of many texts go through the model together.
BATCH_ROWS = 2048
# Rows that a process is handed: few enough that one file of medium size keeps all of them busy.
_BLOCK_ROWS = 4096
_FILE_ROWS = 100_000  # of output, at least
ERROR = "score_error"


class ScoreTexts:
    """Adds the figures of `/score` to batches (`batch_format="pyarrow"`) with a column of texts."""

    def __init__(self, bundle: str, column: str = "text", options: Sequence[str] = ()) -> None:
        """`options` are those of `python -m service score`, such as `--eos`.

        Raises CommandError for options whose figures are lists.
        """
        parsed = command_parser().parse_args(["score", "--bundle", bundle, *options])
        self._figures = figure_columns(parsed)
        self._scorer = FileScorer(Bundle(Path(bundle)), parsed)
        self._column = column
        self._scorer(None)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with the columns of the figures; null, with `score_error`, where there is none.

        Raises BatchError if no text could be scored with these options.
        """
        items = [
            Item(i, text or "", error="no text" if text is None else None)
            for i, text in enumerate(batch[self._column].to_pylist())
        ]
        self._scorer.score([item for item in items if item.error is None])
        for name, is_whole in self._figures.items():
            kind = pa.int64() if is_whole else pa.float64()
            figures = pa.array([item.result.get(name) for item in items], kind)
            batch = batch.append_column(name, figures)
        return batch.append_column(ERROR, pa.array([item.error for item in items], pa.string()))


def score_dataset(
    dataset: Any, bundle: str, *, column: str = "text", options: Sequence[str] = (), workers: int
) -> Any:
    """The dataset with its scores: `workers` processes, each with a processor and the bundle."""
    blocks = dataset.repartition(target_num_rows_per_block=_BLOCK_ROWS)
    return blocks.map_batches(
        ScoreTexts,
        fn_constructor_kwargs={"bundle": bundle, "column": column, "options": list(options)},
        batch_format="pyarrow",
        batch_size=BATCH_ROWS,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )


def _read(paths: Sequence[str], form: str, column: str) -> Any:
    if form == "parquet":
        return ray.data.read_parquet(list(paths), include_paths=True)
    if form == "ndjson":
        return ray.data.read_json(list(paths), lines=True, include_paths=True)
    dataset = ray.data.read_text(list(paths), include_paths=True, drop_empty_lines=False)
    return dataset if column == "text" else dataset.rename_columns({"text": column})


def main(arguments: Sequence[str]) -> int:
    """Read, score and write, on the cluster that this machine belongs to."""
    parser = argparse.ArgumentParser(
        prog="python -m service.cluster.scoring",
        description=(__doc__ or "").partition("\n")[0],
        epilog="Takes the options of `python -m service score`, too, such as --eos.",
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--input", nargs="+", required=True, help="files or folders")
    parser.add_argument("--output", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--read", choices=("text", "ndjson", "parquet"), default="text")
    parser.add_argument("--field", default="text", help="the column with the texts")
    parser.add_argument("--workers", type=int, help="default: the cluster's processors, minus one")
    options, more = parser.parse_known_args(arguments)
    try:
        # Before the cluster has work: a wrong option ends the command here.
        figure_columns(command_parser().parse_args(["score", "--bundle", ".", *more]))
    except CommandError as error:
        parser.error(str(error))
    ray.init(address="auto", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    workers = options.workers or max(1, int(ray.cluster_resources()["CPU"]) - 1)
    dataset = _read([str(Path(x).resolve()) for x in options.input], options.read, options.field)
    scored = score_dataset(
        dataset,
        str(options.bundle.resolve()),
        column=options.field,
        options=more,
        workers=workers,
    )
    scored.write_parquet(str(options.output.resolve()), min_rows_per_file=_FILE_ROWS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
