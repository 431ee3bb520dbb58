"""How surprising held-out texts are to the graph that serves them: `/score`'s own numbers.

B batch, T time, N texts.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from service.bundle.percentiles import Percentiles
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from training.config import AnyLanguageModelConfig
from training.data.corpus import Corpus, Split
from training.evaluation.percentiles import Floats, Texts, percentiles
from training.export.language_model_parity import OnnxLanguageModel, States
from training.export.manifest_parts import Graphs
from training.networks.mixture import AnyLanguageModel

# Of a batch; a text is read whole.
_MOST_ROWS = 64
_MOST_TOKENS = 8192


def held_out_percentiles(
    model: AnyLanguageModel, graphs: Graphs, config: AnyLanguageModelConfig, corpus: Corpus
) -> Percentiles | None:
    """The table of the split that figures are reported on, in fp32; None for too few texts.

    Each line is a text where lines are the documents; else stretches are.
    """
    graph = OnnxLanguageModel.load(graphs["fp32", "sequence"], model.state_names)

    def score(split: Split, texts: Texts) -> tuple[Floats, Floats]:
        return scored(graph, model, split, texts)

    kind: Literal["documents", "stretches"]
    kind = "documents" if config.data.documents == "line" else "stretches"
    return percentiles(corpus.held_out, corpus.held_out_name, corpus.vocab, kind, score)


def scored(
    graph: OnnxLanguageModel, model: AnyLanguageModel, split: Split, texts: Texts
) -> tuple[Floats, Floats]:
    """The nats of each text after bos, without and with the end, [N] each."""
    plain, with_eos = np.zeros(len(texts)), np.zeros(len(texts))
    for rows in _batches(texts):
        chars = texts.chars[rows]
        tokens = np.full((len(rows), int(chars.max()) + 1), PAD_ID, np.int64)  # [B, T]
        targets = tokens.copy()
        for row, text in enumerate(rows):
            ids = split.ids[texts.starts[text] : texts.ends[text]]
            tokens[row, 0], tokens[row, 1 : len(ids) + 1] = BOS_ID, ids
            targets[row, : len(ids)], targets[row, len(ids)] = ids, EOS_ID
        states: States = [state.numpy() for state in model.initial_states(len(rows))]
        picked, _, _ = graph.run(tokens, targets, states, (chars + 1).astype(np.int32))
        losses = -picked.astype(np.float64)
        end = losses[np.arange(len(rows)), chars]
        losses[np.arange(tokens.shape[1]) >= chars[:, np.newaxis]] = 0.0
        plain[rows] = losses.sum(axis=1)
        with_eos[rows] = plain[rows] + end
    return plain, with_eos


def _batches(texts: Texts) -> Iterator[list[int]]:
    """Texts of similar lengths together."""
    batch: list[int] = []
    for text in np.argsort(texts.chars, kind="stable").tolist():
        size = (len(batch) + 1) * (int(texts.chars[text]) + 1)
        if batch and (len(batch) == _MOST_ROWS or size > _MOST_TOKENS):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch
