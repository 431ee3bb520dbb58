"""What is opened in a process of its own first, and how that process ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.bundle.files import BundleError
from service.bundle.store import read_bundle, write_bundle
from service.settings import Settings
from service.tasks import trial
from service.tasks.folders import version_of
from service.tasks.trial import Trial
from tests.bundles import tiny_files


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models"), *tiny_files("gru"))


@pytest.fixture(scope="module")
def opener() -> Iterator[Trial]:
    made = Trial(Settings.model_validate({"state_key": "a secret of this process"}), threads=1)
    yield made
    made.close()


def running() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [x for x in children if "service.tasks.trial_process" in x.cmdline()]


def test_a_bundle_that_can_be_served_is_known_by_its_version(opener: Trial, bundle: Path) -> None:
    assert opener.check(bundle) == version_of(read_bundle(bundle).manifest)


def test_several_bundles_are_opened_by_one_process(opener: Trial, bundle: Path) -> None:
    opener.check(bundle)
    (first,) = running()
    with pytest.raises(BundleError, match=r"nowhere: No such file"):
        opener.check(bundle.parent / "nowhere")
    opener.check(bundle)
    assert running() == [first]
    assert "a secret" not in " ".join([*first.cmdline(), *first.environ().values()])


def test_what_ends_the_process_is_refused_and_the_next_gets_another(
    opener: Trial, bundle: Path
) -> None:
    opener.check(bundle)
    (first,) = running()
    first.suspend()
    # Once it is asked.
    threading.Timer(0.2, lambda: os.kill(first.pid, signal.SIGKILL)).start()
    with pytest.raises(BundleError, match=r"the process that tried to open it ended \(SIGKILL\)"):
        opener.check(bundle)
    assert opener.check(bundle)
    assert first not in running()


def test_a_process_that_stands_still_is_ended_by_the_clock(
    opener: Trial, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener.check(bundle)
    (first,) = running()
    first.suspend()
    monkeypatch.setattr(trial, "_START_S", 0.1)
    monkeypatch.setattr(trial, "PATIENCE", 0.0)
    with pytest.raises(BundleError, match=r"more than 0.1 s of wall-clock time \(open_timeout_s\)"):
        opener.check(bundle)
    assert not running()


def test_it_idles_for_a_while_and_ends(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_IDLE_S", 0.05)
    opener = Trial(Settings(), threads=1)
    before: list[Any] = running()
    opener.check(bundle)
    deadline = time.monotonic() + 5
    while running() != before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    opener.close()


def test_whoever_waits_is_told_of_the_end(bundle: Path) -> None:
    opener = Trial(Settings(), threads=1)
    threading.Timer(0.1, opener.close).start()
    with pytest.raises(BundleError, match="the server is shutting down"):
        opener.check(bundle)
