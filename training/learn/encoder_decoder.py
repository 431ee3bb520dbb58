"""The choices for pairs: their number decides sizes, dropout and schedule."""

from typing import Any

from training.config import ConfigError
from training.learn.plan import Plan, held_out_fraction
from training.learn.sight import Side, Sight

# Layers and units a direction of the encoder, units of the decoder, embedding.
_SIZES = ((2, 192, 256, 128), (1, 192, 256, 128), (1, 128, 192, 96), (1, 96, 128, 64))


def plan(sight: Sight, size: int, replicas: int, held_out: float | None) -> Plan:
    """As `recipe.plan`."""
    if sight.source is None or sight.target is None:
        raise ConfigError("pairs have two sides")
    fraction = held_out_fraction(sight.texts, 0)
    train_pairs = sight.texts * (1.0 - (2.0 * fraction if held_out is None else held_out))
    subwords = "bpe" in (sight.source.tokenization, sight.target.tokenization)
    size += 2 if train_pairs < 1000 else 1 if subwords else 0
    layers, encoder, decoder, embedding = _SIZES[min(len(_SIZES) - 1, size)]
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
    """The longest text that is kept, in tokens: longer ones are rare and slow down their batch."""
    return int(min(400, max(40, 8 * -(-6 * side.mean_chars // 8))))


def _side_options(side: Side) -> dict[str, Any]:
    options: dict[str, Any] = {"tokenization": side.tokenization}
    if side.lang:
        options["lang"] = side.lang
    if side.tokenization == "bpe":
        options |= {"vocab_size": 2000, "min_count": 2}
    return options
