"""`/classify` of a streamed body: lines of texts, or one text."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request, Response

from service.bundle.arrays import Ids
from service.endpoints.answered_lines import AnsweredLines, LineTask
from service.endpoints.classify_stream_wire import (
    ClassifyStreamQuery,
    classified_told,
    labels_told,
)
from service.endpoints.running_answers import PartsTask, running_answers
from service.endpoints.stream_wire import TEXT, StreamedLine
from service.endpoints.streamed_body import StreamedBody
from service.endpoints.streams import answered, is_json, stream_query
from service.errors import InvalidRequest
from service.http.answers import engine_with
from service.tasks.carried_labels import CarriedLabels
from service.tasks.engine import CLASSIFY, CLASSIFY_IN_PARTS, ClassifiesInParts
from service.tasks.label_values import Classified, ClassifyOptions


async def classify_stream(request: Request) -> Response:
    """Classify the body as it arrives.

    Raises the errors that are known before the answer begins.
    """
    query = stream_query(request, ClassifyStreamQuery)
    engine = await engine_with(request, query.model, CLASSIFY)
    options = query.options()
    engine.check_classify(options)
    in_parts = CLASSIFY_IN_PARTS.of(engine) if query.mode == "total" else None
    if query.mode == "total":
        if in_parts is None:
            raise InvalidRequest.of_option(
                "mode", "mode total needs a model that reads forward, character by character"
            )
        if query.steps:
            raise InvalidRequest.of_option("steps", "only with mode lines")
        if is_json(request):
            raise InvalidRequest.of_option("mode", f"mode total needs {TEXT}")

    async def results(lines: Sequence[StreamedLine]) -> list[Classified]:
        return await engine.classify([line.text for line in lines], options)

    def answers(body: StreamedBody) -> AsyncGenerator[bytes, None]:
        if in_parts is not None:
            task = _Parts(in_parts, options, query.every).task
            return running_answers(request, body, task, CarriedLabels())
        of_lines = LineTask(StreamedLine, results, classified_told)
        return AnsweredLines(request, body, of_lines, is_json(request)).answers()

    return await answered(request, answers)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of one text."""

    engine: ClassifiesInParts
    options: ClassifyOptions
    every: int

    @property
    def task(self) -> PartsTask[CarriedLabels]:
        engine = self.engine
        return PartsTask(
            engine.normalization, engine.ids_of, self._carry_on, self._told, self.every
        )

    async def _carry_on(self, carried: CarriedLabels, ids: Ids | None) -> CarriedLabels:
        # The empty text has labels, too.
        coming = np.empty(0, np.uint16) if ids is None else ids
        return await self.engine.carry_on(carried, coming, self.options)

    def _told(self, carried: CarriedLabels) -> dict[str, Any]:
        labels = self.engine.labels_of(carried, self.options)
        return {
            "chars": carried.read,
            "labels": labels_told(labels),
            "unknown_chars": carried.unknown,
        }
