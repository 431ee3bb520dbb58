"""How good a language model is on a split: nats a token, bits a character, perplexity.

B batch, T time, V vocabulary.
"""

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from service.bundle.text import PAD_ID
from training.data.corpus import Split
from training.data.windows import SequentialWindows
from training.evaluation.uncertainty import Floats, Units, units_of
from training.networks.mixture import AnyLanguageModel

# Tokens of one evaluation window over all lanes: bounds the logits in memory.
_WINDOW_TOKENS = 2048
_MAX_LANES = 64


@dataclass(frozen=True, slots=True)
class Score:
    """The total over a split, and the means that people compare."""

    nats: float  # total negative log-probability
    tokens: int  # predicted tokens: characters, and eos a document
    chars: int
    unit_nats: Floats | None = field(default=None, compare=False, repr=False)  # of `units_of`
    standard_error: float | None = None  # of the bits a character; None for too little text
    expected_nats: float | None = None  # sum of the entropies of the predictions, where asked for

    @property
    def loss(self) -> float:
        """Mean nats a predicted token."""
        return self.nats / self.tokens

    @property
    def bits_per_char(self) -> float:
        """Total bits over the number of characters."""
        return self.nats / (self.chars * math.log(2))

    @property
    def expected_bits_per_char(self) -> float | None:
        """What it expected to need, where that was asked for."""
        if self.expected_nats is None:
            return None
        return self.expected_nats / (self.chars * math.log(2))

    @property
    def perplexity(self) -> float:
        """exp of the mean nats a predicted token."""
        return math.exp(self.loss)


@torch.no_grad()
def evaluate(
    model: AnyLanguageModel, split: Split, device: torch.device, *, expected: bool = False
) -> Score:
    """Score a whole split in order, carrying the state through each document.

    With `expected`, also what the model expects the split to cost: a calibrated one is right.
    """
    was_training = model.training
    model.eval()
    lanes = min(split.documents, _MAX_LANES)
    states = model.to(device).initial_states(lanes)
    nats = expected_nats = 0.0
    units = units_of(split)
    unit_nats = np.zeros(len(units))
    windows = SequentialWindows(split, lanes, _WINDOW_TOKENS // lanes)
    for window in windows:
        keep = torch.from_numpy(~window.reset).to(device).unsqueeze(1)
        tokens = torch.from_numpy(window.tokens).to(device)
        targets = torch.from_numpy(window.targets).to(device)
        logits, states = model(tokens, [state * keep for state in states])  # [B, T, V]
        losses = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=PAD_ID, reduction="none"
        )
        nats += float(losses.double().sum())
        read = window.targets != PAD_ID
        if expected:
            logprobs = torch.log_softmax(logits[torch.from_numpy(read)], dim=-1)
            expected_nats -= float((logprobs.exp() * logprobs).sum(dtype=torch.float64))
        places = windows.places[:, np.newaxis] + np.arange(read.shape[1])  # [B, T]
        found = losses.double().cpu().numpy().reshape(read.shape)
        unit_nats += units.totals(places[read], found[read])
    model.train(was_training)
    score = score_of(nats, split, units, unit_nats)
    return dataclasses.replace(score, expected_nats=expected_nats) if expected else score


def score_of(nats: float, split: Split, units: Units, unit_nats: Floats) -> Score:
    """The score of a split, from its total and the totals of its units."""
    error = units.standard_error(unit_nats)
    return Score(nats, split.tokens, split.chars, unit_nats, error)
