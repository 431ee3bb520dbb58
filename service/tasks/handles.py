"""State handles: the state after a text, as a signed string that any replica with the key accepts.

    handle = base64url( header | states | log-probabilities | HMAC-SHA256 of all before it )

A changed handle is rejected; a valid one restores the state to the bit. It is signed but not
encrypted: its bearer can read the model's state, which comes from the bearer's own text.
V vocabulary.
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
from service.bundle.language_model import LanguageModelManifest
from service.bundle.manifest import Precision
from service.decoding.rows import Continuation
from service.errors import InvalidRequest

_VERSION = 1
_SIGNATURE_BYTES = 32
_FLOAT = np.dtype("<f4")
# Version, digest of the model, when it was made (Unix time, s), tokens read; whether noise goes on,
# and from where: seed, choice, tokens drawn.
_HEADER = struct.Struct("<B32sQQ?QQQ")
_OPTION = "state"


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


def model_digest(manifest: LanguageModelManifest, precision: Precision) -> bytes:
    """SHA-256 over what a state means: graphs in a precision, vocabulary, normalization. [32].

    The bundle's name is not in it: a copy under another name is the same model.
    """
    parts = [f"{x.role} {x.sha256}" for x in manifest.graphs if x.precision == precision]
    shapes = [f"{state.name} {state.shape}" for state in manifest.states]
    normalization = manifest.normalization.model_dump_json()
    told = [precision, *sorted(parts), *shapes, manifest.vocab.sha256, normalization]
    return hashlib.sha256("\n".join(told).encode()).digest()


class Seal:
    """Makes and opens the handles of one model in one precision."""

    def __init__(
        self, key: bytes, manifest: LanguageModelManifest, precision: Precision, *, max_age_s: float
    ) -> None:
        self._key = key
        self._model = manifest.name
        self._precision = precision
        self._max_age_s = max_age_s
        self._digest = model_digest(manifest, precision)
        others: set[Precision] = {graph.precision for graph in manifest.graphs} - {precision}
        self._other_precisions = {model_digest(manifest, other) for other in others}
        self._shapes = [(1, *state.shape) for state in manifest.states]
        self._vocab_size = manifest.vocab.size

    @property
    def handle_chars(self) -> int:
        """How long every handle of this model is."""
        floats = sum(map(math.prod, self._shapes)) + self._vocab_size
        size = _HEADER.size + floats * _FLOAT.itemsize + _SIGNATURE_BYTES
        return -(-size * 4 // 3)

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
        if len(text) > self.handle_chars:
            raise _refused(f"a state of {self._model} has {self.handle_chars} characters at most")
        body = self._signed(text)
        if body[0] != _VERSION:
            raise _refused("the state was made by another version of this service")
        _, digest, made_s, position, has_noise, *place = _HEADER.unpack_from(body)
        if digest in self._other_precisions:
            raise _refused(
                f"the state was made in another precision; {self._model} is served in "
                f"{self._precision}"
            )
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
        """The states [1, …] each, and the log-probabilities [V]."""
        tensors = []
        begin = 0
        for shape in [*self._shapes, (self._vocab_size,)]:
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
