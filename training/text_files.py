"""The files that a user names, and their bytes as text."""

import codecs
import glob
import hashlib
import io
import shlex
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.bundle.marks import MAX_MARKS, without_extra_marks
from training.errors import ConfigError

READ_BYTES = 1 << 20
# UTF-32 first: its little-endian mark begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Share of NUL bytes from which a file is taken for UTF-16 without a mark; its blanks and line ends
# alone have more.
_NUL_SHARE = 0.02


def text_blocks(path: Path) -> Iterator[str]:
    """The text of a file in pieces, with its line ends as they are and without a byte order mark.

    Reads UTF-8, and UTF-16 or UTF-32 with a byte order mark. Raises ConfigError with the file, the
    line and the byte for anything else. Drops combining marks beyond MAX_MARKS in a row, with a
    warning, because the service refuses a text that has more.
    """
    run = dropped = 0
    for block in _decoded_blocks(path):
        text, extra, run = without_extra_marks(block, run)
        dropped += extra
        yield text
    if dropped:
        warnings.warn(
            f"{path}: {dropped:,} combining marks are left out; at most {MAX_MARKS} in a row are "
            "read",
            stacklevel=2,
        )


def _decoded_blocks(path: Path) -> Iterator[str]:
    with _open(path) as stream:
        head = stream.read(READ_BYTES)
        encoding = _encoding(path, head)
        decoder = codecs.getincrementaldecoder(encoding)()
        block, end = head, len(head)
        try:
            while block:
                yield decoder.decode(block)
                block = stream.read(READ_BYTES)
                end += len(block)
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            # The decoder holds back bytes of earlier blocks and decodes them with the last one.
            place = end - len(error.object) + error.start
            raise ConfigError(_not_text(path, encoding, place, error)) from error


def read_text(path: Path) -> str:
    """The whole text of a file, as `text_blocks` yields it."""
    return "".join(text_blocks(path))


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file. Only LF, CR LF and CR end a line.

    `splitlines` would also cut at U+2028 and the like, which occur inside texts.
    """
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    rest = ""
    for block in text_blocks(path):
        *whole, rest = (rest + ends.decode(block)).split("\n")
        yield from whole
    *whole, rest = (rest + ends.decode("", final=True)).split("\n")
    yield from whole
    if rest:
        yield rest


def input_files(patterns: Sequence[str], base: Path, option: str = "data.files") -> list[Path]:
    """The files that an option names, in order, each once. Raises ConfigError where there are none.

    An entry is a file, a folder (its *.txt files) or a glob, relative to `base`; `~` works.
    """
    # By resolved path: a file that is named twice would leak between splits.
    files: dict[Path, Path] = {}
    for pattern in patterns:
        for path in _matches(pattern, base, option):
            files.setdefault(path.resolve(), path)
    return list(files.values())


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several files, that of their digests, so that boundaries count."""
    digests = []
    for path in files:
        with _open(path) as stream:
            digests.append(hashlib.file_digest(stream, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _matches(pattern: str, base: Path, option: str) -> list[Path]:
    named = base / Path(pattern).expanduser()
    # Before globbing, because names may contain a `[`.
    if named.is_file():
        return [named]
    if named.is_dir():
        return _folder_texts(named, option)
    pattern = str(Path(pattern).expanduser())
    # base.glob takes no absolute patterns; in base / pattern, a [ in the folder's name would count.
    found = sorted(base / x for x in glob.glob(pattern, root_dir=base, recursive=True))  # noqa: PTH207
    files = [path for path in found if path.is_file()]
    if not files:
        raise ConfigError(f"{option}: nothing matches {pattern!r} beside the configuration")
    return files


def _folder_texts(folder: Path, option: str) -> list[Path]:
    texts = [x for x in sorted(folder.iterdir()) if x.is_file() and x.suffix.lower() == ".txt"]
    texts = [x for x in texts if not x.name.startswith(".")]
    if not texts:
        raise ConfigError(
            f"{option}: {folder} is a folder without *.txt files; name files, or a pattern such as "
            f"{str(folder / '*.md')!r} (** reaches into folders)"
        )
    return texts


def _open(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _encoding(path: Path, head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    nuls = head.count(0)
    if len(head) % 2 == 0 and nuls > _NUL_SHARE * len(head):
        for name, high in (("UTF-16LE", head[1::2]), ("UTF-16BE", head[::2])):
            if high.count(0) > 0.9 * nuls:
                raise ConfigError(
                    f"{path}: {name} without a byte order mark, by its NUL bytes; training reads "
                    f"UTF-8: {_iconv(name, path)}"
                )
    return "utf-8-sig"


def _not_text(path: Path, encoding: str, place: int, error: UnicodeDecodeError) -> str:
    where = f"{path}, line {_line_of(path, encoding, place)}, byte {place + 1:,} of the file"
    if encoding != "utf-8-sig":
        return f"{where}: not {encoding.upper()}, which its byte order mark says: {error.reason}"
    if b"\0" in error.object:
        return f"{where}: this is no text: it holds zero bytes"
    return (
        f"{where}: not UTF-8: {error.reason}. If it is Windows text of Western Europe: "
        f"{_iconv('WINDOWS-1252', path)}"
    )


def _iconv(encoding: str, path: Path) -> str:
    new = path.with_name(f"{path.stem}.utf8{path.suffix}")
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"


def _line_of(path: Path, encoding: str, place: int) -> int:
    """The line, counted from 1, of the byte at `place`."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    ends = io.IncrementalNewlineDecoder(decoder, translate=True)
    line = 1
    with path.open("rb") as stream:
        while place > 0 and (block := stream.read(min(READ_BYTES, place))):
            place -= len(block)
            line += ends.decode(block).count("\n")
    # The decoder has held back a CR at the very end.
    return line + ends.decode(b"", final=True).count("\n")
