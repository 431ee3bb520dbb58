"""The choices for what was recognized: splits, sizes, dropout, steps, each with its reason.

The sizes come from recipes that were tuned by hand (training/configs): tiny Shakespeare's, Alice's,
SIGMORPHON's. Between them the choices go by how much text there is, and the time decides how large
a model can be trained on it.
"""

from collections.abc import Callable, Mapping

from training.config import ConfigError
from training.learn import encoder_decoder, language_model
from training.learn.plan import Plan
from training.learn.recognize import Kind, Sight

# Fewer texts leave nothing to test on.
MIN_LINES = 30
MIN_PAIRS = 100
MIN_CHARS = 2_000

_RECIPES: Mapping[Kind, Callable[[Sight, int, int, float | None], Plan]] = {
    "lines": language_model.plan,
    "file": language_model.plan,
    "pairs": encoder_decoder.plan,
}


def check_enough(sight: Sight) -> None:
    """Raises ConfigError, with how much is needed, where there is too little to learn from."""
    found, least, what = {
        "lines": (sight.texts, MIN_LINES, "lines"),
        "pairs": (sight.texts, MIN_PAIRS, "pairs"),
        "file": (sight.chars, MIN_CHARS, "characters"),
    }[sight.kind]
    if found < least:
        raise ConfigError(
            f"{sight.files[0]}: {found:,} {what} are too few: at least {least:,} are needed, to "
            f"learn from most and to test on the rest; a useful model begins at {10 * least:,}"
        )


def plan(sight: Sight, *, size: int = 0, replicas: int = 1, held_out: float | None = None) -> Plan:
    """The choices; `size` counts how many sizes below the one for plenty of time.

    `held_out` is the share of the texts that is not trained on, where that is settled.
    """
    return _RECIPES[sight.kind](sight, size, replicas, held_out)
