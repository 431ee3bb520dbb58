"""Which options of a configuration may change when a run is resumed."""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

# Descriptions, the schedule, what the export adds, what is measured and shown, the hardware. The
# files may be renamed: a digest shows that the text is the same. The lists that assign files to
# splits may not change, because the digest does not cover that.
_FREE = (
    "name",
    "description",
    "license",
    "data.title",
    "data.origin",
    "data.source",  # of a text, in words; of pairs it is a table, whose options have longer names
    "data.license",
    "data.files",
    "data.*.lang",
    "ngram",
    "ngram.*",
    "adapt",
    "adapt.*",
    "baselines.*",
    "training.steps",
    "training.learning_rate",
    "training.warmup_steps",
    "training.final_learning_rate_ratio",
    "training.weight_decay",
    "training.grad_clip_*",
    "training.eval_every",
    "training.patience",
    "training.log_every",
    "training.checkpoint_every",
    "training.sample_*",
    "training.show",
    "training.max_valid_sources",
    "training.max_valid_texts",
    "training.beam_size",
    "training.device",
    "training.threads",
    "training.init_from",
)


def forbidden_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first forbidden change, with both values; None if there is none.

    `old` and `new` are configurations as JSON, with all defaults.
    """
    before, after = dict(_options(old)), dict(_options(new))
    for option in {**before, **after}:
        was, now = before.get(option), after.get(option)
        if was != now and not _is_free(option):
            return (
                f"{option}: it was {json.dumps(was)}, but the configuration has {json.dumps(now)}"
            )
    return None


def _is_free(option: str) -> bool:
    return any(fnmatchcase(option, pattern) for pattern in _FREE)


def _options(table: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        option = f"{name}{key}"
        if isinstance(value, Mapping):
            yield from _options(value, f"{option}.")
        else:
            yield option, value
