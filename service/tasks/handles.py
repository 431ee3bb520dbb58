"""State handles: the state after a text, as a signed string that any replica with the key accepts.

    handle = base64url( header | states | log-probabilities | HMAC-SHA256 of all before it )

A changed handle is rejected; a valid one restores the state to the bit. It is signed but not
encrypted: its bearer can read the model's state, which comes from the bearer's own text.
"""

import base64
import hashlib
import hmac
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.bundle.arrays import Float32Array
from service.bundle.manifest import Graph, Precision, StateTensor
from service.decoding.rows import Continuation
from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.limits import at_most

# Longest handle of a text that the model adapted to: handles travel in bodies and in events.
MAX_ADAPTED_CHARS = 256 * 2**10
_VERSION = 1
_SIGNATURE_BYTES = 32
_FLOAT = np.dtype("<f4")
# Version, digest of the model, when it was made (Unix time, s), tokens read; whether noise goes on,
# and from where: seed, choice, tokens drawn.
_HEADER = struct.Struct("<B32sQQ?QQQ")
_OPTION = "state"
_ADAPTING_ROLES = ("adapt", "adapt_step")


@dataclass(frozen=True, slots=True)
class NoisePlace:
    """Where the sampling noise of a choice continues."""

    seed: int
    choice: int
    drawn: int  # tokens drawn so far


