"""`python -m bench.attention`: compare kinds of attention and of encoder on dates-iso.

Trains training/configs/dates-iso.toml once for each variant, with nothing else changed, and prints
the share of unseen dates that greedy decoding gets right. Needs data/dates (`make data/dates`).
"""

import json
import sys
from pathlib import Path
from typing import Any

from bench.report import RESULTS, machine, say
from training.config import EncoderDecoderConfig, load_config
from training.data.pairs import prepare_pairs
from training.evaluation.encoder_decoder import mean_loss, translation_metrics
from training.loop.encoder_decoder import EncoderDecoderTask
from training.loop.trainer import Trainer, parameter_count

CONFIG = Path("training/configs/dates-iso.toml")
STEPS = 1000
VARIANTS: dict[str, dict[str, Any]] = {
    "no attention: the last state alone": {"attention": "none"},
    "dot": {"attention": "dot", "encoder_hidden_size": 64},
    "general": {"attention": "general"},
    "additive": {"attention": "additive"},
    "general, input feeding": {"attention": "general", "input_feeding": True},
    "general, convolutions and pooling by 2": {
        "attention": "general",
        "encoder": "crnn",
        "pool_stride": 2,
        "conv_widths": [1, 2, 3, 4],
        "conv_filters": [32, 32, 64, 64],
    },
}


def main() -> int:
    """Train every variant, print the table and write bench/results/attention.json."""
    config = load_config(CONFIG)
    if not isinstance(config, EncoderDecoderConfig):
        raise TypeError(CONFIG)
    corpus = prepare_pairs(config.data, CONFIG.resolve().parent)
    rows = []
    for number, (name, options) in enumerate(VARIANTS.items()):
        model = config.model.model_copy(update=options)
        training = config.training.model_copy(
            update={"steps": STEPS, "eval_every": STEPS // 2, "show": 0}
        )
        variant = config.model_copy(update={"model": model, "training": training})
        run = Path(__file__).parent / ".work" / "attention" / str(number)
        run.mkdir(parents=True, exist_ok=True)
        task = EncoderDecoderTask(variant, corpus)
        trainer = Trainer(variant, task, run)
        trainer.run()
        test = corpus.tests[0]
        best = trainer.evaluated_model
        found = translation_metrics(
            variant, best, corpus, test, task.limits, beam_size=1, device=task.device
        )
        rows.append(
            {
                "name": name,
                "parameters": parameter_count(task.model),
                "exact_match": found["exact_match"],
                "loss": mean_loss(best, test, task.device),
                "seconds": trainer.seconds,
            }
        )
        say(json.dumps(rows[-1]))
    document = {"machine": machine(), "steps": STEPS, "rows": rows}
    (RESULTS / "attention.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
