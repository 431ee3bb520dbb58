"""The labeler: rows do not meet, every weight learns, parts of a text join, masks hold."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.bundle.labeler import FORBIDDEN
from service.bundle.text import BOS_ID
from training.config import LabelerNetworkConfig
from training.data.labelled_batches import pad_texts
from training.networks.labeler import Head, Labeler

CELLS = ["rnn", "gru", "lstm"]
V, L = 11, 3  # tokens, labels
HEADS = {
    "attention": Head(num_labels=L, pooling="attention"),
    "max": Head(num_labels=L, pooling="max"),
    "last": Head(num_labels=L, pooling="last"),
    "forward max": Head(num_labels=L, pooling="max", direction="forward"),
    "forward last": Head(num_labels=L, pooling="last", direction="forward"),
    "tags": Head(num_labels=L),
    "chain": Head(num_labels=L, crf=True),
}
every_kind = pytest.mark.parametrize(("cell", "head"), list(product(CELLS, HEADS)))
each_forward = pytest.mark.parametrize(
    ("cell", "head"), list(product(CELLS, ["forward max", "forward last"]))
)
TEXTS = [[5, 6, 7, 8, 9, 10, 4], [4, 9, 5], [7], [10, 10, 6, 4, 8]]


def made(head: Head, cell: str = "lstm", **options: Any) -> Labeler:
    torch.manual_seed(1)
    sizes = {"cell": cell, "num_layers": 2, "hidden_size": 6, "embedding_dim": 5, **options}
    model = Labeler(LabelerNetworkConfig.model_validate(sizes), head, V).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
    return model


def padded(texts: list[list[int]], head: Head, extra: int = 0) -> tuple[Tensor, Tensor]:
    ids = [np.array(x, np.uint16) for x in texts]
    tokens, lengths = map(torch.from_numpy, pad_texts(ids, forward=head.direction == "forward"))
    return torch.nn.functional.pad(tokens, (0, extra)), lengths


@every_kind
@torch.no_grad()
def test_padding_and_neighbours_never_change_a_rows_logits(cell: str, head: str) -> None:
    model = made(HEADS[head], cell)
    together = model(*padded(TEXTS, model.head, extra=3))
    for row, text in enumerate(TEXTS):
        alone = model(*padded([text], model.head))[0]
        mine = together[row, : len(alone)] if model.labels_places else together[row]
        torch.testing.assert_close(mine, alone, rtol=1e-12, atol=1e-12)


@every_kind
def test_every_weight_learns(cell: str, head: str) -> None:
    model = made(HEADS[head], cell)
    logits = model(*padded(TEXTS[:1], model.head))
    if model.chain is None:
        loss = torch.log_softmax(logits, dim=-1)[..., 1].sum()
    else:
        labels = torch.arange(len(TEXTS[0])).unsqueeze(0) % L
        loss = model.chain.logprob(logits[:, 1:-1], labels, torch.tensor([len(TEXTS[0])])).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


@each_forward
@torch.no_grad()
def test_a_text_read_in_parts_has_the_logits_of_the_whole(cell: str, head: str) -> None:
    model = made(HEADS[head], cell)
    tokens, lengths = padded(TEXTS[:1], model.head)
    whole = model(tokens, lengths)
    states, parts = model.initial_states(1), []
    for part in torch.split(tokens, [1, 3, 4], dim=1):
        logits, states = model.read_on(part, states)
        assert len(states) == len(model.state_names)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@each_forward
@torch.no_grad()
def test_an_answer_depends_on_what_was_read_alone(cell: str, head: str) -> None:
    model = made(HEADS[head], cell)
    first, second = [5, 6, 7, 8], [5, 6, 9, 4]
    logits = model(*padded([first, second], model.head))
    torch.testing.assert_close(logits[0, :3], logits[1, :3])
    assert not torch.allclose(logits[0, 3:], logits[1, 3:])


@torch.no_grad()
def test_forbidden_labels_have_no_probability_and_the_others_all_of_it() -> None:
    allowed = torch.ones(V, L, dtype=torch.bool)
    allowed[5, 1:] = False
    model = made(Head(num_labels=L, allowed=allowed))
    free = made(HEADS["tags"])
    tokens, lengths = padded([[5, 6]], model.head)
    logprobs = torch.log_softmax(model(tokens, lengths), dim=2)[0]
    assert logprobs[1].exp().tolist() == [1.0, 0.0, 0.0]
    assert logprobs[1, 1] < FORBIDDEN / 2
    torch.testing.assert_close(logprobs[2], torch.log_softmax(free(tokens, lengths), dim=2)[0, 2])


@torch.no_grad()
def test_an_empty_text_read_forward_has_the_answer_of_its_beginning() -> None:
    model = made(HEADS["forward max"])
    tokens, lengths = padded([[]], model.head)
    assert (tokens.tolist(), lengths.tolist()) == ([[BOS_ID]], [1])
    assert model(tokens, lengths).shape == (1, 1, L)


@pytest.mark.parametrize("head", ["attention", "forward max", "tags"])
@pytest.mark.parametrize("place", ["embedding", "between", "output"])
def test_dropout_changes_logits_only_while_training(head: str, place: str) -> None:
    model = made(HEADS[head], "lstm", **{f"dropout_{place}": 0.5})
    inputs = padded(TEXTS, model.head)
    plain = model(*inputs)
    assert torch.equal(model(*inputs, torch.Generator().manual_seed(1)), plain)
    model.train()
    first, second, other = (model(*inputs, torch.Generator().manual_seed(x)) for x in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)
