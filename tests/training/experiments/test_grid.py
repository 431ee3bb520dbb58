"""A grid: its points, their folders, and that all are checked before any is trained."""

from pathlib import Path

import pytest

from tests.training.helpers import tiny_document, write_toml
from training.config import ConfigError
from training.experiments.grid import Grid, open_grid, same_run


def opened(folder: Path, *words: str) -> Grid:
    return open_grid(write_toml(folder / "tiny.toml", tiny_document()), words, folder / "runs")


def test_a_grid_is_every_combination_and_the_last_option_varies_fastest(tmp_path: Path) -> None:
    grid = opened(tmp_path, "model.hidden_size=8,9", "model.cell=lstm,gru")
    assert [point.label for point in grid.points] == [
        'hidden_size=8, cell="lstm"',
        'hidden_size=8, cell="gru"',
        'hidden_size=9, cell="lstm"',
        'hidden_size=9, cell="gru"',
    ]
    assert [point.index for point in grid.points] == [0, 1, 2, 3]
    assert grid.point(3).config.model_dump()["model"]["hidden_size"] == 9


def test_a_folder_is_named_by_what_was_set(tmp_path: Path) -> None:
    grid = opened(tmp_path, "model.cell=lstm,gru", "training.learning_rate=1e-2")
    assert [point.run_dir.name for point in grid.points] == [
        "cell=lstm,learning_rate=0.01",
        "cell=gru,learning_rate=0.01",
    ]


def test_a_folders_name_holds_no_odd_characters_and_stays_unique(tmp_path: Path) -> None:
    grid = opened(tmp_path, f"description=a/b,a:b,../..,{'x' * 500},{'x' * 501}")
    names = [point.run_dir.name for point in grid.points]
    assert len(set(names)) == 5
    assert all(len(name) < 200 for name in names)
    assert not any(set(name) & set("/:\"' ") for name in names)


def test_an_option_with_one_value_is_in_the_folders_name_alone(tmp_path: Path) -> None:
    grid = opened(tmp_path, "training.seed=3", "model.cell=lstm,gru")
    assert [point.label for point in grid.points] == ['cell="lstm"', 'cell="gru"']
    assert [point.run_dir.name for point in grid.points] == ["seed=3,cell=lstm", "seed=3,cell=gru"]


def test_options_of_the_same_name_are_named_by_their_section(tmp_path: Path) -> None:
    grid = opened(tmp_path, "data.license=a,b", "license=c,d", "data.title=e,f")
    assert grid.points[0].label == 'data.license="a", license="c", title="e"'


def test_without_a_folder_the_runs_lie_beside_the_other_runs(tmp_path: Path) -> None:
    path = write_toml(tmp_path / "tiny.toml", tiny_document())
    assert open_grid(path, ["training.seed=1,2"]).folder == Path("runs/tiny-sweep")


def test_every_mistake_of_the_grid_is_reported_once_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(
            tmp_path, "model.hidden_size=8,0", "model.cell=lstm,foo", "model.tie_embeddings=true"
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("--set") is False  # sizes that do not fit are no fault of one option
    assert sum(line.startswith('--set model.cell="foo": ') for line in lines) == 1
    assert sum(line.startswith("--set model.hidden_size=0: ") for line in lines) == 1


def test_hundreds_of_mistakes_are_counted(tmp_path: Path) -> None:
    values = ",".join(str(-x) for x in range(100))
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, f"model.hidden_size={values}")
    assert str(caught.value).splitlines()[-1] == "and 80 more"


def test_two_runs_of_one_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are the same configuration"):
        opened(tmp_path, "training.learning_rate=1,1.0")


def test_the_figure_that_sorts_the_table_is_no_option_of_a_grid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the table is sorted by it"):
        opened(tmp_path, "training.select_by=loss,bleu")


def test_an_unknown_run_is_refused_with_the_known_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--only 2: the runs are numbered 0 to 1"):
        opened(tmp_path, "training.seed=1,2").point(2)


def test_a_run_is_the_same_whatever_its_threads(tmp_path: Path) -> None:
    one, two = opened(tmp_path, "training.threads=1,2").points
    other = opened(tmp_path, "training.seed=9").points[0]
    assert same_run(one.config, two.config.model_dump(mode="json"))
    assert not same_run(one.config, other.config.model_dump(mode="json"))
    assert not same_run(one.config, {"name": "from an older version"})
