"""Handles by themselves: what was sealed comes back to the bit, or is refused."""

import base64
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.bundle.files import sha256, vocab_bytes
from service.bundle.language_model import LanguageModelManifest
from service.bundle.manifest import Precision, StateTensor
from service.bundle.text import Normalization, Vocabulary
from service.decoding.rows import Continuation
from service.errors import InvalidRequest
from service.tasks.handles import Handle, NoisePlace, Seal
from service.tasks.text_model import language_model_states
from tests.bundles import plain_files, tiny_files

KEY = b"sixteen bytes or so"
NOW = 1_700_000_000.0
DAY = 86_400.0
SHAPES = ((3,), (2, 2))
CHARACTERS = "abc"
VOCAB = 4 + len(CHARACTERS)


def manifest_of(**changes: Any) -> LanguageModelManifest:
    states = [
        StateTensor(name=f"s{i}", dtype="float32", shape=list(x)) for i, x in enumerate(SHAPES)
    ]
    manifest, _ = plain_files(characters=CHARACTERS, **({"states": states} | changes))
    return manifest


def model_digest(manifest: LanguageModelManifest, precision: Precision) -> bytes:
    return language_model_states(manifest).digest(precision)


def seal_of(
    manifest: LanguageModelManifest | None = None,
    *,
    key: bytes = KEY,
    precision: Precision = "fp32",
    max_age_s: float = DAY,
) -> Seal:
    states = language_model_states(manifest or manifest_of())
    return Seal(key, states, precision, max_age_s=max_age_s)


def handle_of(fill: float = 0.5, noise: NoisePlace | None = None) -> Handle:
    states = tuple(np.full((1, *shape), fill, np.float32) for shape in SHAPES)
    return Handle(Continuation(states, np.full(VOCAB, -fill, np.float32)), 7, noise)


def refusal(seal: Seal, text: str, now: float = NOW) -> str:
    with pytest.raises(InvalidRequest) as refused:
        seal.open(text, now=now)
    error = refused.value
    assert [x.option for x in error.errors] == ["state"]
    assert error.errors[0].detail == error.detail
    return error.detail


FORGED = refusal(seal_of(), "")

floats = st.floats(width=32, allow_nan=False)
numbers = st.integers(0, 2**63 - 1)


@given(
    data=st.data(),
    position=numbers,
    noise=st.none() | st.builds(NoisePlace, numbers, numbers, numbers),
    now=st.floats(0, 2.0**40),
)
def test_what_was_sealed_comes_back_to_the_bit(
    data: st.DataObject, position: int, noise: NoisePlace | None, now: float
) -> None:
    states = tuple(data.draw(arrays(np.float32, (1, *x), elements=floats)) for x in SHAPES)
    logprobs = data.draw(arrays(np.float32, VOCAB, elements=floats))
    handle = Handle(Continuation(states, logprobs), position, noise)
    text = seal_of().seal(handle, now=now)
    assert len(text) == seal_of().handle_chars
    found = seal_of().open(text, now=now)
    assert (found.position, found.noise) == (position, noise)
    pairs = zip(
        (*found.continuation.states, found.continuation.logprobs), (*states, logprobs), strict=True
    )
    for one, other in pairs:
        assert one.dtype == np.float32
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
        assert one.flags.writeable  # a copy, and not a view of the request


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_any_bit_that_changes_makes_it_a_forgery(place: int, bit: int) -> None:
    seal = seal_of()
    raw = bytearray(_raw(seal.seal(handle_of(), now=NOW)))
    raw[place % len(raw)] ^= 1 << bit
    assert refusal(seal, _text(raw)) == FORGED


@given(length=st.integers(0))
def test_any_part_of_it_looks_like_a_forgery(length: int) -> None:
    seal = seal_of()
    text = seal.seal(handle_of(), now=NOW)
    assert refusal(seal, text[: length % len(text)]) == FORGED
    assert refusal(seal, text[1 + length % len(text) :]) == FORGED


@given(place=st.integers(0), character=st.characters(codec="utf-8"))
def test_a_handle_has_one_text(place: int, character: str) -> None:
    seal = seal_of()
    text = seal.seal(handle_of(), now=NOW)
    place %= len(text)
    other = text[:place] + character + text[place + 1 :]
    if other != text:
        assert refusal(seal, other) == FORGED


@pytest.mark.parametrize("shorter", range(3))  # whatever is left over of base64's threes
def test_base64_that_says_the_same_in_another_way_is_a_forgery(shorter: int) -> None:
    states = [StateTensor(name="s", dtype="float32", shape=[4 + shorter])]
    seal = seal_of(manifest_of(states=states))
    zeros = np.zeros((1, 4 + shorter), np.float32)
    handle = Handle(Continuation((zeros,), np.zeros(VOCAB, np.float32)), 1)
    text = seal.seal(handle, now=NOW)
    assert seal.open(text, now=NOW).position == 1
    same = [x for x in _ALPHABET if x != text[-1] and _raw(text[:-1] + x) == _raw(text)]
    assert len(same) in {0, 3, 15}
    for other in [*(text[:-1] + x for x in same), text.replace("-", "+").replace("_", "/")]:
        if other != text:
            assert refusal(seal, other) == FORGED
    wrapped = text[:20] + "\n" + text[20:-1]
    assert refusal(seal, wrapped) == FORGED


