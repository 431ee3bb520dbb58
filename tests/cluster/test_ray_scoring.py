"""Files scored by Ray Data on two nodes."""

import json
from pathlib import Path

import pytest

from service.bundle.store import write_bundle
from service.cli.bundle import Bundle
from tests.bundles import tiny_files
from tests.cluster import ray_cluster
from tests.cluster.namespaces import nodes
from tests.cluster.ray_cluster import ENVIRONMENT

pytestmark = pytest.mark.skipif(
    ray_cluster.missing() is not None, reason=str(ray_cluster.missing())
)

# Prints rows of Parquet in the order of the files' names.
_SHOW = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
rows = [row for x in sorted(Path(sys.argv[1]).iterdir()) for row in pq.read_table(x).to_pylist()]
print(json.dumps(rows))
"""


def test_every_line_has_the_numbers_of_score_and_its_place(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "models", *tiny_files("gru"))
    texts = {
        name: [f"{name} {i} a cat" for i in range(4000)] + ["", "caf\u00e9"] for name in ("a", "b")
    }
    (tmp_path / "in").mkdir()
    for name, lines in texts.items():
        (tmp_path / "in" / f"{name}.log").write_text("\n".join(lines) + "\n")
    with nodes(3) as made, ray_cluster.ray_cluster(made, cpus=2) as cluster:
        # Three processes, and two processors a node: both nodes score.
        cluster.command(
            *(ENVIRONMENT / "python", "-m", "service.cluster.scoring", "--workers", "3"),
            *("--bundle", bundle, "--input", tmp_path / "in", "--output", tmp_path / "out"),
            timeout_s=300,
        )
        shown = cluster.command(ENVIRONMENT / "python", "-c", _SHOW, tmp_path / "out")
    rows = json.loads(shown.splitlines()[-1])
    engine = Bundle(bundle)
    for name, lines in texts.items():
        found = [row for row in rows if Path(row["path"]).stem == name]
        assert [row["text"] for row in found] == lines
        for row in found[::500] + found[-2:]:
            (whole,) = engine.ask("/score", {"text": row["text"]})["results"]
            assert {key: row[key] for key in ("bits_per_char", "bits", "logprob", "chars")} == {
                key: whole[key] for key in ("bits_per_char", "bits", "logprob", "chars")
            }
    engine.close()
