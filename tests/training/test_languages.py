"""Texts labelled with their language."""

import io
import json
import zipfile
from pathlib import Path

import polib  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets import languages
from training.datasets.languages import LANGUAGES, Message, Texts
from training.datasets.registry import Wheel
from training.datasets.table import DATASETS


def zip_of(files: dict[str, str]) -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return zipfile.ZipFile(stream)


def catalog_of(entries: dict[str, str]) -> str:
    catalog = polib.POFile()
    catalog.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    for english, text in entries.items():
        catalog.append(polib.POEntry(msgid=english, msgstr=text))
    return str(catalog)


def kept(*messages: Message) -> dict[str, list[str]]:
    texts = Texts()
    texts.add(messages)
    return {name: list(found.values()) for name, found in texts.of_languages().items() if found}


def test_variants_of_a_language_are_merged_and_unknown_ones_are_not_read() -> None:
    codes = ("pt_BR", "zh-Hant", "sr@latin", "no", "de", "tlh", "en-GB")

    assert list(map(languages.language_of, codes)) == ["pt", "zh", "sr", "nb", "de", None, "en"]


def test_a_text_needs_half_its_letters_in_the_script_of_its_language() -> None:
    assert languages.is_written_in("Wi-Fi のパスワード", "ja")
    assert not languages.is_written_in("Bluetooth Low Energy の", "ja")
    assert not languages.is_written_in("Dodaj polja", "sr")
    assert languages.is_written_in("Додај поља", "sr")
    assert not languages.is_written_in("OK", "en")
    assert languages.is_written_in("डोमेन", "hi")  # vowel signs are no letters


@given(st.text(), st.sampled_from(LANGUAGES))
def test_only_letters_count_for_what_is_the_same(text: str, language: str) -> None:
    assert languages.key_of(f"{text} (12)…") == languages.key_of(text)
    assert languages.is_written_in(text, language) == languages.is_written_in(
        f"{text}: 1", language
    )


def test_what_was_not_translated_is_dropped_and_stays_english() -> None:
    found = kept(
        Message("en", "Save page", None),
        Message("de", "Save page", "Save page"),
        Message("de", "Seite &speichern", "Save page"),
    )

    assert found == {"en": ["Save page"], "de": ["Seite speichern"]}


def test_a_name_that_most_languages_leave_alone_is_not_english() -> None:
    loans = [Message(language, "Bluetooth", "Bluetooth") for language in ("de", "fr", "it")]

    assert kept(Message("en", "Bluetooth", None), *loans[:2]) == {"en": ["Bluetooth"]}
    assert kept(Message("en", "Bluetooth", None), *loans) == {}


def test_what_two_languages_share_is_in_neither() -> None:
    found = kept(
        Message("da", "Slet side", "Delete page"),
        Message("nb", "SLET SIDE!", "Delete page"),
        Message("nb", "Slett siden", "Delete page"),
    )

    assert found == {"nb": ["Slett siden"]}


def test_placeholders_markup_and_other_scripts_are_dropped_and_counted() -> None:
    texts = Texts()
    texts.add(
        [
            Message("de", "Noch %(count)s Seiten", None),
            Message("de", "<b>Seite</b>", None),
            Message("ru", "Home Connect", None),
            Message("de", "x" * 301, None),
            Message("de", "Seite", None),
        ]
    )

    assert texts.of_languages()["de"] == {"seite": "Seite"}
    assert {x: texts.dropped[x] for x in ("placeholder", "markup", "too long")} == {
        "placeholder": 1,
        "markup": 1,
        "too long": 1,
    }
    assert texts.dropped["without letters of the script"] == 1


def test_both_forms_of_catalog_are_read_with_what_they_translate() -> None:
    wheel = zip_of(
        {
            "x/locale/de/LC_MESSAGES/x.po": catalog_of({"Save": "Speichern", "Open": ""}),
            "x/locale/tlh/LC_MESSAGES/x.po": catalog_of({"Save": "pol"}),
            f"x/translations/app/en-{'0a' * 16}.json": json.dumps({"a": {"b": "Close"}}),
            f"x/translations/app/fr-{'b1' * 16}.json": json.dumps({"a": {"b": "Fermer"}, "c": "d"}),
            "y/locales/pt-BR/dags.json": "no English beside it: not read",
        }
    )

    assert list(languages.messages(wheel)) == [
        Message("de", "Speichern", "Save"),
        Message("en", "Save", None),
        Message("en", "Close", "Close"),
        Message("fr", "Fermer", "Close"),
        Message("fr", "d", None),
    ]