@dataclass(frozen=True, slots=True)
class Handle:
    """Everything needed to continue a text on another server."""

    continuation: Continuation
    position: int  # tokens read so far, bos counted
    noise: NoisePlace | None = None  # of a generated choice


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStates:
    """What the states of a model mean, in all its precisions."""

    model: str  # its name
    graphs: Sequence[Graph]
    states: Sequence[StateTensor]
    outputs: int  # log-probabilities after a text: V, or the number of labels
    meaning: Sequence[str]  # of tokens and outputs
    learned: Sequence[StateTensor] | None = None  # further states while it adapts; None: it cannot

    def of_row(self, *, adapt: bool) -> Sequence[StateTensor]:
        """The state tensors of a row, with what it has learned if it adapts."""
        return [*self.states, *(self.learned or ())] if adapt else self.states

    def handle_chars(self, *, adapt: bool) -> int:
        """How long every handle is."""
        floats = sum(math.prod(state.shape) for state in self.of_row(adapt=adapt)) + self.outputs
        size = _HEADER.size + floats * _FLOAT.itemsize + _SIGNATURE_BYTES
        return -(-size * 4 // 3)

    def digest(self, precision: Precision, *, adapt: bool = False) -> bytes:
        """SHA-256 over what a state means: graphs in a precision, vocabulary and so on. [32].

        The bundle's name is not in it: a copy under another name is the same model.
        """
        adapting = [x for x in self.graphs if x.role in _ADAPTING_ROLES]
        graphs = [x for x in self.graphs if x.precision == precision and x not in adapting]
        if adapt:
            graphs += adapting
        parts = [f"{x.role} {x.sha256}" for x in graphs]
        shapes = [f"{state.name} {state.shape}" for state in self.of_row(adapt=adapt)]
        told = [precision, *sorted(parts), *shapes, *self.meaning]
        return hashlib.sha256("\n".join(told).encode()).digest()


class Seal:
    """Makes and opens the handles of one model in one precision, while it adapts or not."""

    def __init__(
        self,
        key: bytes,
        states: ModelStates,
        precision: Precision,
        *,
        max_age_s: float,
        adapt: bool = False,
    ) -> None:
        self._key = key
        self._model = states.model
        self._precision = precision
        self._max_age_s = max_age_s
        self._adapt = adapt
        self._digest = states.digest(precision, adapt=adapt)
        modes = [False] if states.learned is None else [False, True]
        others: set[Precision] = {graph.precision for graph in states.graphs} - {precision}
        self._other_precisions = {
            states.digest(other, adapt=mode) for other in others for mode in modes
        }
        self._other_modes = {
            states.digest(precision, adapt=mode) for mode in modes if mode != adapt
        }
        self._shapes = [(1, *state.shape) for state in states.of_row(adapt=adapt)]
        self._outputs = states.outputs
        self.handle_chars = states.handle_chars(adapt=adapt)  # how long every handle is
        self._longest_chars = max(states.handle_chars(adapt=mode) for mode in modes)

    def check_count(self, count: int, settings: Settings) -> None:
        """Raise InvalidRequest where an answer cannot have so many handles."""
        at_most("return_state", count, settings.max_states, "states")
        over = self.handle_chars - MAX_ADAPTED_CHARS
        if self._adapt and over > 0:
            raise InvalidRequest.of_option(
                "return_state",
                f"a state of {self._model} with adapt: true has {self.handle_chars} characters, "
                f"{over} more than the {MAX_ADAPTED_CHARS} that are allowed; send the whole text "
                "in one request, leave adapt out, or export the model with a lower [adapt] rank",
            )

    def seal(self, handle: Handle, *, now: float) -> str:
        """The handle as a text; `now` is Unix time in seconds."""
        noise = handle.noise
        header = _HEADER.pack(
            _VERSION,
            self._digest,
            int(now),
            handle.position,
            noise is not None,
            *((0, 0, 0) if noise is None else (noise.seed, noise.choice, noise.drawn)),
        )
        tensors = [*handle.continuation.states, handle.continuation.logprobs]
        body = header + b"".join(x.astype(_FLOAT, copy=False).tobytes() for x in tensors)
        return _text(body + self._signature(body))

    def open(self, text: str, *, now: float) -> Handle:
        """The sealed handle. Raises InvalidRequest if it is forged, foreign or too old."""
        if len(text) > self._longest_chars:
            raise _refused(f"a state of {self._model} has {self._longest_chars} characters at most")
        body = self._signed(text)
        if body[0] != _VERSION:
            raise _refused("the state was made by another version of this service")
        _, digest, made_s, position, has_noise, *place = _HEADER.unpack_from(body)
        if digest in self._other_precisions:
            raise _refused(
                f"the state was made in another precision; {self._model} is served in "
                f"{self._precision}"
            )
        if digest in self._other_modes:
            made, send = ("without", "leave adapt out") if self._adapt else ("with", "send it")
            raise _refused(f"the state was made {made} adapt: true; {send} here, too")
        if digest != self._digest:
            raise _refused(f"the state does not belong to {self._model} as it is served here")
        if now - made_s > self._max_age_s:
            raise _refused(f"the state is too old; states are accepted for {self._max_age_s:g} s")
        *states, logprobs = self._tensors(body[_HEADER.size :])
        noise = NoisePlace(*place) if has_noise else None
        return Handle(Continuation(tuple(states), logprobs), position, noise)

    def _signed(self, text: str) -> bytes:
        """The signed bytes of a handle. Every flaw gives the same error, to help no forger."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError as error:  # also where it is not ASCII
            raise _not_ours() from error
        body, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
        genuine = hmac.compare_digest(signature, self._signature(body))
        # A handle has exactly one text; base64 alone would accept several for the same bytes.
        if not genuine or _text(raw) != text:
            raise _not_ours()
        return body

    def _signature(self, body: bytes) -> bytes:
        return hmac.digest(self._key, b"unroll state\0" + body, "sha256")

    def _tensors(self, raw: bytes) -> Sequence[Float32Array]:
        """The states [1, …] each, and the log-probabilities."""
        tensors = []
        begin = 0
        for shape in [*self._shapes, (self._outputs,)]:
            count = math.prod(shape)
            flat = np.frombuffer(raw, _FLOAT, count, begin)
            tensors.append(flat.astype(np.float32).reshape(shape))
            begin += flat.nbytes
        return tensors


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _refused(detail: str) -> InvalidRequest:
    return InvalidRequest.of_option(_OPTION, detail)


def _not_ours() -> InvalidRequest:
    return _refused(
        "not a valid state for this server's key; send the state exactly as it was returned"
    )
