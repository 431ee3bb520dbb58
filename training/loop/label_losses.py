"""What training on labels minimizes.

P examples, L labels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from training.data.labelled import LabelledCorpus


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelLoss:
    """Cross entropy with label smoothing and weights of labels.

    Smoothing gives a share of each target to all labels that are allowed (Szegedy et al. 2016).
    """

    smoothing: float
    weights: Tensor | None  # [L] None: 1 each

    def one(self, logits: Tensor, wanted: Tensor, allowed: Tensor | None) -> tuple[Tensor, float]:
        """The objective and the plain nats of `logits` [P, L] whose labels are `wanted` [P].

        Both are sums. `allowed` [P, L] are the labels that an example may have; None: any.
        """
        logprobs = torch.log_softmax(logits, dim=1)  # [P, L]
        picked = logprobs.gather(1, wanted.unsqueeze(1)).squeeze(1)  # [P]
        objective = -picked
        if self.smoothing:
            may = torch.ones_like(logprobs) if allowed is None else allowed.float()
            uniform = -(logprobs * may).sum(1) / may.sum(1)
            objective = (1.0 - self.smoothing) * objective + self.smoothing * uniform
        if self.weights is not None:
            objective = objective * self.weights[wanted]
        return objective.sum(), -float(picked.detach().sum())

    def several(self, logits: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
        """Of `logits` [P, L] with any number of labels each, `wanted` [P, L] of ones and zeros.

        Binary cross entropy of each label by itself.
        """
        yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        plain = wanted * yes + (1.0 - wanted) * no
        share = wanted * (1.0 - self.smoothing) + 0.5 * self.smoothing
        weight = 1.0 if self.weights is None else self.weights
        objective = weight * share * yes + (1.0 - share) * no
        return -objective.sum(), -float(plain.detach().sum())


def balanced_weights(corpus: LabelledCorpus) -> npt.NDArray[np.float32]:
    """Weights [L] with which every label counts the same, from the training split.

    Of one label each: N / (labels · n), for a label that n of N have. Of several: (N - n) / n for
    the texts that have it, so that they weigh as much as those that do not.
    """
    size = len(corpus.labels.names)
    n = np.bincount(np.concatenate(corpus.train.labels), minlength=size)
    if corpus.labels.several:
        weights = np.maximum(len(corpus.train) - n, 1) / np.maximum(n, 1)
    else:
        weights = n.sum() / ((n > 0).sum() * np.maximum(n, 1))
    return np.where(n > 0, weights, 1.0).astype(np.float32)
