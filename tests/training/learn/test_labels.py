"""From a person's labelled files to a configuration, and to a bundle that the service answers."""

import json
import random
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.app import create_app
from service.bundle.labeler import LabelerManifest
from service.bundle.store import read_bundle
from service.settings import Settings
from tests.fakes import AppClient
from tests.training.helpers import Main
from training.config import AnyConfig, ConfigError, load_config
from training.data.labelled import LabelledCorpus
from training.experiments.kinds import trained_experiment_of
from training.learn.command import _check_same_files

RNG = random.Random(1)
WORDS = {"de": "der und von mit ein", "en": "the and of with a", "nl": "het en van met een"}


def text(language: str, count: int = 5) -> str:
    return " ".join(RNG.choices(WORDS[language].split(), k=count)) + f" {RNG.randint(0, 10**6)}"


TEXTS = [(text(language), language) for language in WORDS for _ in range(80)]
TSV = "".join(f"{text}\t{language}\n" for text, language in TEXTS)
ALIGNED = "".join(f"{text}\t{''.join('ON'[x.isdigit()] for x in text)}\n" for text, _ in TEXTS)
LABEL_FIRST = "".join(f"{language}\t{text}\n" for text, language in TEXTS)
COLUMNS = "".join(
    "".join(f"{x} {'B-NUM' if x.isdecimal() else 'O'}\n" for x in text.split()) + "\n"
    for text, _ in TEXTS
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def chosen(run: Path) -> tuple[AnyConfig, LabelledCorpus]:
    config = load_config(run / "config.toml")
    corpus = trained_experiment_of(config).open(run)
    assert isinstance(corpus, LabelledCorpus)
    return config, corpus


@pytest.mark.parametrize(
    ("data", "kind", "names"),
    [
        (TSV, "classifier", ["de", "en", "nl"]),
        (LABEL_FIRST, "classifier", ["de", "en", "nl"]),
        (ALIGNED, "tagger", ["N", "O"]),
        (COLUMNS, "tagger", ["B-NUM", "I-NUM", "O"]),
    ],
    ids=["labels", "labels first", "aligned", "columns"],
)
def test_a_dry_run_says_what_it_sees_and_writes_the_configuration(
    call: Main, tmp_path: Path, data: str, kind: str, names: Sequence[str]
) -> None:
    (tmp_path / "mine.tsv").write_text(data)
    status, out, err = call("learn", "mine.tsv", "--dry-run", "--steps", 20)
    assert status == 0, err
    assert "240 labelled texts" in out
    assert "if these are" in out
    config, corpus = chosen(tmp_path / "runs/mine")
    assert (config.kind, corpus.labels.names) == (kind, names)
    assert sum(corpus.counts[x] for x in ("train", "valid", "test")) == 240


def test_a_folder_a_label_is_read_by_its_files(call: Main, tmp_path: Path) -> None:
    for i, (line, language) in enumerate(TEXTS):
        path = tmp_path / "my texts" / language / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    status, out, err = call("learn", "my texts", "--dry-run", "--steps", 20)
    assert status == 0, err
    assert "folders for 3 labels; a text is one of the files" in out
    config, corpus = chosen(tmp_path / "runs/my-texts")
    assert corpus.counts["read"] == 240
    # The same folder goes on with its run; another does not.
    _check_same_files(config, Namespace(files=[Path("my texts")]), tmp_path)
    with pytest.raises(ConfigError, match="holds a run with other files"):
        _check_same_files(config, Namespace(files=[Path("my texts/de")]), tmp_path)


def test_comments_are_no_words(call: Main, tmp_path: Path) -> None:
    texts = COLUMNS.split("\n\n")
    commented = (f"# sent_id = {i}\n{text}" for i, text in enumerate(texts))
    (tmp_path / "mine.tsv").write_text("\n\n".join(commented))
    status, out, err = call("learn", "mine.tsv", "--dry-run", "--steps", 20)
    assert status == 0, err
    assert "in the last of 2 columns" in out
    assert chosen(tmp_path / "runs/mine")[1].labels.names == ["B-NUM", "I-NUM", "O"]


def test_labels_are_not_split_by_position(call: Main, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text(TSV)
    status, _, err = call("learn", "mine.tsv", "--dry-run", "--split", "position", "--steps", 20)
    assert (status, "only text is cut by position" in err) == (1, True)


def test_few_labelled_texts_are_too_few(call: Main, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("".join(f"{i}\t{i % 2}\n" for i in range(99)))
    status, _, err = call("learn", "mine.tsv", "--as", "labels")
    assert status == 1
    assert "99 labelled texts are too few: at least 100 are needed" in err


def test_labelled_texts_become_a_model_that_the_service_answers_with(
    call: Main, tmp_path: Path
) -> None:
    (tmp_path / "mine.tsv").write_text(TSV)
    status, out, err = call("learn", "mine.tsv", "--steps", 20)
    assert status == 0, err
    assert re.search(r"Of [0-9]+ texts that it has never seen", out)
    assert "Always the commonest label: " in out
    assert "Naive Bayes over character n-grams: " in out
    assert isinstance(read_bundle(tmp_path / "models/mine").manifest, LabelerManifest)
    words = shlex.split(out.splitlines()[-1])
    route, body = words[2].removeprefix("http://127.0.0.1:8000"), json.loads(words[-1])
    with AppClient(create_app(Settings(models_dir=tmp_path / "models"))) as client:
        answer = client.post(route, json=body)
    assert (answer.status_code, route) == (200, "/classify")
    labels = answer.json()["results"][0]["labels"]
    assert {x["label"] for x in labels} == {"de", "en", "nl"}


def test_any_text_can_lose_its_accents(call: Main, tmp_path: Path) -> None:
    lines = [f"{line.replace('e', RNG.choice('eé'))}\n" for line, _ in TEXTS]
    (tmp_path / "mine.txt").write_text("".join(lines))
    status, out, err = call("learn", "mine.txt", "--as", "accents", "--dry-run", "--steps", 20)
    assert status == 0, err
    assert "accents to put back; lines of about" in out
    config, corpus = chosen(tmp_path / "runs/mine")
    assert (config.kind, corpus.labels.names) == ("restore", ["", "é"])
    assert corpus.allowed is not None
