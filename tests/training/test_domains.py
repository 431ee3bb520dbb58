"""Tests of made-up domain names and of names by origin; nothing is fetched."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from training.datasets import domains, names
from training.datasets.domains import letters, made_up, markov, real_names, syllables, words
from training.datasets.table import DATASETS

REAL = [f"{first}{second}" for first in ("green", "blue", "fast") for second in ("shop", "web")]


def packed(*hosts: str) -> bytes:
    """hstspreload's table: flags, a length and a host each."""
    return b"".join(bytes([0xC0, len(host)]) + host.encode() for host in hosts)


def test_real_names_are_those_of_whole_hosts_without_their_ending() -> None:
    hosts = ["sucks", "example.org", "my-shop.de", "xn--bcher-kva.de", "ab.io", "www.two.parts"]

    assert sorted(real_names(packed(*hosts, "x" * 40 + ".com"))) == ["example", "my-shop"]


def test_generated_names_are_the_same_every_time_new_and_of_a_proper_size() -> None:
    taken = {*made_up(syllables, 20, set(), seed=1)}

    found = made_up(syllables, 50, taken, seed=1)

    assert found == made_up(syllables, 50, taken, seed=1)
    assert len({*found}) == 50
    assert not taken & {*found}
    assert all(6 <= len(name) <= 20 for name in found)


def test_a_generator_that_knows_few_names_gives_those() -> None:
    assert made_up(lambda _: "example", 5, set(), seed=1) == ["example"]


def test_letters_are_as_long_as_real_names() -> None:
    generate, rng = letters(REAL), np.random.default_rng(0)

    assert {len(generate(rng)) for _ in range(100)} == {len(name) for name in REAL}


def test_words_are_joined() -> None:
    name = words(["one", "two"])(np.random.default_rng(0))

    assert not name.replace("one", "").replace("two", "")


def test_a_chain_says_only_what_it_has_read() -> None:
    generate, rng = markov(REAL), np.random.default_rng(0)

    seen = {name[i : i + 4] for name in REAL for i in range(len(name) - 3)}
    for name in (generate(rng) for _ in range(50)):
        assert {name[i : i + 4] for i in range(len(name) - 3)} <= seen


def wheel_of(files: dict[str, bytes]) -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return zipfile.ZipFile(stream)


def test_no_name_is_in_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = packed(
        *(
            f"{syllable}{i:03}{i * 7 % 100:02}.org"
            for syllable in ("shop", "web")
            for i in range(60)
        )
    )
    files = {"hstspreload/hstspreload.bin": hosts, "x.dist-info/LICENSE": b"BSD text"}
    debian = {
        domains.WORDS_FILE: b"apple\nBob\npear\nplum\nkiwi\n",
        domains.WORDS_COPYRIGHT: b"SCOWL",
    }
    monkeypatch.setattr(domains, "open_wheel", lambda *_: wheel_of(files))
    monkeypatch.setattr(domains, "debian_files", lambda *_: debian)
    monkeypatch.setattr(domains, "NAMES", 60)
    monkeypatch.setattr(domains, "TEST_NAMES", 10)

    DATASETS["domains"](tmp_path)

    found = [
        line.split("\t")
        for path in tmp_path.glob("*.tsv")
        for line in path.read_text().splitlines()
    ]
    assert len(found) == 120 + 4 * 20
    assert len({name for name, _ in found}) == len(found)
    assert sum(label == "real" for _, label in found) == 100
    assert "SCOWL" in (tmp_path / "NOTICES.txt").read_text()


def test_names_are_read_from_source_that_is_not_run() -> None:
    source = """
raise SystemExit
class Provider(Base):
    formats = ("{{first_name}}",)
    first_names_male = ("Zdene\\u030ck", "Petr")
    first_names = first_names_male + ("Petr",)
    last_names: dict = OrderedDict((("Novák", 0.5), ("", 0.5)))
"""

    assert names.names_in(source) == ["Zdeněk", "Petr", "Novák"]


def test_a_name_of_two_origins_is_there_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(name: str) -> bytes:
        return f"class Provider:\n    last_names = ('{name}', 'Novák')\n".encode()

    folder = "faker/providers/person"
    files = {f"{folder}/{x}/__init__.py": source(x) for x in ("cs_CZ", "sk_SK")}
    monkeypatch.setattr(names, "ORIGINS", {"cs_CZ": "Czech", "sk_SK": "Slovak"})
    monkeypatch.setattr(names, "open_wheel", lambda *_: wheel_of(files))

    lines = DATASETS["name-origins"](tmp_path)

    text = (tmp_path / "names.tsv").read_text()
    assert text == "cs_CZ\tCzech\nNovák\tCzech\nsk_SK\tSlovak\nNovák\tSlovak\n"
    assert lines[-1] == "Czech 2, Slovak 2"
