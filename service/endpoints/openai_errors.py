"""Errors in OpenAI's form."""

from fastapi import Request

from service.endpoints.openai_wire import OpenAIError, OpenAIErrorAnswer
from service.errors import ServiceError
from service.http.problems import problem_document, problems_as
from service.http.sse import ServerSentEvent
from service.http.wire import Problem


def openai_error(problem: Problem) -> OpenAIErrorAnswer:
    """A problem in OpenAI's form."""
    pointer = problem.errors[0].pointer if problem.errors else ""
    return OpenAIErrorAnswer(
        error=OpenAIError(
            message=problem.detail,
            type=problem.type,
            param=pointer.strip("/").split("/")[0] or None,
            code=problem.type,
        )
    )


OPENAI_ERRORS = problems_as(openai_error)
END_OF_STREAM = "[DONE]"  # the last event of a stream


def openai_error_event(request: Request, error: ServiceError) -> ServerSentEvent:
    """The last event of a stream that fails."""
    return ServerSentEvent(openai_error(problem_document(request, error)).model_dump_json())
