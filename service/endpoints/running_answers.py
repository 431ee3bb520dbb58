"""A streamed body that is one text: answers about the text so far."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from fastapi import Request

from service.bundle.arrays import Ids
from service.bundle.text import Normalization
from service.endpoints.line_reader import TextSplitter
from service.endpoints.stream_wire import json_line
from service.endpoints.streamed_body import StreamedBody
from service.errors import ClientGone, InvalidRequest, ServiceError
from service.http.problems import problem_document


class Carried(Protocol):
    """What is known of a text so far."""

    @property
    def read(self) -> int:
        """Characters received."""


CarriedT = TypeVar("CarriedT", bound=Carried)


@dataclass(frozen=True, slots=True)
class PartsTask(Generic[CarriedT]):
    """What is done with a text in parts."""

    normalization: Normalization
    ids_of: Callable[[str], Ids]  # of a part
    # With the next part, or None at the end of the text.
    carry_on: Callable[[CarriedT, Ids | None], Coroutine[Any, Any, CarriedT]]
    told: Callable[[CarriedT], dict[str, Any]]  # the fields of an answer
    every: int  # characters from one answer to the next


async def running_answers(
    request: Request, body: StreamedBody, task: PartsTask[CarriedT], carried: CarriedT
) -> AsyncGenerator[bytes, None]:
    """The answer about the text so far, every so many characters and at its end.

    An error of the stream is its last line.
    """
    splitter = TextSplitter(request.app.state.settings.stream_batch_bytes, task.normalization)
    try:
        while True:
            piece = await body.piece()
            try:
                part = splitter.end() if piece is None else splitter.feed(piece)
            except UnicodeDecodeError as error:
                after = max(0, splitter.read_bytes - 3)
                raise InvalidRequest(f"the text is not UTF-8 after byte {after}") from error
            except ValueError as error:
                raise InvalidRequest(
                    "a stretch of the text is too long to be cut anywhere"
                ) from error
            ids = task.ids_of(part)
            while len(ids):
                # Answers are at the same places however the bytes arrive.
                size = task.every - carried.read % task.every
                carried = await body.result_of(partial(task.carry_on, carried, ids[:size]))
                ids = ids[size:]
                if carried.read % task.every == 0:
                    yield json_line({"done": False} | task.told(carried))
            if piece is None:
                carried = await body.result_of(partial(task.carry_on, carried, None))
                yield json_line({"done": True} | task.told(carried))
                return
    except ClientGone:
        raise
    except ServiceError as error:
        yield json_line({"error": problem_document(request, error).model_dump()})
