"""The messages between the supervisor and a server process."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from service.tasks.decisions import Decision

Kind: TypeAlias = Literal[
    # From the supervisor. `leave` and `hurry` are a first and a second signal, of this number.
    "ping", "leave", "hurry", "prepare", "carry-out", "forget", "verdict",
    # From a process: `serving` once, then `pong` for every ping; `done` for a step of a decision.
    "serving", "pong", "propose", "done",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message."""

    kind: Kind
    number: int = 0  # of the signal, or of the decision
    decision: Decision | None = None
    error: str = ""  # why a decision cannot be carried out
