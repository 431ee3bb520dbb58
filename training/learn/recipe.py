"""The choices for what was recognized: splits, sizes, dropout, steps, each with its reason.

The sizes come from recipes that were tuned by hand (training/configs): tiny Shakespeare's, Alice's,
SIGMORPHON's. Between them the choices go by how much text there is, and the time decides how large
a model can be trained on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.config import ConfigError
from training.learn.recognize import Side, Sight

# Fewer texts leave nothing to test on.
MIN_LINES = 30
MIN_PAIRS = 100
MIN_CHARS = 2_000
# Held-out texts that a figure should be over, if the data has them.
_HELD_OUT_TEXTS = 200
_LINE_CHARS = 40  # of running text that count as a text
_LARGEST_FRACTION = 0.15
_SMALLEST_FRACTION = 0.05
_HELD_OUT_CHARS = 200_000  # more says nothing new and costs time at every evaluation

MIN_STEPS = 20
_TRIAL_SHARE = 0.5
_MIN_TRIAL_STEPS = 300
# Shares of the time: evaluations on the way must leave most of it to training.
_EVALUATIONS = 20
_EVALUATION_SHARE = 0.1
# Seconds of --minutes that are left for what a step's time does not tell.
_RESERVE = 0.03


@dataclass(frozen=True, slots=True)
class Speed:
    """What this machine does: measured."""

    step_s: float
    evaluation_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a configuration by section, before the time has been measured."""

    task: str
    data: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    epoch_steps: float  # steps that read the training split once
    max_epochs: float  # more would not help
    min_epochs: float  # where the time gives fewer, a smaller model is worth more
    reasons: Sequence[str] = ()
    sides: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # pairs: data.source, data.target
    variants: Sequence[dict[str, float]] = ()  # other dropouts that may suit the data better


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


def held_out_fraction(texts: int, chars: int) -> float:
    """The share of the texts that is validated on, and again tested on."""
    wanted = _HELD_OUT_TEXTS / max(1, texts)
    fraction = min(_LARGEST_FRACTION, max(_SMALLEST_FRACTION, wanted))
    return round(min(fraction, max(0.005, _HELD_OUT_CHARS / max(1, chars))), 4)


def plan(sight: Sight, *, size: int = 0, replicas: int = 1, held_out: float | None = None) -> Plan:
    """The choices; `size` counts how many sizes below the one for plenty of time.

    `held_out` is the share of the texts that is not trained on, where that is settled.
    """
    if sight.kind == "pairs":
        return _pairs(sight, size, replicas, held_out)
    return _texts(sight, size, replicas, held_out)


