"""What goes to a worker, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.batch.chunks import Chunk
from service.batch.compression import Compression
from service.batch.files import Kind

# The fields or columns that results add to a record or a table.
SCORE, ERROR = "score", "score_error"


@dataclass(frozen=True, slots=True)
class Work:
    """A chunk for a worker."""

    kind: Kind
    compression: Compression | None
    chunk: Chunk
    position: int  # in the input file, after what was read for it


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker makes of a chunk."""

    output: bytes  # compressed, if the output is
    chars: int
    errors: int
    reports: Sequence[tuple[int, str]] = ()  # lines and what is wrong with them; the first few
