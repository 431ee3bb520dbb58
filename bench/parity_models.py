"""Models for `bench.parity`: every cell and size, from untrained to diverged.

B batch, T time, V vocabulary. Trained weights are kept in bench/.work/parity, so that a second run
does not train again.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, Vocabulary
from training.config import EncoderDecoderNetworkConfig, LanguageModelNetworkConfig
from training.data.corpus import Split
from training.data.pair_batches import pair_batch
from training.data.pairs import PairSplit
from training.networks.encoder_decoder import EncoderDecoder
from training.networks.language_model import LanguageModel

TEXT = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
WORK = Path(__file__).parent / ".work" / "parity"
State: TypeAlias = Literal["untrained", "trained", "overtrained", "diverged"]
_CELLS = ("rnn", "gru", "lstm")
_HELD_OUT = 10  # every tenth line, or pair, is held out
# The lowest loss of a diverged model, as a multiple of the loss of uniform guessing.
_DIVERGED = 3.0
_OVERTRAINED_NATS = 0.03
_RATES: dict[State, float] = {"trained": 3e-3, "overtrained": 6e-3, "diverged": 0.05}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One language model: its sizes, its text, and how long it is trained."""

    cell: str
    num_layers: int
    hidden_size: int
    state: State
    text: int = 0  # characters; 0 is 50 lines
    steps: int = 150

    @property
    def name(self) -> str:
        """`lstm-2x256-trained-1000k`."""
        size = f"{self.text // 1000}k" if self.text else "50lines"
        return f"{self.cell}-{self.num_layers}x{self.hidden_size}-{self.state}-{size}"


@dataclass(frozen=True, slots=True)
class PairRecipe:
    """One encoder-decoder, which learns to reverse words."""

    options: dict[str, Any] = field(hash=False)
    state: State
    steps: int = 200

    @property
    def name(self) -> str:
        """`pairs-lstm-general-recurrent-trained`."""
        options = self.options
        kind = [options["cell"], options["attention"], options.get("encoder", "recurrent")]
        kind += ["fed"] if options.get("input_feeding") else []
        kind += [f"{options['decoder_layers']}x"] if "decoder_layers" in options else []
        return "-".join(["pairs", *kind, self.state])


def recipes() -> Iterator[Recipe]:
    """The sizes of every cell, and one large model."""
    for cell in _CELLS:
        for layers, hidden in ((1, 16), (2, 64), (3, 32)):
            yield Recipe(cell, layers, hidden, "trained")
        for layers, hidden in ((1, 16), (2, 128), (3, 64)):
            yield Recipe(cell, layers, hidden, "trained", 100_000)
        yield Recipe(cell, 1, 256, "trained", 1_000_000, 300)
        yield Recipe(cell, 2, 256, "trained", 1_000_000)
        yield Recipe(cell, 1, 1024, "trained", 1_000_000, 60)
        if cell == "gru":  # the most delicate: its gates' output is rounded at every token
            yield Recipe(cell, 3, 1024, "trained", 1_000_000, 20)
        for layers, hidden in ((1, 16), (2, 256), (3, 512)):
            yield Recipe(cell, layers, hidden, "untrained")
        for layers, hidden in ((1, 128), (2, 256), (3, 64)):
            yield Recipe(cell, layers, hidden, "overtrained", steps=500)
        for layers, hidden in ((1, 64), (2, 128), (3, 32)):
            yield Recipe(cell, layers, hidden, "diverged", 100_000, 200)


def pair_recipes() -> Iterator[PairRecipe]:
    """Every kind of attention, with each cell and each encoder at least once."""
    sizes: dict[str, Any] = {"encoder_hidden_size": 48, "hidden_size": 96, "embedding_dim": 32}
    convolutions: dict[str, Any] = {
        "encoder": "crnn",
        "conv_widths": [1, 2, 3],
        "conv_filters": [16, 16, 32],
        "pool_stride": 2,
    }
    kinds: list[dict[str, Any]] = [
        {"cell": "lstm", "attention": "none"},
        {"cell": "gru", "attention": "dot"},
        {"cell": "lstm", "attention": "general"},
        {"cell": "rnn", "attention": "additive"},
        {"cell": "lstm", "attention": "additive", "input_feeding": True},
        {"cell": "gru", "attention": "general", **convolutions},
        {"cell": "lstm", "attention": "general", "encoder_layers": 2, "decoder_layers": 2},
    ]
    for kind in kinds:
        yield PairRecipe({**sizes, **kind}, "trained")
    for kind in kinds[1:6:2]:
        yield PairRecipe({**sizes, **kind}, "overtrained", 600)
        yield PairRecipe({**sizes, **kind}, "diverged", 300)
        yield PairRecipe({**sizes, **kind}, "untrained")


