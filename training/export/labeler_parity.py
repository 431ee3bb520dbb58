"""Checks of a labeler's graphs: parity with PyTorch, bitwise agreement, known answers.

N texts, S places (bos, the tokens and eos), L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.bundle.labeler import FORBIDDEN, LabelerGoldenVector
from service.bundle.manifest import Precision
from service.bundle.text import BOS_ID, EOS_ID
from training.data.labelled import LabelledSplit
from training.export.golden import known_answer
from training.export.precision import Exact, exact_values
from training.graphs.labeler_reference import reference_logits
from training.networks.labeler import Labeler

# Of a label that its character cannot have: differences there say nothing.
_IMPOSSIBLE = FORBIDDEN / 2
_GOLDEN_LABELS = 8  # of a text: the likeliest


@dataclass(frozen=True, slots=True)
class Measured:
    """A labeler whose logits are already divided by the temperature, and how they become log P."""

    model: Labeler
    several: bool

    def logprobs(self, logits: Tensor) -> Tensor:
        """log P of `logits` [.., L]; of impossible labels, one number."""
        found = functional.logsigmoid(logits) if self.several else torch.log_softmax(logits, dim=-1)
        return found.clamp(min=_IMPOSSIBLE)

    def exact(self, logits: Tensor, moved: Sequence[Tensor]) -> Exact:
        """From the logits [N, S, L] in double precision and those of the moved copies."""
        largest = logits.masked_fill(logits < _IMPOSSIBLE, 0.0).abs().amax(dim=-1)
        return exact_values(*(self.logprobs(x) for x in (logits, *moved)), largest=largest)

    @property
    def ends(self) -> list[int]:
        """What follows a text's tokens: eos, unless texts are read forward."""
        return [] if self.model.state_names else [EOS_ID]


def golden_vectors(
    measured: Measured, held_out: LabelledSplit, precisions: Sequence[Precision]
) -> list[LabelerGoldenVector]:
    """Known answers for each precision, computed by PyTorch in double precision.

    They are two held-out texts and up to 128 tokens once; of a text, its likeliest labels.
    """
    longest = sorted(range(min(256, len(held_out))), key=lambda i: -len(held_out.tokens[i]))
    texts = [held_out.tokens[i].tolist() for i in (longest[0], longest[len(longest) // 2])]
    texts.append(list(range(EOS_ID + 1, min(measured.model.vocab_size, 128))))
    tokens = [[BOS_ID, *text, *measured.ends] for text in texts if text]
    return [_golden_vector(measured, x, precision) for precision in precisions for x in tokens]


def _golden_vector(
    measured: Measured, tokens: list[int], precision: Precision
) -> LabelerGoldenVector:
    inputs = (torch.tensor([tokens]), torch.tensor([len(tokens)]))
    is_of_places = measured.model.head.pooling is None
    with torch.no_grad():
        likeliest = _answers(measured.model(*inputs), is_of_places=is_of_places)[0]
    if is_of_places:
        labels = likeliest.argmax(dim=1).tolist()
    else:
        labels = likeliest[-1].argsort(descending=True)[:_GOLDEN_LABELS].tolist()

    def answers(logits: Tensor) -> Tensor:
        """[1, T, L] for T labels: of a text, the same for each."""
        found = _answers(logits, is_of_places=is_of_places)
        return found if is_of_places else found[:, -1:].expand(-1, len(labels), -1)

    logprobs, tolerance = known_answer(
        measured.model,
        precision,
        labels,
        logits=lambda program: answers(program(*inputs)),
        reference=lambda program: measured.logprobs(answers(reference_logits(program, *inputs))),
        exact=measured.exact,
    )
    return LabelerGoldenVector(
        precision=precision, tokens=tokens, labels=labels, logprobs=logprobs, tolerance=tolerance
    )


def _answers(logits: Tensor, *, is_of_places: bool) -> Tensor:
    """The logits [1, T, L] of what has labels: each character, each prefix, or the text (T = 1)."""
    if logits.dim() == 2:
        return logits.unsqueeze(1)
    return logits[:, 1:-1] if is_of_places else logits
