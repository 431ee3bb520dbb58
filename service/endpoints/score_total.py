"""A streamed body that is one text: running totals of its score."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from fastapi import Request

from service.endpoints.line_reader import TextSplitter
from service.endpoints.score_stream_wire import StreamQuery, figures_of, json_line
from service.endpoints.streamed_body import StreamedBody
from service.errors import ClientGone, InvalidRequest, ServiceError
from service.http.problems import problem_document
from service.tasks.carried_score import CarriedScore
from service.tasks.engine import ScoresInParts
from service.tasks.values import ScoreOptions


async def running_totals(
    request: Request, engine: ScoresInParts, query: StreamQuery, body: StreamedBody
) -> AsyncGenerator[bytes, None]:
    """The score of the text so far, every so many characters and at its end.

    An error of the stream is its last line.
    """
    splitter = TextSplitter(request.app.state.settings.stream_batch_bytes, engine.normalization)
    carried = CarriedScore(bos=query.bos)
    options = ScoreOptions(
        bos=query.bos, eos=bool(query.eos), unknown=query.unknown, adapt=query.adapt
    )
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
            ids = engine.ids_of(part)
            while len(ids):
                # Totals are at the same places however the bytes arrive.
                size = query.every - carried.read % query.every
                part_work = partial(engine.carry_on, carried, ids[:size], options)
                carried = await body.result_of(part_work)
                ids = ids[size:]
                if carried.read % query.every == 0:
                    yield json_line(_running(carried, is_done=False))
            if piece is None:
                if options.eos:
                    carried = await body.result_of(partial(engine.carry_on, carried, None, options))
                yield json_line(_running(carried, is_done=True))
                return
    except ClientGone:
        raise
    except ServiceError as error:
        yield json_line({"error": problem_document(request, error).model_dump()})


def _running(carried: CarriedScore, *, is_done: bool) -> dict[str, Any]:
    return {"done": is_done} | figures_of(carried) | {"unknown_chars": carried.unknown}
