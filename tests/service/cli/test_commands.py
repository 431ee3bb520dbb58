"""The command line in this process: what it makes of the bytes on standard input."""

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.bundle.store import write_bundle
from service.cli import commands as cli
from service.cli.input_lines import InputLine, InputLines
from tests.bundles import tiny_files

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def run(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """A command with these bytes on standard input: its status, output and errors, by line."""

    def run_it(given: bytes, *arguments: str) -> tuple[int, list[str], list[str]]:
        reader, writer = os.pipe()
        feeding = threading.Thread(target=_feed, args=(writer, given))
        feeding.start()
        with open(reader, encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            command, *others = arguments
            status = cli.run([command, "--bundle", str(models_dir / "tiny-gru"), *others])
        feeding.join()
        out, err = capfd.readouterr()
        return status, out.split("\n")[:-1], err.split("\n")[:-1]

    return run_it


def _feed(writer: int, given: bytes) -> None:
    # Around the file as well: what is buffered is written when it is closed.
    with suppress(BrokenPipeError), open(writer, "wb") as pipe:  # the command had enough
        pipe.write(given)


def texts(lines: list[str]) -> list[str]:
    return [line.split("\t")[1] for line in lines]


def test_lines_that_are_not_utf_8_are_named_and_the_others_scored(run: Run) -> None:
    status, out, err = run(b"a cat\ncaf\xe9\ntea\r\nb\xff\n", "score")
    assert (status, texts(out)) == (1, ["a cat", "tea"])
    errors = [line for line in err if line.startswith("error: ")]
    assert [x.split(";")[0] for x in errors] == [
        "error: standard input: line 2: byte 4 is not UTF-8",
        "error: standard input: line 4: byte 2 is not UTF-8",
    ]
    assert "iconv -f WINDOWS-1252 -t UTF-8" in errors[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_tells_the_encoding(run: Run, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    status, out, _ = run(f"{mark}a cat\ncaf\u00e9\n".encode(encoding), "score")
    assert (status, texts(out)) == (0, ["a cat", "caf\u00e9"])


def test_a_line_that_is_refused_is_named_and_the_others_are_answered(run: Run) -> None:
    lines = ["a cat", "\u05d0", *["tea"] * 70, "a\u05d0"]
    status, out, err = run("\n".join(lines).encode(), "score", "--unknown", "error")
    assert (status, texts(out)) == (1, ["a cat"] + ["tea"] * 70)
    named = [line.split(": ")[2] for line in err if line.startswith("error: ")]
    assert named == ["line 2", "line 73"]


def test_where_no_line_is_taken_the_rest_is_not_tried(run: Run) -> None:
    status, out, err = run(b"\xd7\x90\n" * 900, "score", "--unknown", "error")
    assert (status, out) == (1, [])
    errors = [line for line in err if line.startswith("error: ")]
    assert len(errors) == 21
    assert errors[-1] == "error: every line was refused so far; the rest is not tried"


def test_an_option_that_is_wrong_is_said_once_and_named_as_its_flag(run: Run) -> None:
    status, out, err = run(b"a\n" * 100, "generate", "--top-p", "2")
    assert (status, out) == (1, [])
    (error,) = [line for line in err if line.startswith("error: ")]
    assert error.startswith("error: --top-p: Input should be ")


@pytest.mark.parametrize("command", ["generate", "score"])
def test_a_model_that_cannot_adapt_says_so_at_the_flag(run: Run, command: str) -> None:
    status, out, err = run(b"", command, "--adapt", "a cat")
    assert (status, out) == (1, [])
    (error,) = [line for line in err if line.startswith("error: ")]
    assert error.startswith("error: --adapt: this model cannot adapt")


def test_a_percentile_stands_first_and_a_dash_where_there_is_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    known = {"least_chars": 3, "most_chars": 9, "texts": 2, "ranks": [1, 2]}
    values = {f"bits_per_char{end}": [0.0, 100.0] for end in ("", "_with_eos")}
    table = {"split": "test", "texts": "documents", "lengths": [known | values]}
    bundle = str(write_bundle(tmp_path, *tiny_files("gru", percentiles=table)))
    assert cli.run(["score", "--bundle", bundle, "--percentile", "a cat", "no"]) == 0
    rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("50.00", "a cat"), ("-", "no")]
    options = ["--percentile", "--format", "tsv"]
    assert cli.run(["score", "--bundle", bundle, *options, "a cat"]) == 0
    head, row = (line.split("\t") for line in capfd.readouterr().out.splitlines())
    assert head[0] == "percentile"
    told = dict(zip(head, row, strict=True))
    assert (told["percentile"], told["percentile_texts"], told["text"]) == ("50.0", "2", "a cat")


def test_guesses_stand_first_as_a_number_a_bound_or_a_dash(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    points = {"logprobs": [-1.0, -60.0], "guesses": [0.0, 5e9], "errors": [0.0, 1e8]}
    curve = {"samples": 100_000, "max_chars": 5, "cut": 0, **points}
    bundle = str(write_bundle(tmp_path, *tiny_files("gru", guesses=curve)))
    assert cli.run(["score", "--bundle", bundle, "--guesses", "cat", "a long cat", "c7t"]) == 0
    rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [row[2] for row in rows] == ["cat", "a long cat", "c7t"]
    number, bound, dash = (row[0] for row in rows)
    assert 1.0 < float(number) < 5e9
    assert (bound[0], dash) == (">", "-")
    assert float(bound[1:]) > float(number)
    options = ["--guesses", "--format", "tsv"]
    assert cli.run(["score", "--bundle", bundle, *options, "cat"]) == 0
    head, row = (line.split("\t") for line in capfd.readouterr().out.splitlines())
    assert head[:4] == ["guesses", "guesses_low", "guesses_high", "bits_per_char"]
    assert float(row[1]) <= float(row[0]) <= float(row[2])


def test_words_have_figures_in_json(run: Run) -> None:
    status, (line,), _ = run(b"", "score", "--words", "--format", "json", "a cat")
    assert status == 0
    assert [x["text"] for x in json.loads(line)["words"]] == ["a ", "cat"]


def test_a_bundle_without_held_out_texts_says_so_at_the_flag(run: Run) -> None:
    status, out, err = run(b"", "score", "--percentile", "a cat")
    assert (status, out) == (1, [])
    (error,) = [line for line in err if line.startswith("error: ")]
    assert error.startswith("error: --percentile: this bundle has no table of held-out texts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-n", "17"), "--n: too many choices; at most 16 are allowed"),
        (("--max-tokens", "100000"), "--max-tokens: too many tokens; "),
        (("--stop", "a", "--stop", ""), "--stop: a stop string has 1 to "),
        (("--stop", "a" * 1000), "--stop: a stop string has 1 to "),
        (tuple(itertools.repeat("--stop=a", 100)), "--stop: too many stop strings; at most "),
    ],
)
def test_a_bundle_has_the_limits_of_a_server(
    run: Run, arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = run(b"", "generate", *arguments, "a")
    assert (status, out) == (1, [])
    (error,) = [line for line in err if line.startswith("error: ")]
    assert error.startswith(f"error: {words}")


def test_a_prompt_may_be_left_out(run: Run) -> None:
    options = ("generate", "-n", "3", "--seed", "1", "--max-tokens", "8", "--format", "json")
    status, left_out, _ = run(b"", *options)
    assert (status, len(left_out)) == (0, 3)
    assert left_out == run(b"", *options, "")[1]
    assert {json.loads(line)["prompt"] for line in left_out} == {""}


def test_fills_have_a_line_each_with_their_posterior(run: Run) -> None:
    candidates = ("--candidates", "at", "sat")
    status, out, _ = run(b"the c___\n", "infill", *candidates)
    assert status == 0
    shares, fills = zip(*(line.split("\t") for line in out), strict=True)
    assert set(fills) == {"at", "sat"}
    assert abs(sum(map(float, shares)) - 1) < 2e-4
    _, (head, *table), _ = run(b"", "infill", "c___ ___", *candidates, "--format", "tsv")
    assert head == "text\trank\tposterior\tlogprob\tsuffix_logprob\tfill"
    # Of two blanks both texts, divided by a tab.
    assert {line.split("\t")[-1] for line in table} == {
        f"{first}\\t{second}" for first in ("at", "sat") for second in ("at", "sat")
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--blank", "?", "--candidates", "a"), "every text needs a blank, marked by the"),
        (("--unknown", "error", "--candidates", "\u05d0"), "--candidates: 1 characters are not in"),
        (("--candidates", "a", "--length", "1"), "length: only for open blanks"),
        (("--num-fills", "0"), "--num-fills: Input should be "),
    ],
)
def test_a_blank_that_cannot_be_filled_is_told(
    run: Run, arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = run(b"", "infill", "the ___", *arguments)
    assert (status, out) == (1, [])
    assert words in "\n".join(err)


@pytest.mark.parametrize(("blank", "mark"), [((), "___"), (("--blank", "??"), "??")])
def test_a_text_that_was_taken_for_a_candidate_is_not_waited_for(
    run: Run, blank: tuple[str, ...], mark: str
) -> None:
    arguments = (*blank, "--candidates", "very", "so", f"Alice was {mark} tired")
    status, out, err = run(b"a line of standard input\n", "infill", *arguments)
    assert (status, out) == (1, [])
    (error,) = err
    assert error == (
        f"error: --candidates: one of them contains a blank ({mark}); texts go before --candidates"
    )


def test_what_is_there_is_given_at_once_and_together() -> None:
    reader, writer = os.pipe()
    batches = InputLines(reader).batches(most_lines=1000, most_bytes=300)
    given: list[Any] = []
    for data in (b"\n", b"\xffa\n", b"one\ntwo\n", b"abc\n" * 250):
        os.write(writer, data)
        given.append(next(batches))
    assert [x.text for x in given[0]] == [""]
    assert [x.error is None for x in given[1]] == [False]
    assert given[2] == [InputLine(3, "one"), InputLine(4, "two")]
    assert len(given[3]) == 100  # as many as the bound on their size allows
    os.write(writer, b"half")
    os.close(writer)
    rest = [line for batch in batches for line in batch]
    assert (len(rest), rest[-1]) == (151, InputLine(255, "half"))
    os.close(reader)


def test_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("a")
    with path.open("rb") as file:
        assert InputLines(file.fileno()).name in {str(path), "standard input"}
