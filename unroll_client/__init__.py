"""A client of the Unroll service: `from unroll_client import Unroll`."""

from unroll_client.client import AsyncUnroll, Unroll
from unroll_client.errors import (
    ConnectionFailed,
    FieldError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Overloaded,
    ServerError,
    UnrollError,
)
from unroll_client.results import (
    Choice,
    Fill,
    GenerateAnswer,
    GenerateDone,
    Hypothesis,
    InfillAnswer,
    InfillResult,
    Model,
    ScoreAnswer,
    ScoreResult,
    StreamedToken,
    TranslateAnswer,
    TranslatedToken,
)

__all__ = [
    "AsyncUnroll",
    "Choice",
    "ConnectionFailed",
    "FieldError",
    "Fill",
    "GenerateAnswer",
    "GenerateDone",
    "Hypothesis",
    "InfillAnswer",
    "InfillResult",
    "InvalidRequest",
    "Model",
    "NotAllowed",
    "NotFound",
    "Overloaded",
    "ScoreAnswer",
    "ScoreResult",
    "ServerError",
    "StreamedToken",
    "TranslateAnswer",
    "TranslatedToken",
    "Unroll",
    "UnrollError",
]
