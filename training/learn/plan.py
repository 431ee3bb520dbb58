"""A plan: the options that were chosen for a person's data, and how many steps the time allows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Held-out texts that a figure should rest on, if there are so many.
_HELD_OUT_TEXTS = 200
_LARGEST_FRACTION = 0.15
_SMALLEST_FRACTION = 0.05
_HELD_OUT_CHARS = 200_000  # more says nothing new and slows down every evaluation

MIN_STEPS = 20
_TRIAL_SHARE = 0.5
_MIN_TRIAL_STEPS = 300
# Evaluations may take this share of the time; training needs the rest.
_EVALUATIONS = 20
_EVALUATION_SHARE = 0.1
# Share of --minutes that is kept for what the time of a step does not cover.
_RESERVE = 0.03


@dataclass(frozen=True, slots=True)
class Speed:
    """The measured speed of this machine."""

    step_s: float
    evaluation_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a configuration by section, before the time has been measured."""

    task: str
    data: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    epoch_steps: float  # steps to read the training split once
    max_epochs: float  # more would not help
    min_epochs: float  # where the time gives fewer, a smaller model is worth more
    reasons: Sequence[str] = ()
    # Sections of `data`: for pairs `source` and `target`.
    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    variants: Sequence[dict[str, float]] = ()  # other dropouts that may suit the data better
    # Sections for what the export adds: `ngram`, `adapt`. Training does not need them.
    added: dict[str, dict[str, Any]] = field(default_factory=dict)


def held_out_fraction(texts: int, chars: int) -> float:
    """The share of the texts for validation, and the same again for the test."""
    wanted = _HELD_OUT_TEXTS / max(1, texts)
    fraction = min(_LARGEST_FRACTION, max(_SMALLEST_FRACTION, wanted))
    return round(min(fraction, max(0.005, _HELD_OUT_CHARS / max(1, chars))), 4)


def steps_for(plan: Plan, speed: Speed, minutes: float) -> tuple[int, int]:
    """The steps that fit the time, evaluations included, and the steps between evaluations."""
    budget_s = 60.0 * minutes * (1.0 - _RESERVE)
    evaluations = min(_EVALUATIONS, max(2, int(_EVALUATION_SHARE * budget_s / speed.evaluation_s)))
    left_s = max(0.0, budget_s - (evaluations + 1) * speed.evaluation_s)
    steps = min(int(left_s / speed.step_s), round(plan.max_epochs * plan.epoch_steps))
    steps = max(MIN_STEPS, steps)
    return steps, max(1, -(-steps // evaluations))


def trial_steps(plan: Plan, speed: Speed, minutes: float) -> int | None:
    """Steps for each amount of dropout in a share of the time; None if too few to compare."""
    if not plan.variants:
        return None
    ways = 1 + len(plan.variants)
    steps, _ = steps_for(plan, speed, minutes * _TRIAL_SHARE / ways)
    return steps if steps >= min(_MIN_TRIAL_STEPS, 10 * plan.epoch_steps) else None


def shortened(steps: int, tried: int, best_step: int) -> int:
    """The steps to train, when trials of `tried` steps were best at `best_step`.

    A schedule whose best weights come long before its end overfits. One that ends soon after them
    has lowered its learning rate by then, and its best weights are better. Where the trials were
    best at their end, more steps help, and three times as many are enough (2,000 names: 3.34 bits
    with 1.5 times the steps, 3.31 with three times).
    """
    enough = 3.0 * tried if best_step > 0.7 * tried else 1.5 * best_step
    return min(steps, max(MIN_STEPS, round(enough)))


def too_slow(plan: Plan, speed: Speed, minutes: float) -> bool:
    """Whether this model could not read enough in the time, so that a smaller one is better."""
    return 60.0 * minutes / speed.step_s < plan.min_epochs * plan.epoch_steps


def with_steps(plan: Plan, steps: int, eval_every: int) -> dict[str, Any]:
    """The training section, with a schedule that fits the steps."""
    decay = 0.998 if steps >= 4000 else 0.99 if steps >= 1500 else 0.98
    return {
        "steps": steps,
        "eval_every": eval_every,
        "checkpoint_every": eval_every,
        "warmup_steps": min(200, steps // 20),
        "ema_decay": decay,
        **plan.training,
    }
