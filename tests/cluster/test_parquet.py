"""`score --input` of Parquet, in the environment that has pyarrow."""

import json
import subprocess
from pathlib import Path

import pytest

from service.bundle.store import write_bundle
from service.cli.bundle import Bundle
from tests.bundles import tiny_files
from tests.cluster.load import ROOT

_PYTHON = ROOT / ".venv/cluster/bin/python"

pytestmark = pytest.mark.skipif(
    not _PYTHON.exists(), reason="pyarrow is not installed; run `make .venv/cluster/.done`"
)

_MAKE = """
import sys, pyarrow as pa, pyarrow.parquet as pq
texts = [f"a cat {i}" for i in range(2500)] + [None, ""]
pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), sys.argv[1], row_group_size=900)
"""
_SHOW = """
import json, sys, pyarrow.parquet as pq
print(json.dumps(pq.read_table(sys.argv[1]).to_pylist()))
"""


def python(*words: str | Path, status: int = 0) -> str:
    done = subprocess.run([_PYTHON, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


def test_rows_gain_a_score_and_keep_their_place(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, *tiny_files("gru"))
    given, folder = tmp_path / "a.parquet", tmp_path / "out"
    python("-c", _MAKE, given)
    score = ("-m", "service", "score", "--bundle", bundle, "--input", given, "--output", folder)
    python(*score, status=1)  # one text is null
    assert sorted(x.name for x in folder.iterdir()) == ["a.parquet", "unroll.journal"]
    rows = json.loads(python("-c", _SHOW, folder / "a.parquet"))
    assert [row["id"] for row in rows] == list(range(2502))
    assert [row["id"] for row in rows if row["score"] is None] == [2500]
    assert rows[2500]["score_error"] == "no text"
    engine = Bundle(bundle)
    (whole,) = engine.ask("/score", {"text": "a cat 1234"})["results"]
    engine.close()
    found = rows[1234]["score"]
    assert found == {name: whole[name] for name in found}


def test_figures_that_are_lists_are_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, *tiny_files("gru"))
    given, folder = tmp_path / "a.parquet", tmp_path / "out"
    python("-c", _MAKE, given)
    score = ("-m", "service", "score", "--bundle", bundle, "--input", given, "--output", folder)
    python(*score, "--words", status=1)
    assert not folder.exists()
