"""What may change in the configuration of a run that goes on, and what may not."""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

# Words for people, the schedule, what is looked at, where it runs. The files may be called
# otherwise: that the text is the same is known by its digest. Lists that say which split a file is
# in are not among these: the digest knows nothing of splits.
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
    "training.beam_size",
    "training.device",
    "training.threads",
    "training.init_from",
)


def forbidden_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first option that may not change and has, with both values; None where there is none.

    `old` and `new` are configurations as JSON, every default written out.
    """
    before, after = dict(_options(old)), dict(_options(new))
    for option in {**before, **after}:
        was, now = before.get(option), after.get(option)
        if was != now and not _is_free(option):
            return f"{option}: it was {json.dumps(was)}, the configuration has {json.dumps(now)}"
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