def test_another_key_looks_like_a_forgery() -> None:
    text = seal_of(key=b"another key of some length").seal(handle_of(), now=NOW)
    assert refusal(seal_of(), text) == FORGED


@given(st.text(max_size=seal_of().handle_chars))
def test_any_text_is_a_forgery(text: str) -> None:
    assert refusal(seal_of(), text) == FORGED


def test_what_is_longer_than_a_handle_is_not_looked_at() -> None:
    seal = seal_of()
    text = seal.seal(handle_of(), now=NOW)
    detail = refusal(seal, text + "A" * 10**6)
    assert detail == f"a state of plain has {len(text)} characters at most"


def test_a_handle_is_as_large_as_the_state_and_little_more() -> None:
    floats = 3 + 4 + VOCAB
    assert 4 * (4 * floats + 100) / 3 < seal_of().handle_chars < 4 * (4 * floats + 110) / 3


@pytest.mark.parametrize(
    "changes",
    [
        {"characters": "abd"},
        {"graph": b"other weights"},
        {"normalization": Normalization(lowercase=True)},
        {"states": [StateTensor(name="t", dtype="float32", shape=[7])]},
    ],
)
def test_a_state_of_another_model_is_refused(changes: dict[str, Any]) -> None:
    options = {"characters": CHARACTERS, "states": manifest_of().states} | changes
    other, _ = plain_files("other", **options)
    assert model_digest(other, "fp32") != model_digest(manifest_of(), "fp32")
    foreign = seal_of(other)
    shapes = [(1, *state.shape) for state in other.states]
    states = tuple(np.zeros(shape, np.float32) for shape in shapes)
    handle = Handle(Continuation(states, np.zeros(VOCAB, np.float32)), 1)
    detail = refusal(seal_of(), foreign.seal(handle, now=NOW))
    assert detail == "the state does not belong to plain as it is served here"


def test_a_copy_under_another_name_is_the_same_model() -> None:
    copy = manifest_of().model_copy(update={"name": "copy", "description": "The same."})
    text = seal_of(copy).seal(handle_of(), now=NOW)
    assert seal_of().open(text, now=NOW).position == 7


def test_a_state_in_another_precision_is_refused_with_the_precision() -> None:
    manifest, _ = tiny_files("gru")
    seals = {x: seal_of(manifest, precision=x) for x in ("fp32", "int8")}
    states = tuple(np.zeros((1, *state.shape), np.float32) for state in manifest.states)
    handle = Handle(Continuation(states, np.zeros(manifest.vocab.size, np.float32)), 1)
    for one, other in (("fp32", "int8"), ("int8", "fp32")):
        text = seals[one].seal(handle, now=NOW)
        assert seals[one].open(text, now=NOW).position == 1
        detail = refusal(seals[other], text)
        assert detail == (f"the state was made in another precision; tiny-gru is served in {other}")


def test_a_graph_of_another_precision_does_not_matter() -> None:
    manifest, _ = tiny_files("gru")
    changed = [
        x if x.precision == "fp32" else x.model_copy(update={"sha256": "0" * 64})
        for x in manifest.graphs
    ]
    other = manifest.model_copy(update={"graphs": changed})
    assert model_digest(other, "fp32") == model_digest(manifest, "fp32")
    assert model_digest(other, "int8") != model_digest(manifest, "int8")


@given(age=st.floats(0, 3 * DAY))
def test_a_state_is_taken_for_so_long_and_no_longer(age: float) -> None:
    seal = seal_of()
    text = seal.seal(handle_of(), now=NOW)
    if age <= DAY:
        assert seal.open(text, now=NOW + age).position == 7
    else:
        assert refusal(seal, text, NOW + age) == (
            "the state is too old; states are accepted for 86400 s"
        )


def test_a_replica_whose_clock_is_behind_takes_it() -> None:
    text = seal_of().seal(handle_of(), now=NOW)
    assert seal_of().open(text, now=NOW - 3600).position == 7


def test_another_version_is_told_from_a_forgery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.tasks.handles._VERSION", 2)
    text = seal_of().seal(handle_of(), now=NOW)
    monkeypatch.undo()
    assert refusal(seal_of(), text) == "the state was made by another version of this service"


def test_the_digest_is_of_all_that_gives_a_state_its_meaning() -> None:
    """Written out, so that a change of it is seen: it ends every handle that is out there."""
    manifest = manifest_of()
    vocab = sha256(vocab_bytes(Vocabulary.of_characters(CHARACTERS)))
    assert model_digest(manifest, "fp32") == bytes.fromhex(
        sha256(
            f"fp32\nsequence {sha256(b'not a graph')}\ns0 [3]\ns1 [2, 2]\n{vocab}\n"
            f"{Normalization().model_dump_json()}".encode()
        )
    )


def test_the_layout_is_what_the_module_says() -> None:
    handle = replace(handle_of(0.25), noise=NoisePlace(11, 2, 300))
    raw = _raw(seal_of().seal(handle, now=NOW))
    header = struct.unpack_from("<B32sQQ?QQQ", raw)
    digest = model_digest(manifest_of(), "fp32")
    assert header == (1, digest, int(NOW), 7, True, 11, 2, 300)
    floats = np.frombuffer(raw[74:-32], "<f4")
    assert floats.tolist() == [0.25] * 7 + [-0.25] * VOCAB


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _text(raw: bytes | bytearray) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
