"""`python -m training`: what every command prints, its exit status, and one line for an error."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.bundle.store import read_language_model
from tests.training.helpers import FABLE, Main, tiny_document, write_toml
from training.__main__ import main
from training.data.corpus import Split
from training.loop import trainer
from training.loop.language_model import load_best
from training.loop.run_log import read_log


def configured(folder: Path, text: str = FABLE, **sections: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text)
    return write_toml(folder / "tiny.toml", tiny_document(**sections))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("main")
    training = {"steps": 40, "learning_rate": 0.02, "eval_every": 20}
    config = configured(folder, training=training, baselines={"max_order": 4})
    assert main(["train", str(config), "--run", str(folder / "run")]) == 0
    return folder / "run"


def rows(table: str) -> dict[str, list[float]]:
    """Name to the numbers of every line of a table: three, and perhaps a standard error."""
    found = re.finditer(
        r"^(\S.*?) +([\d.]+) +([\d.]+) +([\d.]+)(?: +[\d.]+)?$", table, re.MULTILINE
    )
    return {x[1]: [float(x[i]) for i in (2, 3, 4)] for x in found}


def assert_one_line(stderr: str, *parts: str) -> None:
    *_, line = stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in stderr
    for part in parts:
        assert part in line


# --- train --------------------------------------------------------------------------------------


def test_training_ends_with_the_model_beside_the_unigram_and_every_order(
    tmp_path: Path, call: Main
) -> None:
    config = configured(tmp_path, baselines={"max_order": 4})
    status, stdout, _ = call("train", config, "--run", tmp_path / "run")
    assert status == 0
    table = rows(stdout)
    assert sorted(table) == [
        "kneser-ney 2-gram",
        "kneser-ney 3-gram",
        "kneser-ney 4-gram",
        "tiny (PyTorch)",
        "unigram",
    ]
    losses = [loss for loss, _, _ in table.values()]
    assert losses == sorted(losses, reverse=True)  # best last


def test_the_tables_figures_are_the_metrics_that_the_run_keeps(tmp_path: Path, call: Main) -> None:
    _, stdout, _ = call("train", configured(tmp_path), "--run", tmp_path / "run")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["split"] == "test"
    assert rows(stdout) == {
        x["name"]: [
            round(x["loss"], 4),
            round(x["bits_per_char"], 4),
            round(x["perplexity"], 3),
        ]
        for x in metrics["measurements"]
    }


def test_training_says_how_the_text_is_split(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path, text="ab" * 500, training={"steps": 1})
    _, stdout, _ = call("train", config, "--run", tmp_path / "run")
    first = (
        "tiny: 1 file; 800 characters to train, 100 characters to validate, "
        "100 characters to test; 6 tokens (2 characters, 4 special)"
    )
    assert stdout.splitlines()[0] == first


def test_without_a_test_split_the_validation_split_is_reported(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path, data={"test_fraction": 0.0}, training={"steps": 5})
    _, stdout, _ = call("train", config, "--run", tmp_path / "run")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["split"] == "valid"
    assert f"valid: loss {metrics['measurements'][0]['loss']:.4f}" in stdout


def test_a_run_stands_in_runs_under_its_name(
    tmp_path: Path, call: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured(tmp_path / "configs", training={"steps": 1})
    assert call("train", config)[0] == 0
    assert (tmp_path / "runs/tiny/best.safetensors").exists()
    assert (tmp_path / "runs/tiny/config.toml").read_bytes() == config.read_bytes()


def test_a_run_is_not_overwritten(trained: Path, call: Main) -> None:
    before = (trained / "best.safetensors").read_bytes()
    status, _, stderr = call("train", trained.parent / "tiny.toml", "--run", trained)
    assert status == 1
    assert_one_line(stderr, "holds a run; add --resume, or name another folder with --run")
    assert (trained / "best.safetensors").read_bytes() == before


def test_resuming_a_finished_run_only_reports_it_again(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path)
    _, first, _ = call("train", config, "--run", tmp_path / "run")
    status, again, _ = call("train", config, "--run", tmp_path / "run", "--resume")
    assert status == 0
    assert rows(again) == rows(first)


def test_resuming_with_a_changed_configuration_is_refused_and_changes_nothing(
    tmp_path: Path, call: Main
) -> None:
    config = configured(tmp_path)
    call("train", config, "--run", tmp_path / "run")
    before = config.read_bytes()
    configured(tmp_path, training={"bptt_len": 20})
    status, _, stderr = call("train", config, "--run", tmp_path / "run", "--resume")
    assert status == 1
    assert_one_line(stderr, "training.bptt_len: it was ", ", but the configuration has 20;")
    assert (tmp_path / "run/config.toml").read_bytes() == before


def test_resuming_with_a_changed_text_is_refused(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path)
    call("train", config, "--run", tmp_path / "run")
    configured(tmp_path, text=FABLE + "more")
    status, _, stderr = call("train", config, "--run", tmp_path / "run", "--resume")
    assert status == 1
    assert_one_line(stderr, "the text has changed since the run began")


def test_there_must_be_something_to_resume(tmp_path: Path, call: Main) -> None:
    arguments = ("train", configured(tmp_path), "--run", tmp_path / "run", "--resume")
    status, _, stderr = call(*arguments)
    assert status == 1
    assert_one_line(stderr, "there is no run to continue")


def test_a_finished_run_can_be_trained_on_from_its_folder_alone(tmp_path: Path, call: Main) -> None:
    config = configured(
        tmp_path / "made", data={"title": "Fables"}, training={"steps": 4, "eval_every": 2}
    )
    call("train", config, "--run", tmp_path / "made/run")
    (tmp_path / "made/run").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "made")
    own = tmp_path / "moved/config.toml"
    words = own.read_text().replace("steps = 4", "steps = 8").replace('"Fables"', '"Aesop"')
    own.write_text(words)
    status, stdout, _ = call("train", tmp_path / "moved", "--resume")
    assert status == 0
    assert stdout.splitlines()[-1].endswith(f"export {tmp_path / 'moved'}")
    assert "not compared" in stdout.splitlines()[0]
    assert call("sample", tmp_path / "moved", "--n", 3)[0] == 0
    assert call("evaluate", tmp_path / "moved")[0] == 0
    models = tmp_path / "models"
    assert call("export", tmp_path / "moved", "--models", models)[0] == 0
    manifest = read_language_model(models / "tiny").manifest
    assert (manifest.training.steps, manifest.data.name) == (8, "Aesop")


def test_a_run_that_was_stopped_early_exports_its_best_weights(
    tmp_path: Path, call: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signal_at_step_five(step: int, _: object) -> float:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return 1e-3

    monkeypatch.setattr(trainer, "learning_rate", signal_at_step_five)
    config = configured(tmp_path, training={"steps": 100, "eval_every": 4})
    assert call("train", config, "--run", tmp_path / "run")[0] == 128 + signal.SIGINT
    assert not (tmp_path / "run/metrics.json").exists()
    assert call("export", tmp_path / "run", "--models", tmp_path / "models")[0] == 0
    manifest = read_language_model(tmp_path / "models/tiny").manifest
    assert manifest.training.steps == 4
    assert {x.kind for x in manifest.metrics.measurements} == {"model", "baseline"}


def test_a_run_without_an_evaluation_says_so(
    tmp_path: Path, call: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signal_at_once(_: int, __: object) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 1e-3

    monkeypatch.setattr(trainer, "learning_rate", signal_at_once)
    call("train", configured(tmp_path), "--run", tmp_path / "run")
    for command in ("export", "evaluate", "sample"):
        status, _, stderr = call(command, tmp_path / "run")
        assert status == 1
        assert_one_line(stderr, "stopped before its first evaluation", "--resume")


def test_a_run_that_explodes_says_so(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path, training={"learning_rate": 1e6})
    status, _, stderr = call("train", config, "--run", tmp_path / "run")
    assert status == 1
    assert_one_line(stderr, "diverged at step", "training.learning_rate")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_the_step_in_hand(
    tmp_path: Path, call: Main, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    steps: list[int] = []

    def signal_at_step_four(step: int, _: object) -> float:
        steps.append(step)
        if len(steps) == 4:
            os.kill(os.getpid(), number)
        return 1e-3

    handler = signal.getsignal(number)
    monkeypatch.setattr(trainer, "learning_rate", signal_at_step_four)
    config = configured(tmp_path, training={"log_every": 100})
    status, stdout, _ = call("train", config, "--run", tmp_path / "run")
    assert status == 128 + number
    run = tmp_path / "run"
    assert stdout.splitlines()[-1] == (
        f"stopped by {number.name}; to continue: python -m training train {run} --resume; "
        f"`export {run}` takes the best weights so far"
    )
    assert len(steps) == 4
    assert signal.getsignal(number) is handler
    assert call("train", config, "--run", tmp_path / "run", "--resume")[0] == 0
    assert steps[4] == 4


def test_samples_are_shown_while_it_trains(tmp_path: Path, call: Main) -> None:
    training = {"sample_chars": 20, "sample_prompt": "the fox\nran"}
    config = configured(tmp_path, training=training)
    _, _, stderr = call("train", config, "--run", tmp_path / "run")
    assert stderr.count("    the fox\n    ran") == 2


# --- evaluate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_any_split_can_be_evaluated(trained: Path, call: Main, split: str) -> None:
    status, stdout, _ = call("evaluate", trained, "--split", split)
    assert status == 0
    assert re.match(rf"{split}, \d+ characters\n", stdout)
    assert list(rows(stdout)) == ["tiny"]


def test_evaluation_repeats_what_training_reported(trained: Path, call: Main) -> None:
    status, stdout, _ = call("evaluate", trained)
    (model, *_) = json.loads((trained / "metrics.json").read_text())["measurements"]
    assert status == 0
    assert rows(stdout)["tiny"][0] == round(model["loss"], 4)


def test_the_validation_loss_is_the_logs_best(trained: Path, call: Main) -> None:
    _, stdout, _ = call("evaluate", trained, "--split", "valid")
    logged = [x["loss"] for x in read_log(trained / "log.jsonl") if x["kind"] == "valid"]
    assert rows(stdout)["tiny"][0] == round(min(logged), 4)


def test_a_split_without_text_cannot_be_evaluated(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path, data={"test_fraction": 0.0}, training={"steps": 1})
    call("train", config, "--run", tmp_path / "run")
    status, _, stderr = call("evaluate", tmp_path / "run", "--split", "test")
    assert status == 1
    assert_one_line(stderr, "the test split is empty")


# --- sample -------------------------------------------------------------------------------------


def test_a_sample_is_decided_by_its_seed(trained: Path, call: Main) -> None:
    def sampled(seed: int) -> str:
        arguments = ("sample", trained, "--prompt", "the fox ", "--max-tokens", 40)
        status, stdout, _ = call(*arguments, "--seed", seed)
        assert status == 0
        return str(stdout)

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(1).startswith("the fox ")


def test_a_reader_that_wants_no_more_ends_the_samples_without_a_word(trained: Path) -> None:
    command = [sys.executable, "-m", "training", "sample", str(trained), "--n", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_sample_is_as_long_as_asked_at_most(trained: Path, call: Main) -> None:
    _, stdout, _ = call("sample", trained, "--prompt", "a", "--max-tokens", 5)
    assert 1 <= len(stdout.removesuffix("\n")) <= 6
    assert call("sample", trained, "--prompt", "a", "--max-tokens", 0)[1] == "a\n"


def test_a_greedy_sample_does_not_depend_on_the_seed(trained: Path, call: Main) -> None:
    greedy = ("sample", trained, "--temperature", 0, "--max-tokens", 30, "--seed")
    assert call(*greedy, 1) == call(*greedy, 2)


# --- export -------------------------------------------------------------------------------------


def test_export_writes_a_bundle_that_reads_back(trained: Path, tmp_path: Path, call: Main) -> None:
    status, stdout, _ = call("export", trained, "--models", tmp_path)
    assert status == 0
    path = tmp_path / "tiny"
    manifest = read_language_model(path).manifest
    size = sum(file.stat().st_size for file in path.iterdir())
    first, second, _ = stdout.split("\n", 2)
    assert first == f"{path}: {size:,} bytes"
    assert second == f"test, served in {manifest.precision}"
    config, _, _ = load_best(trained)
    assert manifest.training.seed == config.training.seed


@pytest.mark.parametrize("served", ["fp32", "int8"])
def test_export_tells_both_precisions_scores_whichever_is_served(
    trained: Path, tmp_path: Path, call: Main, monkeypatch: pytest.MonkeyPatch, served: str
) -> None:
    allowed = {"fp32": -1.0, "int8": 1.0}[served]
    monkeypatch.setattr("training.export.gate.MAX_QUANTIZATION_LOSS", allowed)
    monkeypatch.setattr("training.export.language_model.MAX_FP32_WEIGHTS", 0)
    status, stdout, _ = call("export", trained, "--models", tmp_path)
    assert status == 0
    assert f"\ntest, served in {served}\n" in stdout
    metrics = read_language_model(tmp_path / "tiny").manifest.metrics
    assert rows(stdout) == {
        x.name: pytest.approx([x.loss, x.bits_per_char, x.perplexity], abs=6e-4)
        for x in metrics.measurements
        if x.kind == "model"
    }
    assert set(rows(stdout)) == {"fp32", "int8"}


def test_a_bundle_can_be_given_another_name(trained: Path, tmp_path: Path, call: Main) -> None:
    assert call("export", trained, "--models", tmp_path, "--name", "other")[0] == 0
    assert [x.name for x in tmp_path.iterdir()] == ["other"]


def test_what_has_become_of_the_text_is_nothing_to_a_run(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path, training={"steps": 1})
    call("train", config, "--run", tmp_path / "run")
    before = call("evaluate", tmp_path / "run")
    configured(tmp_path, text="0123456789" + FABLE)
    assert call("evaluate", tmp_path / "run") == before
    assert call("export", tmp_path / "run", "--models", tmp_path / "models")[0] == 0


def test_a_corpus_of_other_weights_is_not_exported(tmp_path: Path, call: Main) -> None:
    for name, text in (("one", FABLE), ("two", FABLE.replace("fox", "cat"))):
        config = configured(tmp_path / name, text=text, training={"steps": 1})
        call("train", config, "--run", tmp_path / name / "run")
    shutil.rmtree(tmp_path / "one/run/corpus")
    (tmp_path / "two/run/corpus").rename(tmp_path / "one/run/corpus")
    status, _, stderr = call("export", tmp_path / "one/run", "--models", tmp_path / "models")
    assert status == 1
    assert_one_line(stderr, "the prepared text is not the one the weights were trained on")
    assert not (tmp_path / "models").exists()


def test_a_models_folder_that_is_a_file_is_refused(
    trained: Path, tmp_path: Path, call: Main
) -> None:
    (tmp_path / "models").write_text("")
    status, _, stderr = call("export", trained, "--models", tmp_path / "models")
    assert status == 1
    assert_one_line(stderr, "models")


# --- baselines ----------------------------------------------------------------------------------


def test_baselines_are_measured_without_a_model(trained: Path, tmp_path: Path, call: Main) -> None:
    config = trained.parent / "tiny.toml"
    status, stdout, _ = call("baselines", config, "--run", tmp_path / "floors")
    assert status == 0
    measured = json.loads((trained / "metrics.json").read_text())["measurements"]
    wanted = {x["name"]: round(x["loss"], 4) for x in measured if x["kind"] == "baseline"}
    assert {name: values[0] for name, values in rows(stdout).items()} == wanted


def test_more_text_than_the_tables_may_hold_is_cut_and_the_name_says_so(
    tmp_path: Path, call: Main
) -> None:
    config = configured(tmp_path, baselines={"max_order": 2, "max_train_chars": 300})
    _, stdout, _ = call("baselines", config, "--run", tmp_path / "run")
    names = ["kneser-ney 2-gram (first 300 tokens)", "unigram (first 300 tokens)"]
    assert sorted(rows(stdout)) == names


def test_baselines_of_lines_are_cut_too(tmp_path: Path, call: Main) -> None:
    config = configured(
        tmp_path,
        data={"documents": "line"},
        baselines={"max_order": 3, "max_train_chars": 100},
    )
    status, stdout, _ = call("baselines", config, "--run", tmp_path / "run")
    assert status == 0
    assert len(rows(stdout)) == 3


def test_baselines_need_held_out_text(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path, data={"valid_fraction": 0.0, "test_fraction": 0.0})
    status, _, stderr = call("baselines", config, "--run", tmp_path / "run")
    assert status == 1
    assert_one_line(stderr, "data.valid_fraction", "no text is left for the valid split")


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "baselines"])
def test_a_configuration_that_is_not_there_is_one_line(
    tmp_path: Path, call: Main, command: str
) -> None:
    status, stdout, stderr = call(command, tmp_path / "missing.toml")
    assert (status, stdout) == (1, "")
    assert len(stderr.splitlines()) == 1
    assert_one_line(stderr, "missing.toml", "No such file")


@pytest.mark.parametrize("command", ["evaluate", "sample", "export"])
def test_a_folder_that_holds_no_run_is_one_line(tmp_path: Path, call: Main, command: str) -> None:
    status, stdout, stderr = call(command, tmp_path)
    assert (status, stdout) == (1, "")
    assert len(stderr.splitlines()) == 1
    assert_one_line(stderr, "there is no run in this folder")


def test_a_text_that_is_not_there_is_one_line(tmp_path: Path, call: Main) -> None:
    config = configured(tmp_path, data={"files": ["none*.txt"]})
    status, _, stderr = call("train", config, "--run", tmp_path / "run")
    assert status == 1
    assert_one_line(stderr, "data.files: nothing matches 'none*.txt'")


def test_a_text_that_cannot_be_read_is_one_line(
    tmp_path: Path, call: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path)
    whole = Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "text.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    status, _, stderr = call("train", config, "--run", tmp_path / "run")
    assert status == 1
    assert_one_line(stderr, "Permission denied", "text.txt")


def test_a_split_that_there_is_not_is_told_with_those_that_there_are(
    trained: Path, call: Main
) -> None:
    status, _, stderr = call("evaluate", trained, "--split", "all")
    assert status == 1
    assert_one_line(stderr, "--split: there are train, valid, test")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["serve"],
        ["train"],
        ["train", "a.toml", "--device", "tpu"],
        ["train", "a.toml", "--steps", "3"],
        ["sample", "run", "--seed", "one"],
        ["sample", "run", "--seed", "-1"],
        ["sample", "run", "--seed", "99999999999999999999"],
        ["sample", "run", "--max-tokens", "-1"],
        ["sample", "run", "--temperature", "-0.5"],
        ["sample", "run", "--temperature", "nan"],
        ["export", "run", "--name", "Not A Name"],
        ["export", "run", "--name", "../elsewhere"],
    ],
    ids=" ".join,
)
def test_misuse_is_exit_status_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m training" in capsys.readouterr().err


def test_an_error_that_is_a_bug_is_not_hidden(
    trained: Path, call: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Split:
        raise ZeroDivisionError

    monkeypatch.setattr("training.experiments.text.evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        call("evaluate", trained)


def test_the_module_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", "evaluate", "/nowhere"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: /nowhere: there is no run in this folder\n"
