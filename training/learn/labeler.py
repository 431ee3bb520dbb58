"""The choices for labelled texts, and for texts with accents: their number decides the size."""

from typing import Any

from training.learn.plan import Plan, held_out_fraction
from training.learn.sight import Sight

# Units of each direction, and embedding.
_SIZES = ((256, 64), (192, 64), (128, 64), (96, 48), (64, 32))
_MANY = 100_000  # texts
_PROSE_CHARS = 80  # longer texts (on average) are read in subwords, if there are enough of them
_PROSE_TEXTS = 2_000
# Least and most tokens of a text: the rest is cut, and the service rejects longer texts.
_LONGEST = (400, 1000)


def plan_labels(sight: Sight, size: int, replicas: int, held_out: float | None) -> Plan:
    """As `recipe.plan`, for texts that have labels."""
    labelled = sight.labelled
    subwords = labelled.mean_chars > _PROSE_CHARS and sight.texts >= _PROSE_TEXTS
    longest = labelled.long_chars // 4 if subwords else labelled.long_chars
    text: dict[str, Any] = {"tokenization": "character"}
    unit = f"characters: {labelled.mean_chars:.0f} a text on average"
    if subwords:
        text = {"tokenization": "bpe", "vocab_size": 4000, "min_count": 3}
        unit = f"subwords: prose of {labelled.mean_chars:.0f} characters on average"
    return _plan(
        "classifier",
        sight,
        size,
        replicas=replicas,
        held_out=held_out,
        data={**labelled.options, "max_tokens": _longest(longest)},
        model={"pooling": "max"},
        training={"select_by": "accuracy"},
        reasons=[f"texts are read in {unit}"],
        sides={"text": text},
    )


def plan_tags(sight: Sight, size: int, replicas: int, held_out: float | None) -> Plan:
    """The same for texts with a label for each character."""
    longest = _longest(sight.labelled.long_chars)
    return _plan(
        "tagger",
        sight,
        size,
        replicas=replicas,
        held_out=held_out,
        data={**sight.labelled.options, "max_tokens": longest},
    )


def plan_accents(sight: Sight, size: int, replicas: int, held_out: float | None) -> Plan:
    """The same for texts that lose their accents."""
    return _plan(
        "restore",
        sight,
        size,
        replicas=replicas,
        held_out=held_out,
        data={**sight.labelled.options, "max_tokens": _LONGEST[0]},
        reasons=["each character is restored by itself, so no letter can become another"],
    )


def _plan(
    task: str,
    sight: Sight,
    size: int,
    *,
    replicas: int,
    held_out: float | None,
    data: dict[str, Any],
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    reasons: list[str] | None = None,
    sides: dict[str, dict[str, Any]] | None = None,
) -> Plan:
    """What all labelers have in common."""
    # With labels of characters, a long document is worth as much as many short texts.
    texts = sight.texts if task == "classifier" else max(sight.texts, sight.chars // 40)
    fraction = held_out_fraction(sight.texts, 0)
    train_texts = texts * (1.0 - (2.0 * fraction if held_out is None else held_out))
    size += 0 if texts > _MANY else 1 if texts > 10_000 else 2 if texts > 1_000 else 3
    hidden, embedding = _SIZES[min(len(_SIZES) - 1, size)]
    dropout = 0.2 if texts > _MANY else 0.3 if texts > 10_000 else 0.4
    batch_size = 64 if texts > 10_000 else 32 if texts > 1_000 else 16
    return Plan(
        task,
        {"valid_fraction": fraction, "test_fraction": fraction, **data},
        {
            "hidden_size": hidden,
            "embedding_dim": embedding,
            "dropout_embedding": 0.1,
            "dropout_output": dropout,
            **(model or {}),
        },
        {
            "batch_size": batch_size,
            "replicas": replicas,
            "learning_rate": 3e-3,
            "beta2": 0.99,
            "max_valid_texts": 2000,
            "patience": 8,
            **(training or {}),
        },
        train_texts / batch_size,
        max_epochs=30.0,
        min_epochs=min(4.0, 60_000 / train_texts),
        reasons=[
            f"one LSTM layer of {hidden} units in each direction, dropout {dropout}",
            *(reasons or []),
        ],
        sides=sides or {},
    )


def _longest(tokens: int) -> int:
    """The tokens of a text that are read, if few texts have more than `tokens`."""
    least, most = _LONGEST
    return min(most, max(least, 8 * -(-tokens // 8)))
