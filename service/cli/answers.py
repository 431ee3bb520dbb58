"""What answers a command, and how it refuses."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from service.errors import BodyTooLarge, InvalidRequest, ModelFailure

Answer: TypeAlias = dict[str, Any]

# Statuses after which another text may be answered: the body is wrong, or too large, or the model
# fails at it.
REFUSED = {BodyTooLarge.status, InvalidRequest.status, ModelFailure.status}
_TEXTS = {"text", "prompt", "source"}


class CommandError(Exception):
    """What ends a command, in one line."""


class Refusal(CommandError):
    """What was asked for is not answered; something else may be."""

    def __init__(self, detail: str, option: str) -> None:
        """`option` is the one that was refused; "" for the request as a whole."""
        super().__init__(detail)
        self.option = option
        self.is_of_text = option in _TEXTS or not option


class Answers(Protocol):
    """What answers: a server, or an engine in this process."""

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a body. Raises CommandError."""

    def close(self) -> None:
        """End it."""