def test_a_split_depends_on_the_letters_and_holds_the_package_apart() -> None:
    by_key = {f"wort{chr(97 + i // 26)}{chr(97 + i % 26)}": f"Wort {i}" for i in range(600)}
    apart = {"de": {"wortaa", "wortab", "other"}}

    splits = languages.split({"de": by_key}, apart)

    assert splits["package"] == [("Wort 0", "de"), ("Wort 1", "de")]
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 598 - len(splits["valid"]) - len(splits["test"]),
        "valid": len(splits["valid"]),
        "test": len(splits["test"]),
        "package": 2,
    }
    assert 20 < len(splits["test"]) < 80
    shuffled = dict(reversed(by_key.items()))
    assert languages.split({"de": shuffled}, apart) == splits


@given(st.text("ab é\u4e2d", max_size=32 * languages.MIN_PIECE).map(str.strip))
def test_pieces_are_the_text_cut_before_blanks(text: str) -> None:
    found = languages.pieces(text)

    assert "".join(found).replace(" ", "") == text.replace(" ", "")
    assert all(len(piece) <= 2 * languages.MAX_PIECE for piece in found)
    assert all(len(piece) >= languages.MIN_PIECE for piece in found[:-1])


def test_no_piece_is_a_text_of_a_split_or_of_two_languages() -> None:
    long = "Seite endgültig löschen und danach sofort neu laden"
    splits = {"train": [(long, "de")], "test": [], "valid": [], "package": []}
    found = languages.new_pieces(splits)
    assert [language for _, language in found] == ["de"] * len(languages.pieces(long))

    held_out, shared, *rest = (piece for piece, _ in found)
    splits["test"] = [(held_out.upper(), "de")]
    splits["train"].append((shared, "nl"))
    assert [piece for piece, _ in languages.new_pieces(splits)] == rest


def test_the_files_and_their_notices_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_wheel(wheel: Wheel, _: Path) -> zipfile.ZipFile:
        own = "apart" if wheel.name in languages.HELD_OUT else "elsewhere"
        entries = {"Save": "Speichern", f"Said {own}": f"Gesagt {own}"}
        files = {"x/locale/de/LC_MESSAGES/x.po": catalog_of(entries)}
        info = f"{wheel.name}-{wheel.version}.dist-info"
        for package in languages.PACKAGES:
            if package.wheel == wheel and package.licence_file:
                files[f"{info}/licenses/{package.licence_file}"] = f"terms of {wheel.name}"
        return zip_of(files)

    monkeypatch.setattr(languages, "open_wheel", fake_wheel)
    monkeypatch.setattr(languages, "cldr_names", lambda locale: [f"name in {locale.language}"])

    lines = DATASETS["languages"](tmp_path)

    held_out = (tmp_path / "package.tsv").read_text()
    assert held_out == "Gesagt apart\tde\nSaid apart\ten\nSave\ten\nSpeichern\tde\n"
    others = "".join((tmp_path / f"{x}.tsv").read_text() for x in ("train", "valid", "test"))
    assert "Gesagt elsewhere\tde\n" in others
    assert "name in fr\tfr\n" in others
    assert "Speichern" not in others
    notices = (tmp_path / "NOTICES.txt").read_text()
    assert all(package.wheel.name in notices for package in languages.PACKAGES)
    assert "terms of holidays\n" in notices
    assert "UNICODE LICENSE" in notices
    assert "CLDR: 60 names" in lines


def test_sixty_languages_and_every_package_pinned_once() -> None:
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 60
    digests = {package.wheel.sha256 for package in languages.PACKAGES}
    assert len(digests) == len(languages.PACKAGES)
    assert {package.wheel.name for package in languages.PACKAGES} >= languages.HELD_OUT
