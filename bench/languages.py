"""`python -m bench.languages`: the language of short texts, beside four detectors from PyPI.

The texts have 5 to 40 characters and come from two sets that the model was not trained on: `test`
(other texts of the packages that it learned from) and `package` (packages that it never saw).
Accuracy is macro: the mean over the languages that have at least `MIN_TEXTS` texts. Speed is texts
per second on one core: our server answers requests of 1,000 texts (HTTP and JSON included), the
detectors are called text by text in processes of their own, and all take turns in every round.
"""

import argparse
import json
import os
import statistics
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.environments import PEERS, environment_of, python_of
from bench.http import post
from bench.report import Row, say, table, write
from bench.server import ROOT, unroll
from training.datasets.pairs import by_digest

WORK = ROOT / "bench" / ".work"
DATA = ROOT / "data" / "languages"
PEER = "language_detectors"  # the folder of their environment
UNROLL = "Unroll"
DETECTORS: Mapping[str, str] = {
    "lingua": "lingua, high accuracy",
    "lingua-low": "lingua, low accuracy",
    "py3langid": "py3langid",
    "gcld3": "gcld3",
    "langdetect": "langdetect",
}
GROUPS = ((5, 40), (5, 10), (11, 20), (21, 40))  # characters, both ends included
MIN_TEXTS = 10  # of a language in a group of lengths
REQUEST_TEXTS = 1_000
TIMED_TEXTS = 2_000


@dataclass(frozen=True, slots=True)
class Text:
    """A text, and the language it is in."""

    text: str
    language: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The language found for each text, and how long that took."""

    languages: Sequence[str | None]
    seconds: float
    known: Sequence[str] = ()  # the languages that a detector can find


def main() -> None:
    """Measure, print and write bench/results/languages.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.languages", description=__doc__)
    parser.add_argument("--model", default="language-id")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--texts", type=int, default=200, help="at most, of a language and set")
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    options = parser.parse_args()
    sets = {name: drawn(DATA / f"{name}.tsv", options.texts) for name in ("test", "package")}
    timed = [x.text for x in sets["test"]]
    timed = by_digest(timed)[:TIMED_TEXTS]
    languages = sorted({text.language for texts in sets.values() for text in texts})
    rows = []
    rates: dict[str, list[float]] = defaultdict(list)
    with one_core(), unroll(options.models, WORK / "logs" / "languages.log") as server:
        subjects: dict[str, Service | Detector] = {UNROLL: Service(server.url, options.model)}
        subjects |= {label: Detector(name, languages) for name, label in DETECTORS.items()}
        for label, subject in subjects.items():
            for name, texts in sets.items():
                found = accuracy_rows(label, name, texts, subject.answer([x.text for x in texts]))
                say(table(found))
                rows += found
        for _ in range(options.rounds):
            for label, subject in subjects.items():
                rates[label].append(len(timed) / subject.answer(timed).seconds)
    speeds = speed_rows(rates)
    say(table(speeds))
    rows += speeds
    lines = (PEERS / PEER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    versions = dict(line.split("==") for line in lines)
    write("languages.json", "The language of short texts", rows, versions)


class Service:
    """Our server."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model

    def answer(self, texts: Sequence[str]) -> Answer:
        """By requests of 1,000 texts, one after the other."""
        found: list[str | None] = []
        total_s = 0.0
        for start in range(0, len(texts), REQUEST_TEXTS):
            body = {"model": self._model, "text": list(texts[start : start + REQUEST_TEXTS])}
            seconds, answer = post(f"{self._url}/classify", {**body, "top": 1})
            total_s += seconds
            found += [result["labels"][0]["label"] for result in answer["results"]]
        return Answer(found, total_s)


class Detector:
    """A detector in its own environment, in a process for each list of texts."""

    def __init__(self, name: str, languages: Sequence[str]) -> None:
        self._command = [str(python_of(PEER, WORK)), str(PEERS / PEER / "detect.py"), name]
        self._languages = languages

    def answer(self, texts: Sequence[str]) -> Answer:
        """One text after the other; loading is not timed."""
        request = json.dumps({"languages": self._languages, "texts": list(texts)})
        done = subprocess.run(
            self._command,
            input=request.encode(),
            stdout=subprocess.PIPE,
            check=True,
            env=os.environ | environment_of(PEER),
        )
        answer = json.loads(done.stdout)
        return Answer(answer["languages"], answer["seconds"], answer["known"])


def drawn(path: Path, most: int) -> list[Text]:
    """The texts of 5 to 40 characters, of a language at most `most`, the first by SHA-256."""
    (shortest, longest), *_ = GROUPS
    by_language: dict[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        text, language = line.split("\t")
        if shortest <= len(text) <= longest:
            by_language[language].append(text)
    return [
        Text(text, language)
        for language, texts in sorted(by_language.items())
        for text in by_digest(texts)[:most]
    ]


def macro_accuracy(
    texts: Sequence[Text], found: Sequence[str | None], only: Sequence[str] = ()
) -> tuple[float, int]:
    """Mean over the languages of the share of right answers, and how many languages there are.

    Of the languages with at least MIN_TEXTS texts, and of these `only` some.
    """
    counts = Counter(text.language for text in texts)
    right = Counter(x.language for x, y in zip(texts, found, strict=True) if x.language == y)
    shares = [
        right[language] / count
        for language, count in counts.items()
        if count >= MIN_TEXTS and (not only or language in only)
    ]
    return statistics.mean(shares), len(shares)


def accuracy_rows(label: str, name: str, texts: Sequence[Text], answer: Answer) -> list[Row]:
    """Macro accuracy in percent by length, and of the languages that the detector knows."""
    rows = []
    for shortest, longest in GROUPS:
        inside = [shortest <= len(x.text) <= longest for x in texts]
        some = [x for x, y in zip(texts, inside, strict=True) if y]
        found = [x for x, y in zip(answer.languages, inside, strict=True) if y]
        share, count = macro_accuracy(some, found)
        title = f"{name}, {shortest} to {longest} characters: {label}"
        rows.append(Row(title, 100 * share, f"% of {count}"))
    if answer.known and {x.language for x in texts} - set(answer.known):
        share, count = macro_accuracy(texts, answer.languages, answer.known)
        rows.append(Row(f"{name}, languages it knows: {label}", 100 * share, f"% of {count}"))
    return rows


def speed_rows(rates: Mapping[str, Sequence[float]]) -> list[Row]:
    """Texts per second, and our ratio to each detector (the median over the rounds)."""
    rows = []
    for label, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates[UNROLL], values, strict=True))
        against = None if label == UNROLL else UNROLL
        rows.append(
            Row(
                f"texts a second on one core: {label}",
                statistics.median(values),
                "texts/s",
                against and f"{UNROLL} ÷ detector",
                None if against is None else ratio,
            )
        )
    return rows


@contextmanager
def one_core() -> Iterator[None]:
    """What starts inside runs on one core; this process goes back to all of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    main()
