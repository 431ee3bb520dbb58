"""A sweep: who trains when, what is skipped, what a signal does; with shells as children."""

import json
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.training.helpers import FABLE, tiny_document, write_toml
from training.config import ConfigError
from training.experiments.grid import Grid, Point, open_grid
from training.experiments.kinds import experiment_of
from training.experiments.outcomes import Row, State, locked, rows_of
from training.experiments.sweep import Command, sweep
from training.loop import checkpoint
from training.loop.checkpoint import BEST, LAST
from training.loop.trainer import Stopped


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Three runs."""
    (tmp_path / "text.txt").write_text(FABLE)
    config = write_toml(tmp_path / "tiny.toml", tiny_document())
    return open_grid(config, ["training.seed=1,2,3"], tmp_path / "runs")


def shell(script: str, *, only: int | None = None) -> Command:
    """Every child runs `script`, or the child of one run does and the others end at once."""

    def command(point: Point, resume: bool) -> Sequence[str]:
        own = script if only in (None, point.index) else "true"
        return ["sh", "-c", own, str(resume), str(point.index)]

    return command


def trained(grid: Grid, command: Command, jobs: int = 1) -> tuple[bool, list[str]]:
    lines: list[str] = []
    finished = sweep(grid, grid.points, jobs=jobs, command=command, say=lines.append)
    return finished, lines


def by_index(grid: Grid) -> list[Row]:
    return sorted(rows_of(grid), key=lambda row: row.index)


def states(grid: Grid) -> list[State]:
    return [row.state for row in by_index(grid)]


def test_a_run_that_fails_does_not_end_the_others_and_its_cause_is_in_the_table(grid: Grid) -> None:
    finished, lines = trained(grid, shell("echo begun; echo error: no luck; exit 1", only=1))
    assert not finished
    assert states(grid) == [State.FINISHED, State.FAILED, State.FINISHED]
    assert sum("failed: no luck" in line for line in "\n".join(lines).splitlines()) == 2
    tsv = (grid.folder / "table.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in tsv] == ["index", "0", "2", "1"]
    runs = json.loads((grid.folder / "table.json").read_text())["runs"]
    assert [(x["index"], x["cause"]) for x in runs] == [(0, None), (2, None), (1, "no luck")]


def test_the_same_command_skips_what_is_finished_and_trains_again_what_failed(grid: Grid) -> None:
    trained(grid, shell("exit 1", only=1))
    script = f'echo "$1" >> {shlex.quote(str(grid.folder))}/again'
    finished, lines = trained(grid, shell(script))
    assert finished
    assert (grid.folder / "again").read_text() == "1\n"
    assert "2 of them finished" in lines[0]


def test_a_finished_run_of_an_older_configuration_is_not_taken_for_the_new_one(grid: Grid) -> None:
    trained(grid, shell("true"))
    path = write_toml(grid.config_path, tiny_document(training={"steps": 11}))
    new = open_grid(path, ["training.seed=1,2,3"], grid.folder)
    assert State.FINISHED not in states(new)


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("kill -KILL $$", "killed by SIGKILL"),
        ("echo Traceback; echo ValueError: bad", "ValueError: bad"),
        ("true", "ended with status 3"),
        ("echo 'error: the first of'; echo several lines", "the first of"),
    ],
)
def test_a_cause_is_the_error_or_the_last_line_or_the_signal(
    grid: Grid, script: str, cause: str
) -> None:
    trained(grid, shell(f"{script}; exit 3", only=0))
    assert by_index(grid)[0].cause == cause


def test_as_many_runs_as_asked_train_at_once(grid: Grid) -> None:
    log = shlex.quote(str(grid.folder / "events"))
    script = (
        f"echo + >> {log}; while [ $(wc -l < {log}) -lt 2 ]; do sleep 0.01; done; echo - >> {log}"
    )
    assert trained(grid, shell(script), jobs=2)[0]
    events = (grid.folder / "events").read_text().split()
    assert events[:2] == ["+", "+"]
    assert max(events[:n].count("+") - events[:n].count("-") for n in range(len(events) + 1)) == 2


def test_a_run_that_another_process_trains_is_left_to_it(grid: Grid) -> None:
    with locked(grid.points[1].run_dir) as lock:
        assert lock is not None
        finished, lines = trained(grid, shell("true"))
        assert states(grid) == [State.FINISHED, State.RUNNING, State.FINISHED]
    assert not finished
    assert any("seed=2: another process is training it" in line for line in lines)


def test_a_child_keeps_its_folder_locked_when_its_parent_is_gone(grid: Grid) -> None:
    """As after SIGKILL: the lock lasts until the child, here one that went to the background."""
    end = grid.folder / "end"
    script = f"(while [ ! -e {shlex.quote(str(end))} ]; do sleep 0.01; done) >/dev/null 2>&1 &"
    trained(grid, shell(script, only=0))
    assert states(grid)[0] == State.RUNNING
    end.touch()
    while states(grid)[0] == State.RUNNING:
        pass
    assert states(grid)[0] == State.FINISHED


def test_a_signal_lets_every_child_end_in_order_and_starts_no_more(grid: Grid) -> None:
    folder = shlex.quote(str(grid.folder))
    script = (
        f"trap 'echo $1 >> {folder}/saved; exit 143' TERM; echo >> {folder}/ready; "
        f"if [ $(wc -l < {folder}/ready) = 2 ]; then kill -INT $PPID; fi; "
        "while true; do sleep 0.01; done"
    )
    # A job in a shell's background ignores it, and so does a sweep there.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Stopped) as caught:
            trained(grid, shell(script), jobs=2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)
    assert caught.value.signal_number == signal.SIGINT
    assert sorted((grid.folder / "saved").read_text().split()) == ["0", "1"]
    assert State.FAILED not in states(grid)
    assert not grid.points[2].run_dir.exists()


def test_a_second_signal_kills_children_that_do_not_end(grid: Grid) -> None:
    saved = shlex.quote(str(grid.folder / "told"))
    script = f"trap 'touch {saved}; kill -TERM $PPID' TERM; kill -TERM $PPID; "
    with pytest.raises(Stopped):
        trained(grid, shell(script + "while true; do sleep 0.01; done"))
    assert (grid.folder / "told").exists()


def test_weights_without_a_checkpoint_are_trained_from_the_beginning(grid: Grid) -> None:
    run_dir = grid.points[0].run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "best.safetensors").write_bytes(b"of a run that was killed")
    trained(grid, shell(f'[ "$0" = False ] && ! [ -e {shlex.quote(str(run_dir))}/best* ]', only=0))
    assert states(grid)[0] == State.FINISHED


def test_a_text_that_is_not_there_is_found_before_anything_is_trained(grid: Grid) -> None:
    (grid.config_path.parent / "text.txt").unlink()
    with pytest.raises(ConfigError, match=r"data.files: nothing matches"):
        trained(grid, shell("true"))
    assert not any(point.run_dir.exists() for point in grid.points)


def checkpointed(point: Point, sha256: str) -> None:
    point.run_dir.mkdir(parents=True, exist_ok=True)
    for name in (BEST, LAST):
        checkpoint.save(point.run_dir / name, {}, {"corpus_sha256": sha256})


def test_figures_of_another_text_are_not_put_into_one_table(grid: Grid) -> None:
    point = grid.point(1)
    config = grid.config_path.parent
    checkpointed(point, experiment_of(point.config).input_digest(config))
    trained(grid, shell("true"))
    (config / "text.txt").write_text(FABLE * 2)
    with pytest.raises(ConfigError, match="the text has changed since the run began"):
        trained(grid, shell("true"))


def test_a_run_whose_text_is_gone_is_finished_all_the_same(grid: Grid) -> None:
    for point in grid.points:
        checkpointed(point, "known")
    (grid.config_path.parent / "text.txt").unlink()
    assert trained(grid, shell("true"))[0]


def test_a_damaged_checkpoint_fails_its_own_run_alone(grid: Grid) -> None:
    run_dir = grid.point(1).run_dir
    run_dir.mkdir(parents=True)
    (run_dir / LAST).write_bytes(b"x")
    trained(grid, shell("exit 1", only=1))
    assert states(grid) == [State.FINISHED, State.FAILED, State.FINISHED]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_outcome_is_named(grid: Grid, text: str) -> None:
    trained(grid, shell("true"))
    (grid.point(1).run_dir / "outcome.json").write_text(text)
    with pytest.raises(ConfigError, match="damaged; without it"):
        rows_of(grid)
