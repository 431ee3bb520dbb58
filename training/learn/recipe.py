"""The choices for the recognized files: splits, sizes and dropout, each with its reason.

The sizes come from configurations that were tuned by hand (training/configs: tiny Shakespeare,
Alice, SIGMORPHON). In between, the amount of text decides, and the time limits the size.
"""

from collections.abc import Callable, Mapping

from training.config import ConfigError
from training.learn import encoder_decoder, labeler, language_model
from training.learn.plan import Plan
from training.learn.sight import Kind, Sight

# With fewer texts, nothing would be left to test on.
MIN_LINES = 30
MIN_PAIRS = 100
MIN_CHARS = 2_000
MIN_TEXTS = 100  # with labels
MIN_TAGGED = 30

_RECIPES: Mapping[Kind, Callable[[Sight, int, int, float | None], Plan]] = {
    "lines": language_model.plan,
    "file": language_model.plan,
    "pairs": encoder_decoder.plan,
    "labels": labeler.plan_labels,
    "tags": labeler.plan_tags,
    "accents": labeler.plan_accents,
}


def check_enough(sight: Sight) -> None:
    """Raises ConfigError, which says how much is needed, where there is too little data."""
    found, least, what = {
        "lines": (sight.texts, MIN_LINES, "lines"),
        "pairs": (sight.texts, MIN_PAIRS, "pairs"),
        "file": (sight.chars, MIN_CHARS, "characters"),
        "labels": (sight.texts, MIN_TEXTS, "labelled texts"),
        "tags": (sight.texts, MIN_TAGGED, "labelled texts"),
        "accents": (sight.chars, MIN_CHARS, "characters"),
    }[sight.kind]
    if found < least:
        raise ConfigError(
            f"{sight.files[0]}: {found:,} {what} are too few: at least {least:,} are needed, most "
            f"to learn from and the rest to test on; a useful model needs {10 * least:,} or more"
        )


def plan(sight: Sight, *, size: int = 0, replicas: int = 1, held_out: float | None = None) -> Plan:
    """The choices. `size` is how many sizes smaller the model is than with plenty of time.

    `held_out` is the share of the texts that is not trained on, where it is already known.
    """
    return _RECIPES[sight.kind](sight, size, replicas, held_out)
