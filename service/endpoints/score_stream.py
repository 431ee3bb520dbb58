"""`/score` of a streamed body: lines of texts, or one text."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from service.bundle.arrays import Ids
from service.endpoints.answered_lines import AnsweredLines, LineTask
from service.endpoints.running_answers import PartsTask, running_answers
from service.endpoints.score_stream_wire import (
    ScoreStreamQuery,
    StreamedText,
    figures_of,
    parts_of,
)
from service.endpoints.score_wire import ScoreRequest, standing_fields
from service.endpoints.stream_wire import NDJSON, TEXT
from service.endpoints.streamed_body import StreamedBody
from service.endpoints.streams import answered, is_json, stream_query
from service.errors import InvalidRequest
from service.http.answers import engine_with
from service.http.wire import unknown_fields
from service.tasks.carried_score import CarriedScore
from service.tasks.engine import SCORE, SCORE_IN_PARTS, Scores, ScoresInParts
from service.tasks.guessing import check_guesses
from service.tasks.text_scoring import check_percentile
from service.tasks.values import Scored, ScoreOptions


async def score_stream(request: Request) -> Response:
    """Score the body as it arrives. Raises the errors that are known before the answer begins."""
    query = stream_query(request, ScoreStreamQuery)
    engine = await engine_with(request, query.model, SCORE)
    in_parts = SCORE_IN_PARTS.of(engine) if query.mode == "total" else None
    lacks_sources = engine.needs_sources and not is_json(request)
    if lacks_sources or (query.mode == "total" and in_parts is None):
        raise InvalidRequest.of_option(
            "model", f"an encoder-decoder scores pairs: lines of {NDJSON}"
        )
    if query.adapt and not engine.adapts:
        # Not once for each line.
        raise InvalidRequest.of_option("adapt", "this model cannot adapt; /models lists which can")
    if query.mode == "total" and (query.units is not None or query.guesses):
        option = "units" if query.units is not None else "guesses"
        raise InvalidRequest.of_option(
            option, "only with mode lines: mode total scores no text by itself"
        )
    _check_options(query, engine)
    if query.mode == "total" and is_json(request):
        raise InvalidRequest.of_option("mode", f"mode total needs {TEXT}")

    def answers(body: StreamedBody) -> AsyncGenerator[bytes, None]:
        if in_parts is not None:
            task = _Parts(in_parts, query).task
            return running_answers(request, body, task, CarriedScore(bos=query.bos))
        lines = AnsweredLines(request, body, _Lines(engine, query).task, is_json(request))
        return lines.answers()

    return await answered(request, answers)


def _check_options(query: ScoreStreamQuery, engine: Scores) -> None:
    """Raise InvalidRequest once for what no line could be answered with."""
    options = ScoreOptions(
        bos=query.bos,
        eos=query.eos,
        unknown=query.unknown,
        adapt=query.adapt,
        guesses=query.guesses,
    )
    check_guesses(engine.guess_curve, options, contexts=None)
    if not query.percentile:
        return
    if query.mode == "total":
        raise InvalidRequest.of_option("percentile", "only with mode lines: it is for whole texts")
    check_percentile(options, has_percentiles=engine.has_percentiles, has_contexts=False)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Lines that are texts."""

    engine: Scores
    query: ScoreStreamQuery

    @property
    def task(self) -> LineTask[StreamedText, Scored]:
        return LineTask(StreamedText, self._results, self._told)

    async def _results(self, lines: Sequence[StreamedText]) -> list[Scored]:
        strings = [line.text for line in lines]
        sources = [line.source for line in lines if line.source is not None]
        if sources and len(sources) < len(lines):
            raise InvalidRequest("some lines have a source and some have none")
        contexts = [line.context for line in lines]
        asked = ScoreRequest(
            text=strings,
            source=sources or None,
            context=contexts if any(contexts) else "",
            bos=self.query.bos,
            eos=self.query.eos,
            unknown=self.query.unknown,
            guesses=self.query.guesses,
            units=self.query.units,
            adapt=self.query.adapt,
            percentile=self.query.percentile,
        )
        given = {"contexts": asked.contexts(len(strings)), "sources": asked.sources(len(strings))}
        return await self.engine.score(strings, asked.options(), **given)

    def _told(self, scored: Scored) -> dict[str, Any]:
        figures = figures_of(scored) | unknown_fields(scored.unknown) | parts_of(scored)
        return figures | (standing_fields(scored.standing) if self.query.percentile else {})


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of one text."""

    engine: ScoresInParts
    query: ScoreStreamQuery

    @property
    def task(self) -> PartsTask[CarriedScore]:
        engine = self.engine
        return PartsTask(
            engine.normalization, engine.ids_of, self._carry_on, _running, self.query.every
        )

    async def _carry_on(self, carried: CarriedScore, ids: Ids | None) -> CarriedScore:
        query = self.query
        options = ScoreOptions(
            bos=query.bos, eos=bool(query.eos), unknown=query.unknown, adapt=query.adapt
        )
        if ids is None and not options.eos:
            return carried
        return await self.engine.carry_on(carried, ids, options)


def _running(carried: CarriedScore) -> dict[str, Any]:
    return figures_of(carried) | {"unknown_chars": carried.unknown}
