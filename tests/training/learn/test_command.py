"""From a person's file to a bundle: one command, seconds long."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from service.app import create_app
from service.bundle.encoder_decoder import EncoderDecoderManifest
from service.bundle.language_model import LanguageModelManifest
from service.bundle.store import read_bundle
from service.settings import Settings
from tests.fakes import AppClient
from tests.training.helpers import BACKWARDS, FABLE, Main
from training.config import load_config, parse_config
from training.data.corpus import Corpus
from training.experiments.kinds import trained_experiment_of
from training.learn.calibrate import measure, try_out

NAMES = [f"{a}{b}{c}" for a in ("An", "Be", "Ka") for b in ("na", "li", "ro") for c in "aeiou"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def body_of(line: str) -> tuple[str, dict[str, object]]:
    """The path and the body of a curl line, as a shell reads it."""
    words = shlex.split(line)
    assert words[:2] == ["curl", "-s"]
    return words[2].removeprefix("http://127.0.0.1:8000"), json.loads(words[-1])


def parts_of(bundle: Path) -> list[str]:
    manifest = read_bundle(bundle).manifest
    assert isinstance(manifest, LanguageModelManifest)
    return [x.name for x in manifest.parts]


def steps_of(run: Path) -> int:
    return trained_experiment_of(load_config(run / "config.toml")).config.training.steps


def test_names_become_a_model_that_the_service_answers_with(call: Main, tmp_path: Path) -> None:
    path = tmp_path / "It's my [names] é.txt"
    path.write_text("\ufeff" + "\r\n".join(NAMES) + "\r\n", encoding="utf-8", newline="")
    status, out, err = call("learn", path, "--steps", 20)
    assert status == 0, err
    assert "45 lines of text" in out
    assert "each is a text of its own" in out
    assert re.search(r"On lines that it has never seen .* bits a character", out)
    manifest = read_bundle(tmp_path / "models/it-s-my-names-e").manifest
    assert isinstance(manifest, LanguageModelManifest)
    assert manifest.data.name == path.name
    assert len(manifest.parts) == 1  # so few lines leave too little to fit a mixture on
    assert {manifest.license, manifest.data.license} == {"not stated"}
    config = load_config(tmp_path / "runs/it-s-my-names-e/config.toml")
    assert manifest.training.config == config.model_dump(mode="json")
    lines = [line for line in out.splitlines() if line.startswith("curl")]
    assert out.rstrip().endswith(lines[-1])
    assert "Otherwise serve it from a second terminal:\n  " in out
    with AppClient(create_app(Settings(models_dir=tmp_path / "models"))) as client:
        for line in lines:
            route, body = body_of(line)
            assert client.post(route, json=body).status_code == 200
    _, score = body_of(lines[0])
    assert set(score) == {"model", "text", "guesses"}  # too few lines for percentiles

    again, _, err = call("learn", path, "--steps", 20)
    assert (again, err.count("\n")) == (1, 1)
    assert "--name" in err
    (tmp_path / "other.txt").write_text("\n".join(NAMES))
    _, _, err = call("learn", "other.txt", "--run", "runs/it-s-my-names-e")
    assert "holds a run with other files" in err
    shutil.rmtree(tmp_path / "models")
    status, out, err = call("learn", path)
    assert status == 0, err
    assert "it goes on" in out


def test_a_machine_is_measured_by_real_steps_without_the_slowest(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    options = {"steps": 1, "batch_size": 4, "bptt_len": 8}
    model = {"hidden_size": 4, "embedding_dim": 2}
    config = parse_config(
        {
            "name": "x",
            "data": {"files": ["names.txt"], "documents": "line", "valid_fraction": 0.2},
            "model": model,
            "training": options,
        }
    )
    experiment = trained_experiment_of(config)
    data = experiment.prepare(tmp_path, tmp_path)
    times = iter(range(10_000))  # every look at the clock takes a second
    speed = measure(experiment, data, lambda: float(next(times)))
    assert (speed.step_s, speed.evaluation_s) == (1.0, 1.0)
    short = try_out(experiment, data)
    training = experiment.config.training.model_copy(update={"steps": 30, "learning_rate": 0.02})
    longer = try_out(trained_experiment_of(config.model_copy(update={"training": training})), data)
    assert longer.loss < short.loss
    assert (short.step, longer.step) == (1, 30)


def test_pairs_become_a_model(call: Main, tmp_path: Path) -> None:
    rows = dict.fromkeys(x for x in BACKWARDS.splitlines())
    more = [f"{x}{y}\t{y[::-1]}{x[::-1]}" for x in "abcdefghij" for y in ("no", "so", "to", "ba")]
    lines = [*rows, *more, *(f"x{line.replace(chr(9), chr(9) + 'x')}" for line in more)]
    lines += [f"y{line.replace(chr(9), chr(9) + 'y')}" for line in more]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    status, out, err = call("learn", "pairs.tsv", "--steps", 10, "--name", "mine")
    assert status == 0, err
    assert "source: characters" in out
    assert re.search(r"Of [0-9]+ sources that it has never seen", out)
    assert isinstance(read_bundle(tmp_path / "models/mine").manifest, EncoderDecoderManifest)
    route, body = body_of(out.splitlines()[-1])
    assert (route, body["model"]) == ("/translate", "mine")


def test_a_dry_run_writes_the_configuration_and_trains_nothing(call: Main, tmp_path: Path) -> None:
    (tmp_path / "fable.txt").write_text(FABLE * 3)
    status, out, _ = call("learn", "fable.txt", "--dry-run", "--as", "file", "--steps", 20)
    assert status == 0
    assert "you said --as file" in out
    assert load_config(tmp_path / "runs/fable/config.toml").name == "fable"
    status, out, _ = call("learn", "fable.txt", "--dry-run", "--as", "file", "--minutes", 0.1)
    assert status == 0
    assert re.search(r"about \d+ seconds of training; baselines and export come on top", out)
    assert not (tmp_path / "models").exists()


def test_text_becomes_a_mixture_that_its_configuration_explains(call: Main, tmp_path: Path) -> None:
    (tmp_path / "fable.txt").write_text(FABLE * 5)
    status, out, err = call("learn", "fable.txt", "--as", "file", "--steps", 20)
    assert status == 0, err
    assert "an 8-gram is averaged with the network at export ([ngram])" in out
    assert re.search(r"It is a mixture of the LSTM \([0-9.]+ alone\) and the 8-gram", out)
    path = tmp_path / "runs/fable/config.toml"
    written = path.read_text()
    assert re.search(r"^\[ngram\] +# averaged with the network", written, re.MULTILINE)
    assert re.search(r"^\[adapt\] +# a request with", written, re.MULTILINE)
    assert len(parts_of(tmp_path / "models/fable")) == 2
    bodies = [body_of(line) for line in out.splitlines() if line.startswith("curl")]
    assert [route for route, _ in bodies] == ["/score", "/generate"]
    assert set(bodies[0][1]) == {"model", "text", "percentile"}

    # A run from before there were mixtures goes on as it is.
    path.write_text(written.split("\n[ngram]")[0])
    status, out, err = call(
        "learn", "fable.txt", "--as", "file", "--name", "fable", "--models", "m"
    )
    assert status == 0, err
    assert "it goes on" in out
    assert "mixture" not in out
    assert len(parts_of(tmp_path / "m/fable")) == 1


def test_the_least_text_that_is_allowed_becomes_a_model_of_one_part(
    call: Main, tmp_path: Path
) -> None:
    (tmp_path / "few.txt").write_text((FABLE * 3)[:2000])
    status, out, err = call("learn", "few.txt", "--as", "file", "--steps", 20)
    assert status == 0, err
    assert "too little text to mix an n-gram in" in out
    assert len(parts_of(tmp_path / "models/few")) == 1


def test_a_text_can_be_split_by_position_as_benchmarks_are(call: Main, tmp_path: Path) -> None:
    (tmp_path / "fable.txt").write_text(FABLE * 3)
    status, _, err = call("learn", "fable.txt", "--dry-run", "--split", "position", "--steps", 20)
    assert status == 0, err
    data = load_config(tmp_path / "runs/fable/config.toml").model_dump()["data"]
    assert (data["split_by"], data["valid_fraction"], data["test_fraction"]) == ("position", 0.1, 0)


def test_a_model_of_the_name_is_replaced_where_that_is_asked_for(
    call: Main, tmp_path: Path
) -> None:
    (tmp_path / "fables.txt").write_text(FABLE * 3)
    arguments = ("learn", "fab*.txt", "--as", "file", "--name", "mine")  # patterns are taken
    assert call(*arguments, "--steps", 20)[0] == 0
    manifest, run = tmp_path / "models/mine/manifest.json", tmp_path / "runs/mine"
    before = manifest.read_bytes()
    status, out, _ = call(*arguments, "--dry-run")
    assert (status, "there is a run already" in out) == (0, True)
    status, _, err = call(*arguments, "--steps", 30)
    assert (status, "--replace (REPLACE=1 for make)" in err) == (1, True)
    assert (manifest.read_bytes(), steps_of(run)) == (before, 20)
    assert call(*arguments, "--steps", 30, "--replace")[0] == 0
    assert steps_of(run) == 30
    assert manifest.read_bytes() != before


@pytest.mark.parametrize("named", [("valid",), ("test",), ("valid", "test")])
def test_what_no_file_is_named_for_is_held_out_of_the_others(
    call: Main, tmp_path: Path, named: tuple[str, ...]
) -> None:
    lines = [f"{x}{y}{z}" for x in "abcdefgh" for y in "klmnopqr" for z in "stuv"]
    (tmp_path / "names.txt").write_text("\n".join(lines[:200]) + "\n")
    (tmp_path / "valid.txt").write_text("\n".join(lines[200:228]) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(lines[228:]) + "\n")
    more = [part for split in named for part in (f"--{split}", f"{split}.txt")]
    status, out, err = call("learn", "names.txt", "--dry-run", "--steps", 20, *more)
    assert status == 0, err
    data = load_config(tmp_path / "runs/names/config.toml").model_dump()["data"]
    for split in ("valid", "test"):
        assert bool(data[f"{split}_files"]) == (split in named)
    config = load_config(tmp_path / "runs/names/config.toml")
    corpus = trained_experiment_of(config).open(tmp_path / "runs/names")
    assert isinstance(corpus, Corpus)
    held_out = {"valid": corpus.valid.documents, "test": corpus.test.documents}
    for split, documents in held_out.items():
        assert (documents == 28) == (split in named), out
        assert documents > 10


def test_too_little_and_unreadable_files_are_one_line(call: Main, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "latin.txt").write_bytes("Zoë\n".encode("latin-1") * 40)
    for name, expected in (
        ("few.txt", "5 lines are too few"),
        ("latin.txt", "UTF-8"),
        ("no", "no"),
    ):
        status, _, err = call("learn", name)
        assert status == 1
        assert expected in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
