"""How far a sound graph may differ from exact at each token, given what single precision costs.

B batch, T time, V vocabulary, R copies.

Exact is PyTorch in double precision. Two programs that compute a model in single precision, each in
its own order, agree with it and with each other only up to rounding, and the effect of a rounding
depends on the model. So every log-probability of token t may differ from exact by

    allowed(t) = MARGIN · (step(t) + moved(t))

step(t): the distance between neighbouring single-precision numbers at the token's largest logit (at
least one). Logits and their log-softmax are multiples of it: of 1e-6 at 10, of 8e-6 at 100.

moved(t): the model's own conditioning. To first order a rounding error is a small change of the
numbers that it happens in (backward error: Wilkinson 1963; Higham 2002, chapter 3). So the model is
also computed in R copies in double precision, which are perturbed at random by single precision's
relative step, 2^-23: every weight by up to one step, every row of a matrix (a sum that is rounded
once it is complete) by up to one more, every tensor and every layer's outputs as a whole by one up
or down. moved(t) is the largest change of any log-probability of the token in any copy. Each copy
carries its own states along, so that moved(t) includes how errors grow over time. It is 1e-7 for an
untrained model, 3e-6 for a trained one, and has no limit for a diverged, chaotic one.

MARGIN covers what the copies lack: a rounding in every partial sum, approximations of tanh and
sigmoid, another draw. `python -m bench.parity` measures how much of it sound models need and how
far bugs exceed it (docs/benchmarks.md). For a chaotic model a bound on single tokens says little,
so the mean over held-out text has a bound of its own, MAX_DIFFERENCE, which the README promises.
States are checked like tokens, by the step and the change of their largest numbers, with one step
for every token read: a gate that keeps a state rounds it each time, always in the same direction.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.errors import ExportError
from training.networks.recurrent import RecurrentLayer, States

# Mean difference in nats per token on held-out text, between single precision (in PyTorch and in
# onnxruntime) and double precision (in PyTorch).
MAX_DIFFERENCE = 1e-5
# The same for int8, where rounding decides if a sum lies halfway between two steps of a state.
MAX_INT8_DIFFERENCE = 1e-3
MARGIN = 16.0
COPIES = 4
# If a token is allowed more nats than this, single precision has lost its third digit, and the
# model is to blame.
_CHAOTIC = 1e-3
STEP = float(np.finfo(np.float32).eps)  # 2^-23

Model = TypeVar("Model", bound=nn.Module)
Array: TypeAlias = npt.NDArray[Any]  # of floats, in single or double precision

ADVICE = (
    "The model's numbers are too large or too unstable for single precision. Train it with a lower "
    "training.learning_rate, with training.grad_clip_norm, with a larger training.weight_decay or "
    "dropout, or for fewer training.steps (training.patience), and export that run"
)
FAULT = (
    "That is a fault of the export or of a library, not of the training. Please report it with the "
    "run's config.toml"
)


def of_targets(logprobs: Array, targets: npt.NDArray[np.int64]) -> Array:
    """The log-probabilities [B, T] of `targets` [B, T] among all of them, [B, T, V]."""
    return np.take_along_axis(logprobs, targets[..., None], 2)[..., 0]


@dataclass(frozen=True, slots=True)
class Exact:
    """The exact values, and how close single precision must come to them."""

    values: npt.NDArray[np.float64]  # [B, T, V] log-probabilities; or a state, [B, 1, H]
    allowed: npt.NDArray[np.float64]  # [B, T] for each value of the token


def in_double(model: Model) -> Model:
    """A copy in double precision, for evaluation."""
    return copy.deepcopy(model).double().eval()


def exact_programs(model: Model) -> list[Model]:
    """The model in double precision, then its moved copies: what exact values come from."""
    double = in_double(model)
    return [double, *moved_copies(double)]


def moved_copies(exact: Model) -> list[Model]:
    """Copies that are perturbed at random by single precision's step, as described at the top."""
    copies = []
    for seed in range(COPIES):
        draw = _Draw(seed)
        moved = copy.deepcopy(exact)
        with torch.no_grad():
            # An n-gram's probabilities are buffers.
            for weight in (*moved.parameters(), *filter(torch.is_floating_point, moved.buffers())):
                factor = 1.0 + draw.within(weight.shape) + draw.one_step()
                if weight.dim() > 1:
                    factor += draw.within((len(weight), *[1] * (weight.dim() - 1)))
                weight.mul_(factor)
        for layer in moved.modules():
            if isinstance(layer, RecurrentLayer):
                layer.register_forward_hook(_scaled(1.0 + draw.one_step()))
        copies.append(moved)
    return copies


class _Draw:
    """Random relative changes by single precision's step."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def within(self, shape: Sequence[int]) -> Tensor:
        """Uniform between one step down and one up."""
        drawn = torch.rand(tuple(shape), generator=self._generator, dtype=torch.float64)
        return STEP * (2.0 * drawn - 1.0)

    def one_step(self) -> float:
        """One up or one down."""
        return STEP if torch.rand(1, generator=self._generator).item() < 0.5 else -STEP


def _scaled(factor: float) -> Callable[[nn.Module, Any, tuple[Tensor, States]], Any]:
    """A hook that scales the outputs and states of a recurrent layer."""

    def scale(_: nn.Module, __: Any, found: tuple[Tensor, States]) -> tuple[Tensor, States]:
        outputs, states = found
        return outputs * factor, tuple(state * factor for state in states)

    return scale


def exact_of(logits: Tensor, moved: Sequence[Tensor]) -> Exact:
    """From the logits [B, T, V] of a model in double precision and of its moved copies."""
    largest = logits.abs().amax(dim=-1)
    logprobs = (torch.log_softmax(x, dim=-1) for x in (logits, *moved))
    return exact_values(*logprobs, largest=largest)


def exact_state(state: Tensor, moved: Sequence[Tensor], tokens_read: int) -> Exact:
    """The same for a state [B, H] after `tokens_read` tokens, as one token's values [B, 1, H]."""
    values = (x.unsqueeze(1) for x in (state, *moved))
    largest = state.abs().amax(dim=-1, keepdim=True)
    return exact_values(*values, largest=largest, steps=tokens_read)


