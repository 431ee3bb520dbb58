"""Files that a user names, and their bytes as text."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import text_files
from training.errors import ConfigError
from training.text_files import input_files, read_lines, read_text

TEXT = "Zo\u00eb \u20ac\r\n\U0001f407\rend\u2028.\n\nlast"
LINES = ["Zo\u00eb \u20ac", "\U0001f407", "end\u2028.", "", "last"]


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_byte_order_mark_says_how_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, block: int
) -> None:
    path = tmp_path / "a.txt"
    mark = "\ufeff" * encoding.endswith("e")
    path.write_bytes((mark + TEXT).encode(encoding))
    # The mark itself is looked for in one block.
    monkeypatch.setattr(text_files, "READ_BYTES", max(4, block) if mark else block)
    assert read_text(path) == TEXT
    assert list(read_lines(path)) == LINES


@given(st.text("ab\r\n\u2028", max_size=12), st.integers(1, 3))
@settings(deadline=None, max_examples=100)
def test_lines_are_those_of_the_whole_text_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(text.encode())
    wanted = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BYTES", block)
        assert list(read_lines(path)) == (wanted[:-1] if wanted[-1] == "" else wanted)


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_that_is_not_utf_8_is_told_with_its_place_and_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, block: int
) -> None:
    monkeypatch.setattr(text_files, "READ_BYTES", block)
    path = tmp_path / "my names.txt"
    head = f"Zo\u00eb{end}Anna{end}".encode()
    path.write_bytes(head + "Jos\u00e9\nBen".encode("cp1252"))
    with pytest.raises(ConfigError) as caught:
        read_text(path)
    place = f"{path}, line 3, byte {len(head) + 4} of the file: not UTF-8: "
    assert str(caught.value).startswith(place)
    command = str(caught.value).partition("Europe: ")[2]
    subprocess.run(["bash", "-c", command], check=True)
    assert read_text(tmp_path / "my names.utf8.txt").endswith("Jos\u00e9\nBen")


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE"])
@pytest.mark.parametrize("text", ["Anna\nBen\n", "\u0418\u0432\u0430\u043d \u0418\n"])
def test_utf_16_without_a_byte_order_mark_is_recognized(
    tmp_path: Path, text: str, encoding: str
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(ConfigError, match=rf"a\.txt: {encoding} without .*iconv -f {encoding} "):
        read_text(tmp_path / "a.txt")


def test_a_file_that_its_byte_order_mark_belies_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfea\0\n\0\0\xd8b\0")
    with pytest.raises(ConfigError, match=r"a\.txt, line 2, byte 7 of .*: not UTF-16, which its"):
        read_text(tmp_path / "a.txt")


def test_a_name_is_a_name_before_it_is_a_pattern(tmp_path: Path) -> None:
    for name in ("[1] a.txt", "1", "what?.txt", "whats.txt"):
        (tmp_path / name).write_text(name)
    assert input_files(["[1] a.txt", "what?.txt"], tmp_path) == [
        tmp_path / "[1] a.txt",
        tmp_path / "what?.txt",
    ]
    assert input_files(["[1]"], tmp_path) == [tmp_path / "1"]


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    for pattern in ("~/a.txt", "~/*.txt", "~"):
        assert input_files([pattern], Path("/")) == [tmp_path / "a.txt"]


def test_a_folder_is_its_texts(tmp_path: Path) -> None:
    for name in ("b.txt", "a.TXT", "c.md", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    assert input_files(["."], tmp_path) == [tmp_path / "a.TXT", tmp_path / "b.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ConfigError, match=r"data\.files: .*empty is a folder without \*\.txt files"
    ):
        input_files(["empty"], tmp_path)


def test_a_file_is_taken_once_by_whatever_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "link.txt").symlink_to("a.txt")
    names = ["a.txt", "./a.txt", str(tmp_path / "a.txt"), "*.txt", "link.txt"]
    assert input_files(names, tmp_path) == [tmp_path / "a.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch(mode=0)
    with pytest.raises(ConfigError, match=r"a\.txt: Permission denied"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_marks_that_the_service_does_not_read_are_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a" + "\u0301" * 40 + "b\n", encoding="utf-8")
    monkeypatch.setattr(text_files, "READ_BYTES", block)
    with pytest.warns(UserWarning, match=r"a.txt: 10 combining marks are left out; at most 30"):
        assert read_text(path) == "a" + "\u0301" * 30 + "b\n"
