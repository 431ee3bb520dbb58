"""A labeler's answers as lines for people."""

from collections.abc import Sequence

import numpy as np
import torch

from service.bundle.labeler import Labels
from training.data.labelled import Ids
from training.evaluation.labeler import found_labels, network_reader, read_texts
from training.evaluation.linear_chain import Floats, chain_of
from training.evaluation.tags import tagged_text
from training.networks.labeler import Labeler


def answer_lines(
    model: Labeler,
    labels: Labels,
    texts: Sequence[str],
    tokens: Sequence[Ids],
    device: torch.device,
    *,
    top: int,
) -> list[str]:
    """A line for each text: its likeliest labels with their probabilities, or the tagged text."""
    was_training = model.training
    model.eval()
    chain = None if model.chain is None else chain_of(model.chain)
    forward = model.head.direction == "forward"
    lines: dict[int, str] = {}
    read = network_reader(model, labels, device)
    for indices, logprobs in read_texts(read, tokens, labels, forward=forward):
        if labels.scope == "character":
            found = found_labels(labels, logprobs, chain)
            tagged = [
                tagged_text(texts[i], ids.tolist(), labels)
                for i, ids in zip(indices, found, strict=True)
            ]
            lines.update(zip(indices, tagged, strict=True))
        else:
            ranked = [_likeliest(x, labels, top) for x in logprobs]
            lines.update(zip(indices, ranked, strict=True))
    model.train(was_training)
    return [lines[i] for i in range(len(texts))]


def _likeliest(logprobs: Floats, labels: Labels, top: int) -> str:
    order = np.argsort(-logprobs, kind="stable")[:top]
    return ", ".join(f"{labels.names[i]} {np.exp(logprobs[i]):.3f}" for i in order)
