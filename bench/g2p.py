"""`python -m bench.g2p`: SIGMORPHON 2020 task 1, one recipe for eight languages.

Trains each language with training/configs/sigmorphon-g2p.toml (about five minutes each on two
cores). Prints the word and phoneme error rates on the test set in percent, with the word error
rates of the official LSTM encoder-decoder baseline. Needs ../shared/data/sigmorphon2020-g2p.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from bench.report import RESULTS, machine, say
from bench.server import ROOT
from training.__main__ import main as train
from training.loop.checkpoint import LAST
from training.loop.run_log import read_log

# Word error rates in percent on the official test sets (the data folder's README).
BASELINE = {
    "arm": 14.67,
    "dut": 16.44,
    "fre": 6.22,
    "gre": 18.89,
    "hun": 5.33,
    "jpn": 7.56,
    "lit": 19.11,
    "rum": 10.67,
}
DATA = "data/sigmorphon2020-g2p"
WORK = ROOT / "bench" / ".work"
CONFIG = Path("training/configs/sigmorphon-g2p.toml")


def main() -> int:
    """Train, print the table and write bench/results/g2p.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--languages", nargs="+", choices=BASELINE, default=list(BASELINE))
    options = parser.parse_args()
    data = Path("../shared", DATA).resolve()
    if not data.is_dir():
        say(f"{data}: there is no such folder; this benchmark needs it")
        return 1
    found = {language: _run(language, data) for language in options.languages}
    rows = [
        {
            "language": language,
            "word_error_rate": 100 * values["word_error_rate"],
            "phoneme_error_rate": 100 * values["symbol_error_rate"],
            "baseline_word_error_rate": BASELINE[language],
            "seconds": values["seconds"],
        }
        for language, values in found.items()
    ]
    say(_table(rows))
    if len(rows) == len(BASELINE):
        document = {"machine": machine(), "recipe": CONFIG.name, "rows": rows}
        (RESULTS / "g2p.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _run(language: str, data: Path) -> dict[str, float]:
    """Train one language; its test metrics with the recipe's beam, and the training time."""
    folder = WORK / "g2p"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = CONFIG.read_text(encoding="utf-8").replace(f"../../../shared/{DATA}", str(data))
    config = folder / f"{language}.toml"
    config.write_text(
        recipe.replace("/arm_", f"/{language}_").replace(
            'name = "sigmorphon-g2p"', f'name = "sigmorphon-{language}"'
        )
    )
    # The folder is named by the recipe: a finished run is reused, an interrupted one resumed.
    run = folder / f"{language}-{hashlib.sha256(config.read_bytes()).hexdigest()[:8]}"
    if not (run / "metrics.json").exists():
        resume = ["--resume"] if (run / LAST).exists() else []
        if train(["train", str(config), "--run", str(run), *resume]) != 0:
            raise RuntimeError(f"{language}: training failed; see above")
    (metrics,) = json.loads((run / "metrics.json").read_text())
    models = [x for x in metrics["measurements"] if x["kind"] == "model"]
    values: dict[str, float] = models[-1]["values"]
    seconds = [x["seconds"] for x in read_log(run / "log.jsonl")]
    return {**values, "seconds": seconds[-1]}


def _table(rows: list[dict[str, float | str]]) -> str:
    lines = [f"{'':<10}{'WER':>8}{'PER':>8}{'baseline WER':>14}{'seconds':>9}"]
    keys = ("word_error_rate", "phoneme_error_rate", "baseline_word_error_rate", "seconds")
    for row in rows:
        cells = [float(row[key]) for key in keys]
        lines.append(
            f"{row['language']:<10}{cells[0]:>8.2f}{cells[1]:>8.2f}{cells[2]:>14.2f}{cells[3]:>9.0f}"
        )
    means = [sum(float(row[key]) for row in rows) / len(rows) for key in keys]
    lines.append(f"{'mean':<10}{means[0]:>8.2f}{means[1]:>8.2f}{means[2]:>14.2f}{means[3]:>9.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
