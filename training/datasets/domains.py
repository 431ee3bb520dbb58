"""Names of domains: real ones, and ones made up by the generators below.

A text is a name without its top-level domain ("example"). Real names are those of Chromium's list
of hosts that require HTTPS, in the wheel of `REAL` (both BSD). Made-up names come from four
generators, three of which are in the training data; they draw on the lengths of real names and on
the words of the Debian package `wamerican` (SCOWL, permissive).

What this is worth: it measures the generators. A name from another generator is recognized only as
far as it resembles theirs, which is why `syllables` is in the tests alone.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from training.datasets.catalogs import notice, notices_text, package_of
from training.datasets.pairs import by_digest, write_pairs
from training.datasets.registry import cache_beside, debian_files, open_wheel

REAL = package_of(
    "hstspreload",
    "2025.1.1",
    "02bd5b0885b62f0d5239ca6c6876ffcad8d9c08dc97cee54292598141a16e9dc",
    "BSD-3-Clause",
)
WORDS_PACKAGE = "wamerican"
WORDS_FILE = "usr/share/dict/american-english"
WORDS_COPYRIGHT = "usr/share/doc/wamerican/copyright"
DIGESTS = {
    WORDS_FILE: "9f513f1ceadb6a01c5485b7dbdfd5118dc66cd70b59cae2851292112d4066a32",
    WORDS_COPYRIGHT: "1d7c0128f6c72d2270bf1b271b37a3a21267f759161b68c4dc6c501574c0892e",
}

NAMES, TEST_NAMES = 30_000, 2_000  # real ones; as many are made up
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_ORDER = 3  # preceding characters that the Markov chain looks at
_SIZES = (6, 20)  # fewest and most characters of a name
_TRIES = 100  # for each name that is wanted; after that, fewer names are enough

# An entry: flags, the length of a name with its top-level domain, the name.
_NAME = re.compile(rb"([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)\.[a-z]{2,}")
_WORD = re.compile(r"[a-z]{3,8}")

Generator = Callable[[np.random.Generator], str]


def real_names(packed: bytes) -> list[str]:
    """The names in hstspreload's table, in the order of their SHA-256.

    Its entries are flags (1 byte), a length (1 byte) and a host or a part of one.
    """
    found: set[str] = set()
    place = 0
    while place + 1 < len(packed):
        end = place + 2 + packed[place + 1]
        match = _NAME.fullmatch(packed[place + 2 : end])
        if match is not None and b"--" not in match[1]:  # no name that is in another script
            found.add(match[1].decode())
        place = end
    return by_digest(name for name in found if _SIZES[0] <= len(name) <= _SIZES[1])


def letters(real: Sequence[str]) -> Generator:
    """Letters and digits, all equally likely, as many as a real name has."""

    def generate(rng: np.random.Generator) -> str:
        size = len(real[int(rng.integers(len(real)))])
        return "".join(_LETTERS[i] for i in rng.integers(len(_LETTERS), size=size))

    return generate


def words(known: Sequence[str]) -> Generator:
    """Two or three words of a dictionary, joined."""

    def generate(rng: np.random.Generator) -> str:
        return "".join(known[i] for i in rng.integers(len(known), size=rng.integers(2, 4)))

    return generate


def markov(real: Sequence[str]) -> Generator:
    """A Markov chain of characters, counted in real names."""
    following: dict[str, list[str]] = {}
    for name in real:
        padded = "^" * _ORDER + name + "$"
        for i in range(len(name) + 1):
            following.setdefault(padded[i : i + _ORDER], []).append(padded[i + _ORDER])

    def generate(rng: np.random.Generator) -> str:
        name = "^" * _ORDER
        while not name.endswith("$"):
            choices = following[name[-_ORDER:]]
            name += choices[int(rng.integers(len(choices)))]
        return name[_ORDER:-1]

    return generate


def syllables(rng: np.random.Generator) -> str:
    """A consonant and a vowel, three to seven times."""
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    return "".join(
        consonants[rng.integers(len(consonants))] + vowels[rng.integers(len(vowels))]
        for _ in range(rng.integers(3, 8))
    )


def made_up(generate: Generator, count: int, taken: set[str], seed: int) -> list[str]:
    """Up to `count` different names of a proper size that are not taken."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        name = generate(rng)
        if _SIZES[0] <= len(name) <= _SIZES[1] and name not in taken:
            found[name] = None
    return list(found)


def build(folder: Path) -> list[str]:
    """Write `train.tsv`, a test for each generator beside real names, and `NOTICES.txt`."""
    cache = cache_beside(folder)
    with open_wheel(REAL.wheel, cache) as wheel:
        real = real_names(wheel.read("hstspreload/hstspreload.bin"))
        notices = [notice(REAL, wheel)]
    files = debian_files(WORDS_PACKAGE, DIGESTS, cache)
    notices.append(f"{WORDS_PACKAGE}\n\n{files[WORDS_COPYRIGHT].decode()}")
    known = [x for x in files[WORDS_FILE].decode().split("\n") if _WORD.fullmatch(x)]
    train = real[-NAMES:]
    generators: Mapping[str, Generator] = {
        "letters": letters(train),
        "words": words(known),
        "markov": markov(train),
        "syllables": syllables,
    }
    lines = [f"{len(real):,} real names of {_SIZES[0]} to {_SIZES[1]} characters"]
    each = NAMES // (len(generators) - 1)
    pairs = [(name, "real") for name in train]
    for seed, (kind, generate) in enumerate(generators.items()):
        count = TEST_NAMES + (0 if kind == "syllables" else each)
        found = made_up(generate, count, set(real), seed)
        pairs += [(name, "made-up") for name in found[TEST_NAMES:]]
        # Each test has real names of its own, since no name may be in two tests.
        tests = [(x, "real") for x in real[seed * TEST_NAMES : (seed + 1) * TEST_NAMES]]
        tests += [(name, "made-up") for name in found[:TEST_NAMES]]
        lines.append(write_pairs(folder / f"{kind}.tsv", tests))
    lines.append(write_pairs(folder / "train.tsv", pairs))
    counts = Counter(label for _, label in pairs)
    lines.append(", ".join(f"{count:,} {label}" for label, count in counts.items()))
    (folder / "NOTICES.txt").write_bytes(notices_text(notices).encode())
    return lines