def steps_for(plan: Plan, speed: Speed, minutes: float) -> tuple[int, int]:
    """Steps that fit the time with their evaluations, and steps between evaluations."""
    budget_s = 60.0 * minutes * (1.0 - _RESERVE)
    evaluations = min(_EVALUATIONS, max(2, int(_EVALUATION_SHARE * budget_s / speed.evaluation_s)))
    left_s = max(0.0, budget_s - (evaluations + 1) * speed.evaluation_s)
    steps = min(int(left_s / speed.step_s), round(plan.max_epochs * plan.epoch_steps))
    steps = max(MIN_STEPS, steps)
    return steps, max(1, -(-steps // evaluations))


def trial_steps(plan: Plan, speed: Speed, minutes: float) -> int | None:
    """Steps for each way to drop out, all in a share of the time; None where they say nothing."""
    if not plan.variants:
        return None
    ways = 1 + len(plan.variants)
    steps, _ = steps_for(plan, speed, minutes * _TRIAL_SHARE / ways)
    return steps if steps >= min(_MIN_TRIAL_STEPS, 10 * plan.epoch_steps) else None


def shortened(steps: int, tried: int, best_step: int) -> int:
    """Steps, where trials of `tried` steps were best at `best_step`.

    A schedule whose best weights come long before its end overfits: one that ends soon after them
    has annealed by then, and its best weights are better. Where the trials were best at their end,
    more helps, and three times as much is enough (2,000 names: 3.34 bits with 1.5 times the steps,
    3.31 with three).
    """
    enough = 3.0 * tried if best_step > 0.7 * tried else 1.5 * best_step
    return min(steps, max(MIN_STEPS, round(enough)))


def too_slow(plan: Plan, speed: Speed, minutes: float) -> bool:
    """Whether a smaller model is worth more: the time does not let this one read enough."""
    return 60.0 * minutes / speed.step_s < plan.min_epochs * plan.epoch_steps


def with_steps(plan: Plan, steps: int, eval_every: int) -> dict[str, Any]:
    """The training section, its schedule fitted to the steps."""
    decay = 0.998 if steps >= 4000 else 0.99 if steps >= 1500 else 0.98
    return {
        "steps": steps,
        "eval_every": eval_every,
        "checkpoint_every": eval_every,
        "warmup_steps": min(200, steps // 20),
        "ema_decay": decay,
        **plan.training,
    }


# --- language models ----------------------------------------------------------------------------

_SIZES = (384, 256, 192, 128, 96, 64)

# How much dropout suits little text is tried: repetitive text wants less than varied text. The
# recurrent matrix needs it most, and then many units do better than few.
_DROPOUTS: tuple[dict[str, float], ...] = (
    {"dropout_output": 0.25, "weight_drop": 0.4},
    {"dropout_input": 0.1, "dropout_output": 0.5, "weight_drop": 0.5},
    {"dropout_output": 0.1, "weight_drop": 0.2},
)

_MUCH_TEXT = 400_000  # characters to train on

# Of 0.3, 0.5 and 0.7 the best on 2,000 names: 3.36, 3.34 and 3.37 bits a character, 3.44 without.
_NGRAM_TARGETS = 0.5


def _texts(sight: Sight, size: int, replicas: int, held_out: float | None) -> Plan:
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
    """The dropout for so much text, others to try, and why."""
    if train_chars > _MUCH_TEXT:
        return {"dropout_input": 0.1, "dropout_output": 0.25}, (), "much text: light dropout"
    if train_chars > 100_000:
        strong = {"dropout_input": 0.2, "dropout_output": 0.45, "weight_drop": 0.35}
        return strong, (), "not much text: strong dropout"
    return _DROPOUTS[0], _DROPOUTS[1:], "little text, which needs dropout"


def _size_for(train_chars: float) -> int:
    """Index of the size that this much text is worth."""
    for index, least in enumerate((8_000, 4_000, 2_000, 1_000)):
        if train_chars >= least:
            return index
    return len(_SIZES) - 1


# --- pairs --------------------------------------------------------------------------------------

# Layers and units a direction of the encoder, units of the decoder, embedding.
_PAIR_SIZES = ((2, 192, 256, 128), (1, 192, 256, 128), (1, 128, 192, 96), (1, 96, 128, 64))


def _pairs(sight: Sight, size: int, replicas: int, held_out: float | None) -> Plan:
    if sight.source is None or sight.target is None:
        raise ConfigError("pairs have two sides")
    fraction = held_out_fraction(sight.texts, 0)
    train_pairs = sight.texts * (1.0 - (2.0 * fraction if held_out is None else held_out))
    subwords = "bpe" in (sight.source.tokenization, sight.target.tokenization)
    size += 2 if train_pairs < 1000 else 1 if subwords else 0
    layers, encoder, decoder, embedding = _PAIR_SIZES[min(len(_PAIR_SIZES) - 1, size)]
    many = train_pairs > 30_000
    dropout = 0.2 if train_pairs > 100_000 else 0.3 if many else 0.4
    batch_size = 128 if many else 64 if train_pairs > 1000 else 32
    select_by = {"whitespace": "word_error_rate", "character": "exact_match", "bpe": "chrf"}
    return Plan(
        "encoder_decoder",
        {
            "valid_fraction": fraction,
            "test_fraction": fraction,
            "max_source_tokens": _longest(sight.source),
            "max_target_tokens": _longest(sight.target),
        },
        {
            "encoder_layers": layers,
            "encoder_hidden_size": encoder,
            "hidden_size": decoder,
            "embedding_dim": embedding,
            "tie_embeddings": True,
            "dropout_embedding": 0.2,
            "dropout_between": dropout,
            "dropout_output": dropout,
        },
        {
            "batch_size": batch_size,
            "replicas": replicas,
            "label_smoothing": 0.1,
            "learning_rate": 3e-3,
            "beta2": 0.98,
            "select_by": select_by[sight.target.tokenization],
            "max_valid_sources": 500 if subwords else 1000,
            "patience": 12,
        },
        train_pairs / batch_size,
        max_epochs=40.0,
        min_epochs=min(6.0, 60_000 / train_pairs),
        reasons=[
            f"encoder: {_layers(layers)} of {encoder} units both ways; decoder: {decoder} units",
            f"for {train_pairs:,.0f} pairs to learn from: dropout {dropout}",
        ],
        sides={
            name: _side_options(side)
            for name, side in (("source", sight.source), ("target", sight.target))
        },
    )


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _longest(side: Side) -> int:
    """Tokens of a text beyond which a pair is dropped: rare, and dear for all in its batch."""
    return int(min(400, max(40, 8 * -(-6 * side.mean_chars // 8))))


def _side_options(side: Side) -> dict[str, Any]:
    options: dict[str, Any] = {"tokenization": side.tokenization}
    if side.lang:
        options["lang"] = side.lang
    if side.tokenization == "bpe":
        options |= {"vocab_size": 2000, "min_count": 2}
    return options