def exact_values(exact: Tensor, *moved: Tensor, largest: Tensor, steps: int = 1) -> Exact:
    """For values [B, T, n] in double precision, and of the moved copies.

    The largest number that they are computed from is `largest` [B, T]; it is rounded in `steps`.
    """
    change = torch.stack([(x - exact).abs().amax(dim=-1) for x in moved]).amax(dim=0)  # [B, T]
    # NaN has no step: it stays NaN, and fails.
    step = np.spacing(largest.clamp(min=1.0).numpy().astype(np.float32)).astype(np.float64)
    return Exact(exact.numpy(), MARGIN * (steps * step + change.numpy()))


def golden_tolerance(exact: Exact) -> float:
    """How far the mean of one text's log-probabilities may lie from exact, on any machine.

    Means need no margin: `bench.parity` finds them within two thirds of step + moved.
    """
    needed = float(f"{exact.allowed.mean() / MARGIN:.2e}")  # three digits, for people to read
    return max(MAX_DIFFERENCE, needed)


@dataclass(slots=True)
class Distance:
    """How far the log-probabilities of one program lie from exact."""

    worst: float = 0.0  # nats, of any log-probability of any token
    share: float = 0.0  # the largest difference as a share of what its token allows
    allowed: float = 0.0  # nats, at that token
    nats: float = 0.0  # sum over the tokens of texts
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Nats a token of the texts."""
        return self.nats / max(1, self.tokens)

    def add(self, found: Array, exact: Array, allowed: Array) -> None:
        """`found` and `exact` [n, V], or [n, 1], and what is `allowed` [n]."""
        differences = np.abs(found - exact).max(axis=1)  # [n]
        # np.maximum keeps NaN; Python's max would lose it.
        self.worst = float(np.maximum(self.worst, differences.max()))
        shares = differences / allowed
        at = int(shares.argmax())  # of NaN, if there is one
        if not shares[at] <= self.share:
            self.share, self.allowed = float(shares[at]), float(allowed[at])

    def add_text(self, found: Array, exact: Array) -> None:
        """Log-probabilities [n] of a text's own tokens."""
        self.nats += float(np.abs(found - exact).sum(dtype=np.float64))
        self.tokens += len(found)


class Agreement:
    """Collects how far the graph, and PyTorch in single precision, lie from exact."""

    def __init__(self) -> None:
        self.graph = Distance()
        self.single = Distance()

    def add(
        self,
        exact: Exact,
        graph: Array,
        single: Array,
        targets: npt.NDArray[np.int64],
        counted: npt.NDArray[np.bool_],
        *,
        is_text: bool,
    ) -> None:
        """Add log-probabilities [B, T, V] at the tokens that are `counted` [B, T].

        Raises ExportError if one is NaN.
        """
        picks = targets[counted][:, None]
        wanted, allowed = exact.values[counted], exact.allowed[counted]
        for distance, found in ((self.graph, graph[counted]), (self.single, single[counted])):
            distance.add(found, wanted, allowed)
            if is_text:
                own, right = (np.take_along_axis(x, picks, 1)[:, 0] for x in (found, wanted))
                distance.add_text(own, right)
            _check_number(distance)

    def add_state(self, exact: Exact, graph: Array, single: Array) -> None:
        """Add a state [B, H] after the last token. Raises ExportError if it holds NaN."""
        for distance, found in ((self.graph, graph), (self.single, single)):
            distance.add(found, exact.values[:, 0], exact.allowed[:, 0])
            _check_number(distance)

    def check(self) -> None:
        """Raises ExportError unless single precision explains every difference."""
        if not self.single.mean <= MAX_DIFFERENCE:
            raise ExportError(
                "PyTorch's own single precision differs from its double precision by "
                f"{self.single.mean:.2e} nats per token on held-out text; at most "
                f"{MAX_DIFFERENCE} is allowed. {ADVICE}"
            )
        for what, distance in (
            ("the exported graph", self.graph),
            ("PyTorch in single precision", self.single),
        ):
            if not distance.share <= 1.0:
                raise ExportError(
                    f"{what} and PyTorch in double precision differ by {distance.worst:.2e} at a "
                    f"token; {distance.allowed:.2e} is allowed there, and the worst token is at "
                    f"{distance.share:.3g} times its limit. "
                    + (ADVICE if distance.allowed > _CHAOTIC else FAULT)
                )
        if not self.graph.mean <= MAX_DIFFERENCE:
            raise ExportError(
                f"the exported graph and PyTorch in double precision differ by "
                f"{self.graph.mean:.2e} nats per token on held-out text; at most "
                f"{MAX_DIFFERENCE} is allowed. {ADVICE}"
            )


def _check_number(distance: Distance) -> None:
    if np.isnan(distance.share):
        raise ExportError(
            "the exported graph and PyTorch differ by nan nats per token: a weight is not a "
            "number, or the graph is wrong"
        )