# --- texts --------------------------------------------------------------------------------------


def text_of(recipe: Recipe) -> tuple[Vocabulary, Split, Split]:
    """The vocabulary, the training text and the held-out text."""
    whole = TEXT.read_text(encoding="utf-8")
    text = whole[: recipe.text] if recipe.text else "\n".join(whole.split("\n")[:50])
    vocab = Vocabulary.of_characters(sorted(set(text)))
    lines = text.split("\n")
    held_out = "\n".join(lines[::_HELD_OUT])
    kept = "\n".join(line for i, line in enumerate(lines) if i % _HELD_OUT)
    return vocab, _split(vocab, kept), _split(vocab, held_out)


def _split(vocab: Vocabulary, text: str) -> Split:
    ids = np.array([BOS_ID, *vocab.encode(text), EOS_ID], np.uint16)
    return Split(ids, np.array([0, len(ids)], np.int64))


def pairs_of() -> tuple[int, PairSplit, PairSplit]:
    """The size of the vocabulary (one for both sides), the training pairs and the held-out ones."""
    words = sorted({x.strip(".,;:?!") for x in TEXT.read_text(encoding="utf-8")[:100_000].split()})
    vocab = Vocabulary.of_characters(sorted(set("".join(words))))
    pairs = [(x, x[::-1]) for x in words if x]
    held_out, kept = pairs[::_HELD_OUT], [x for i, x in enumerate(pairs) if i % _HELD_OUT]
    return len(vocab), _pair_split(vocab, kept), _pair_split(vocab, held_out)


def _pair_split(vocab: Vocabulary, pairs: list[tuple[str, str]]) -> PairSplit:
    sources, targets = (
        [np.array(vocab.encode(pair[side]), np.uint16) for pair in pairs] for side in (0, 1)
    )
    return PairSplit("words", pairs, sources, targets)


# --- training -----------------------------------------------------------------------------------


def language_model(recipe: Recipe, vocab: Vocabulary, train: Split) -> LanguageModel:
    """The trained model, loaded from its file if it exists."""
    config = LanguageModelNetworkConfig.model_validate(
        {
            "cell": recipe.cell,
            "num_layers": recipe.num_layers,
            "hidden_size": recipe.hidden_size,
            "embedding_dim": min(64, recipe.hidden_size),
        }
    )
    torch.manual_seed(1)
    model = LanguageModel(config, len(vocab))
    batch = 16 if recipe.state == "trained" and recipe.hidden_size <= 512 else 8
    rng = np.random.default_rng(1)
    ids = np.asarray(train.ids, np.int64)

    def loss() -> Tensor:
        starts = rng.integers(0, max(1, len(ids) - 65), batch)
        rows = torch.from_numpy(np.stack([np.resize(ids[x : x + 65], 65) for x in starts]))
        logits, _ = model(rows[:, :-1], model.initial_states(batch))
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    _train(model, loss, recipe, math.log(len(vocab)))
    return model.eval()


def encoder_decoder(recipe: PairRecipe, vocab_size: int, train: PairSplit) -> EncoderDecoder:
    """The trained model, loaded from its file if it exists."""
    torch.manual_seed(1)
    config = EncoderDecoderNetworkConfig.model_validate(recipe.options)
    model = EncoderDecoder(config, vocab_size, vocab_size)
    rng = np.random.default_rng(1)
    # An overtrained model sees the same few pairs again and again.
    count = 100 if recipe.state == "overtrained" else len(train)

    def loss() -> Tensor:
        batch = pair_batch(train, rng.integers(0, count, 32).tolist())
        parts = (torch.from_numpy(x) for x in (batch.sources, batch.lengths, batch.tokens))
        targets = torch.from_numpy(batch.targets).flatten()
        return functional.cross_entropy(model(*parts).flatten(0, 1), targets, ignore_index=PAD_ID)

    _train(model, loss, recipe, math.log(vocab_size))
    return model.eval()


def _train(
    model: nn.Module, loss: Callable[[], Tensor], recipe: Recipe | PairRecipe, uniform: float
) -> None:
    if recipe.state == "untrained":
        return
    path = WORK / f"{recipe.name}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return
    diverges = recipe.state == "diverged"
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATES[recipe.state])
    for step in range(recipe.steps):
        found = loss()
        reached = found.item()
        if diverges and reached > _DIVERGED * uniform and step >= recipe.steps // 4:
            break
        if recipe.state == "overtrained" and reached < _OVERTRAINED_NATS:
            break
        if diverges:
            for group in optimizer.param_groups:
                group["lr"] *= 1.02
        optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        if not diverges:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, path)
