"""`python detect.py DETECTOR`: the language of each text, by a detector from PyPI, on one core.

Reads `{"languages": [codes], "texts": [...]}` from standard input and writes
`{"known": [codes], "languages": [one a text or null], "seconds": s}`; loading is not timed. A
detector is restricted to the languages if it can be: gcld3 cannot.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence

import gcld3
import langdetect
import py3langid
from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
from lingua import IsoCode639_1, LanguageDetectorBuilder

# Our codes, by a detector's own.
OTHERS = {"no": "nb", "iw": "he", "zh-cn": "zh", "zh-tw": "zh", "zh-Latn": "zh"}
WARM_UP = 20  # texts

Detect = Callable[[str], str | None]
Opened = tuple[Sequence[str], Detect]  # the languages that it knows, and the detector


def open_lingua(languages: Sequence[str], *, low_accuracy: bool = False) -> Opened:
    """Lingua, its models loaded."""
    codes = [IsoCode639_1.from_str(x.upper()) for x in languages]
    builder = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_preloaded_language_models()
    detector = (builder.with_low_accuracy_mode() if low_accuracy else builder).build()

    def detect(text: str) -> str | None:
        language = detector.detect_language_of(text)
        return None if language is None else language.iso_code_639_1.name.lower()

    return languages, detect


def open_py3langid(languages: Sequence[str]) -> Opened:
    """Naive Bayes; its Norwegian has the code of both forms."""
    py3langid.set_languages(["no" if x == "nb" else x for x in languages])
    return languages, lambda text: py3langid.classify(text)[0]


def open_langdetect(languages: Sequence[str]) -> Opened:
    """Languages are restricted by their prior probability."""
    DetectorFactory.seed = 0
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    prior = {x: 1.0 for x in factory.langlist if OTHERS.get(x, x) in languages}

    def detect(text: str) -> str | None:
        detector = factory.create()
        detector.set_prior_map(prior)
        detector.append(text)
        try:
            return str(detector.detect())
        except langdetect.LangDetectException:  # nothing to go by in the text
            return None

    return [OTHERS.get(x, x) for x in prior], detect


def open_gcld3(languages: Sequence[str]) -> Opened:
    """Compact Language Detector 3, which always chooses among all of its languages."""
    identifier = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)
    return languages, lambda text: identifier.FindLanguage(text=text).language


DETECTORS: dict[str, Callable[[Sequence[str]], Opened]] = {
    "lingua": open_lingua,
    "lingua-low": lambda languages: open_lingua(languages, low_accuracy=True),
    "py3langid": open_py3langid,
    "langdetect": open_langdetect,
    "gcld3": open_gcld3,
}


def main() -> None:
    """Read the texts, detect, write the answers."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    request = json.load(sys.stdin)
    known, detect = DETECTORS[sys.argv[1]](request["languages"])
    texts = request["texts"]
    for text in texts[:WARM_UP]:
        detect(text)
    begin = time.perf_counter()
    found = [detect(text) for text in texts]
    seconds = time.perf_counter() - begin
    languages = [None if x is None else OTHERS.get(x, x) for x in found]
    json.dump({"known": sorted(set(known)), "languages": languages, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
