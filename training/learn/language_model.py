"""The choices for text: its amount decides sizes, dropout and schedule."""

from collections.abc import Sequence
from typing import Any

from training.learn.plan import Plan, held_out_fraction
from training.learn.recognize import Sight

_LINE_CHARS = 40  # characters of running text that count as one text
_SIZES = (384, 256, 192, 128, 96, 64)

# With little text, amounts of dropout are tried, since repetitive text needs less than varied text.
# The recurrent matrix needs dropout most; with it, many units do better than few.
_DROPOUTS: tuple[dict[str, float], ...] = (
    {"dropout_output": 0.25, "weight_drop": 0.4},
    {"dropout_input": 0.1, "dropout_output": 0.5, "weight_drop": 0.5},
    {"dropout_output": 0.1, "weight_drop": 0.2},
)

_MUCH_TEXT = 400_000  # characters to train on

# Of 0.3, 0.5 and 0.7 the best on 2,000 names: 3.36, 3.34 and 3.37 bits a character, 3.44 without.
_NGRAM_TARGETS = 0.5


def plan(sight: Sight, size: int, replicas: int, held_out: float | None) -> Plan:
    """As `recipe.plan`."""
    lines = sight.kind == "lines"
    texts = sight.texts if lines else sight.chars // _LINE_CHARS
    fraction = held_out_fraction(texts, sight.chars)
    train_chars = sight.chars * (1.0 - (2.0 * fraction if held_out is None else held_out))
    hidden_size = _SIZES[min(len(_SIZES) - 1, _size_for(train_chars) + size)]
    mean_chars = max(1.0, sight.chars / sight.texts) if lines else sight.chars
    batch_size, bptt_len = (32 if lines and mean_chars < 50 else 16), 64
    if lines and train_chars > 400_000:
        batch_size = int(min(128, max(16, 8 * round(128 / mean_chars))))
    window = min(bptt_len, mean_chars + 1)
    epoch_steps = train_chars / (batch_size * window)
    side_by_side = replicas if batch_size * window >= 512 else 1
    training: dict[str, Any] = {
        "batch_size": batch_size,
        "bptt_len": bptt_len,
        "replicas": side_by_side,
        "learning_rate": 0.003 if train_chars > 100_000 else 0.01,
        "beta2": 0.99,
        "patience": 8,
    }
    if side_by_side == 1:
        training["threads"] = 1
    if not lines:
        training["restart_probability"] = 0.05 if train_chars < 400_000 else 0.01
    chosen, variants, why = _dropouts(train_chars)
    reasons = [f"one LSTM layer of {hidden_size} units for {train_chars:,.0f} characters", why]
    if train_chars <= _MUCH_TEXT:
        training["ngram_targets"] = _NGRAM_TARGETS
        reasons.append("an n-gram model helps to teach it: half of each target (ngram_targets)")
    return Plan(
        "language_model",
        {
            "documents": "line" if lines else "file",
            "valid_fraction": fraction,
            "test_fraction": fraction,
        },
        {
            "hidden_size": hidden_size,
            "embedding_dim": 64 if train_chars > 400_000 else 32,
            **chosen,
        },
        training,
        epoch_steps,
        max_epochs=max(35.0, 300.0 / epoch_steps) if variants else 60.0,
        min_epochs=min(4.0, 4e6 / train_chars),
        reasons=reasons,
        variants=variants,
    )


def _dropouts(train_chars: float) -> tuple[dict[str, float], Sequence[dict[str, float]], str]:
    """The dropout for so much text, other amounts to try, and the reason."""
    if train_chars > _MUCH_TEXT:
        return {"dropout_input": 0.1, "dropout_output": 0.25}, (), "much text: light dropout"
    if train_chars > 100_000:
        strong = {"dropout_input": 0.2, "dropout_output": 0.45, "weight_drop": 0.35}
        return strong, (), "not much text: strong dropout"
    return _DROPOUTS[0], _DROPOUTS[1:], "little text, which needs dropout"


def _size_for(train_chars: float) -> int:
    """Index of the size for so much text."""
    for index, least in enumerate((8_000, 4_000, 2_000, 1_000)):
        if train_chars >= least:
            return index
    return len(_SIZES) - 1
