"""Tiny Shakespeare, cut for training, fitting and the test.

The benchmark tests on the last tenth of the text. What is fitted after training (weights of a
mixture, temperatures, learning rates) needs text that neither the training nor the test has. It is
taken from the middle: the end of the training text begins the play that the test goes on with, and
a model that has not read it loses 0.1 nats a character on the test.

Source: the text that Karpathy's char-rnn made known, 1,115,394 characters (public domain).
"""

from hashlib import sha256
from pathlib import Path

from training.datasets.errors import DatasetError

SOURCE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"
_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_TEST_CHARS = 111_540
_FITTING_CHARS = 24_000
_SPEECH_END = "\n\n"


def build(folder: Path) -> list[str]:
    """Write train-1.txt, train-2.txt, valid.txt and test.txt. Raises DatasetError."""
    try:
        data = SOURCE.read_bytes()
    except OSError as error:
        raise DatasetError(f"{SOURCE}: {error.strerror}; put the text there") from error
    if sha256(data).hexdigest() != _SHA256:
        raise DatasetError(f"{SOURCE}: this is not the text that this code was written for")
    lines = []
    for name, text in _parts(data.decode()).items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
        lines.append(f"{name}: {len(text):,} characters")
    return lines


def _parts(text: str) -> dict[str, str]:
    """The files' texts; cuts inside the training text lie between speeches."""
    training, test = text[:-_TEST_CHARS], text[-_TEST_CHARS:]
    begin = _after_speech(training, len(training) // 2)
    end = _after_speech(training, begin + _FITTING_CHARS)
    return {
        "train-1.txt": training[:begin],
        "train-2.txt": training[end:],
        "valid.txt": training[begin:end],
        "test.txt": test,
    }


def _after_speech(text: str, place: int) -> int:
    return text.index(_SPEECH_END, place) + len(_SPEECH_END)
