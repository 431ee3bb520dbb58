"""The choices for text: its amount decides sizes, dropout and schedule."""

import math
from collections.abc import Sequence
from typing import Any

from training.data.corpus import LEAST_FITTED
from training.learn.plan import Plan, held_out_fraction
from training.learn.sight import Sight

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

# Used where there is too little text to mix an n-gram in. In a mixture, such targets make the parts
# too similar: three lists of 2,000 names need 3.51, 3.22 and 2.91 bits a character in
# mixtures without them, and 3.52, 3.23 and 2.97 with them.
_NGRAM_TARGETS = 0.5

# Of the n-gram in a mixture. Tiny Shakespeare has 1,406,000 n-grams: a network mixed with the best
# 150,000 needs 1.936 bits a character, with all of them 1.909, and alone 1.974. 150,000 n-grams
# are a third of the bundle.
_ORDER = 8
_MAX_NGRAMS = 150_000
# Characters: counting takes about 100 bytes for each.
_MOST_COUNTED = 5_000_000
# Numbers of a hidden output that an adapting layer reads: more make each step slower.
_ADAPT_RANK = 64


def plan(sight: Sight, size: int, replicas: int, held_out: float | None) -> Plan:
    """As `recipe.plan`."""
    lines = sight.kind == "lines"
    texts = sight.texts if lines else sight.chars // _LINE_CHARS
    fraction = held_out_fraction(texts, sight.chars)
    train_chars = sight.chars * (1.0 - (2.0 * fraction if held_out is None else held_out))
    # Validation text or, without a test split, half of it. The sizes of files given for validation
    # and test are not known here.
    tokens = sight.chars + (texts if lines else 0)
    fit_share = fraction if held_out is None else held_out / 2.0
    fit_tokens = tokens * fit_share if held_out != 0.0 else math.inf
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
    added, what = _added(train_chars, lines=lines)
    if fit_tokens < LEAST_FITTED:
        training["ngram_targets"] = _NGRAM_TARGETS
        added, what = {}, ["too little text to mix an n-gram in: it helps to train (ngram_targets)"]
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
        reasons=[*reasons, *what],
        variants=variants,
        added=added,
    )


def _added(train_chars: float, *, lines: bool) -> tuple[dict[str, dict[str, Any]], Sequence[str]]:
    """The sections for what the export adds, and the reasons."""
    added: dict[str, dict[str, Any]] = {}
    reasons = []
    if train_chars > _MOST_COUNTED:
        reasons.append("too much text to count: no n-gram is mixed in, which would add little")
    else:
        added["ngram"] = {"order": _ORDER}
        reasons.append(f"an {_ORDER}-gram is averaged with the network at export ([ngram])")
        if _ORDER * train_chars > _MAX_NGRAMS:
            added["ngram"]["max_ngrams"] = _MAX_NGRAMS
            reasons[-1] += f": its {_MAX_NGRAMS:,} most valuable n-grams"
    if not lines:
        added["adapt"] = {"rank": _ADAPT_RANK}
        reasons.append("requests can let it adapt to their text ([adapt]), if that helps")
    return added, reasons


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
