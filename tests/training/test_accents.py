"""Tests of the texts with accents; nothing is fetched."""

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest

from training.datasets import accents
from training.datasets.accents import declaration_texts, lines_of, pack_texts, sample, without
from training.datasets.catalogs import package_of
from training.datasets.errors import DatasetError
from training.datasets.registry import Wheel
from training.datasets.table import DATASETS


def pack_of(texts: dict[int, str], *, version: int = 5, encoding: int = 1) -> bytes:
    """A resource pack of Chromium."""
    data = [text.encode() for text in texts.values()]
    offset = 12 + 6 * (len(data) + 1)
    table = b""
    for number, text in zip([*texts, 0], [*data, b""], strict=True):
        table += struct.pack("<HI", number, offset)
        offset += len(text)
    return struct.pack("<IBxxxHH", version, encoding, len(data), 0) + table + b"".join(data)


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("Délai  dépassé\n\nRéessayez", ["Délai dépassé", "Réessayez"]),
        ("Soubor <b>{name}</b> nelze otevřít: %(count)s", ["Soubor … nelze otevřít: …"]),
        ("Lưu thành $1 và %s", ["Lưu thành … và …"]),
        ("`Kaydet`e **bas** &amp; bekle", ["Kaydete bas & bekle"]),
        ("L&#39;e\u0301te\u0301", ["L'été"]),  # composed
        ("{count, plural, one {# fájl} other {# fájl}}", []),  # texts within a text
        ("voir https://example.org", []),
        ("%s: 12", []),
    ],
)
def test_a_message_becomes_lines_of_plain_text(message: str, lines: list[str]) -> None:
    assert list(lines_of(message)) == lines


def test_a_resource_pack_holds_texts_by_number() -> None:
    assert pack_texts(pack_of({3: "Đóng", 70: "", 71: "Mở"})) == {3: "Đóng", 70: "", 71: "Mở"}


def test_a_resource_pack_of_another_form_is_refused() -> None:
    with pytest.raises(DatasetError, match="version 4, not 5"):
        pack_texts(pack_of({1: "x"}, version=4))
    with pytest.raises(DatasetError, match="UTF-8"):
        pack_texts(pack_of({1: "x"}, encoding=2))


def test_the_declaration_is_read_by_paragraphs() -> None:
    page = "<title>x</title><h1>Ú\n vod</h1><p lang='cs'>Nikdo <em>nesmí</em> být</p><ol><li>c</li>"

    assert declaration_texts(page) == ["Ú vod", "Nikdo nesmí být", "c"]


def test_texts_that_are_apart_are_removed_whatever_their_case() -> None:
    assert without(["Été", "hiver"], ["ÉTÉ"]) == ["hiver"]


def test_a_sample_is_the_same_every_time_and_keeps_to_its_size() -> None:
    texts = [f"{i:03}" for i in range(100)]

    kept = sample(texts, 30)

    assert len(kept) == 10
    assert kept == sorted(kept) == sample(reversed(texts), 30)
    assert kept != texts[:10]


def wheel_of(files: dict[str, bytes]) -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return zipfile.ZipFile(stream)


def test_the_package_and_the_declaration_are_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def catalogs(**texts: str) -> dict[str, bytes]:
        return {
            f"x/translations/{language}.json": json.dumps({"key": text}).encode()
            for language, text in texts.items()
        }

    packs = {x: pack_of({7: f"Chromium {x}", 8: "Same"}) for x in (*accents.LANGUAGES, "en-US")}
    wheels = {
        "one": catalogs(en="Summer", cs="Léto", fr="Été", de="Sommer", vi="Summer"),
        "apart": catalogs(en="Summer", cs="Zima", fr="été"),
        "packs": {f"cefpython3/locales/{x}.pak": data for x, data in packs.items()}
        | dict.fromkeys(("cefpython3/License", "cefpython3/LICENSE.txt"), b"BSD text"),
    }
    one, apart, packs_of = (package_of(x, "1", "", "MIT", None) for x in wheels)
    codes = ("ces", "fra", "hun", "tur", "vie")
    declaration = {f"declaration/{code}.html": b"<p>Is\xc3\xa9</p>" for code in codes}

    def opened(wheel: Wheel, _: Path) -> zipfile.ZipFile:
        return wheel_of(wheels[wheel.name])

    monkeypatch.setattr(accents, "PACKAGES", (one, apart))
    monkeypatch.setattr(accents, "CHROMIUM", packs_of)
    monkeypatch.setattr(accents, "HELD_OUT", "apart")
    monkeypatch.setattr(accents, "open_wheel", opened)
    monkeypatch.setattr(accents, "npm_files", lambda *_: declaration | {"license": b"MIT text"})

    lines = DATASETS["accents"](tmp_path)

    found = {
        str(path.relative_to(tmp_path)): path.read_text().splitlines()
        for path in tmp_path.rglob("*.txt")
    }
    notices = "\n".join(found.pop("NOTICES.txt"))
    expected = {f"{x}.txt": [f"Chromium {x}"] for x in accents.LANGUAGES}
    expected |= {f"package/{x}.txt": [] for x in accents.LANGUAGES}
    expected |= {f"declaration/{x}.txt": ["Isé"] for x in accents.LANGUAGES}
    expected |= {"cs.txt": ["Chromium cs", "Léto"]}  # what is not translated is left out
    expected |= {"package/cs.txt": ["Zima"], "package/fr.txt": ["été"]}
    assert found == expected
    assert "MIT text" in notices
    assert notices.count("BSD text") == 2
    assert "one 1 (MIT): cs 1 fr 1 hu 0 tr 0 vi 0" in lines
