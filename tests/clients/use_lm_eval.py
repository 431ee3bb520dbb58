"""`use_lm_eval.py URL MODEL FOLDER OPTIONS`: lm-eval's local-completions on small tasks.

FOLDER has the tasks' YAML and their documents, OPTIONS is JSON. Prints the results as JSON.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import lm_eval
from lm_eval.tasks import TaskManager

URL, MODEL, FOLDER, OPTIONS = sys.argv[1:]
found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": MODEL,
        "base_url": f"{URL}/v1/completions",
        "tokenizer_backend": "remote",
        "max_length": 4096,
        "max_retries": 1,
        **json.loads(OPTIONS),
    },
    tasks=["unroll_rolling", "unroll_choice", "unroll_until"],
    task_manager=TaskManager(include_path=FOLDER, include_defaults=False),
    log_samples=True,
    bootstrap_iters=0,
    batch_size=2,
)
samples = {
    task: [{"doc": x["doc"], "resps": x["resps"]} for x in rows]
    for task, rows in found["samples"].items()
}
sys.stdout.write("\n" + json.dumps({"results": found["results"], "samples": samples}) + "\n")
