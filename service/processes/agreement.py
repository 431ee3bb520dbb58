"""How all server processes make the same change of models: in two rounds, one change at a time.

In the first round every process prepares a decision: it opens the bundle. If one of them cannot,
all forget it, and everything goes on as before. In the second round all carry it out. The
process that was asked hears the verdict when all have done so: from then on no request meets the
version before. (It is a two-phase commit; a process that does not carry it out in time is killed,
and its successor begins with what the supervisor serves.)
"""

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal, Protocol

from service.bundle.files import BundleError
from service.processes.messages import Message
from service.tasks.decisions import Decision
from service.tasks.opening import return_memory
from service.tasks.registry import ModelRegistry


class Member(Protocol):
    """A server process."""

    @property
    def pid(self) -> int | None:
        """Its process id."""

    def send(self, message: Message) -> None:
        """Write to it; nothing happens if it has ended."""

    def kill(self) -> None:
        """End it at once."""


@dataclass(slots=True)
class _Round:
    """The decision that is being made."""

    proposer: Member
    number: int  # the proposer's own
    decision: Decision
    id: int = 0  # the supervisor's
    awaited: set[Member] = field(default_factory=set)
    error: str = ""
    is_prepared: bool = False
    seconds: int = 0  # that this round has lasted


class Agreement:
    """The decisions of the processes, made one after another."""

    def __init__(
        self,
        registry: ModelRegistry,
        members: Callable[[], Collection[Member]],
        *,
        prepare_s: float,
        carry_out_s: float,
    ) -> None:
        """`registry` is the supervisor's, which the processes that start later begin with."""
        self._registry = registry
        self._members = members
        self._prepare_s = prepare_s
        self._carry_out_s = carry_out_s
        self._proposals: deque[_Round] = deque()
        self._round: _Round | None = None
        self._rounds = 0

    @property
    def is_open(self) -> bool:
        """Whether a decision is being made; a process that started now would miss a part of it."""
        return self._round is not None

    def propose(self, proposer: Member, number: int, decision: Decision) -> None:
        """Make a decision after those before it; its verdict goes to the proposer."""
        self._proposals.append(_Round(proposer, number, decision))
        self._go_on()

    def answered(self, member: Member, number: int, error: str) -> None:
        """Note that a process has finished its part of a round; a late answer is ignored."""
        if self._round is not None and self._round.id == number:
            self._leave(member, f"process {member.pid}: {error}" if error else "")

    def gone(self, member: Member) -> None:
        """Note that a process has ended; its successor will begin with the supervisor's models."""
        self._leave(member, "")

    def tick(self) -> None:
        """Count a second; end the wait for processes that do not answer."""
        current = self._round
        if current is None:
            return
        current.seconds += 1
        if not current.is_prepared and current.seconds > self._prepare_s:
            for member in list(current.awaited):
                self._leave(member, f"process {member.pid} did not open it in time")
        elif current.is_prepared and current.seconds > self._carry_out_s:
            for member in current.awaited:
                member.kill()

    def _leave(self, member: Member, error: str) -> None:
        current = self._round
        if current is None or member not in current.awaited:
            return
        current.awaited.discard(member)
        current.error = current.error or error
        self._go_on()

    def _go_on(self) -> None:
        """Do what can be done without waiting."""
        while self._round is not None or self._proposals:
            if self._round is None:
                self._round = self._proposals.popleft()
                self._prepare(self._round)
            if self._round.awaited:
                return
            if self._round.is_prepared or self._round.error:
                self._conclude(self._round)
            else:
                self._carry_out(self._round)

    def _prepare(self, current: _Round) -> None:
        self._rounds += 1
        current.id = self._rounds
        self._tell_all(current, "prepare")
        try:
            self._registry.prepare(current.decision)
        except BundleError as error:
            current.error = str(error)

    def _carry_out(self, current: _Round) -> None:
        current.is_prepared, current.seconds = True, 0
        if self._registry.adopt(current.decision) is not None:
            return_memory()
        self._tell_all(current, "carry-out")

    def _conclude(self, current: _Round) -> None:
        self._round = None
        if current.error:
            self._registry.forget(current.decision)
            for member in self._members():
                member.send(Message(kind="forget", decision=current.decision))
        verdict = Message(kind="verdict", number=current.number, error=current.error)
        current.proposer.send(verdict)

    def _tell_all(self, current: _Round, kind: Literal["prepare", "carry-out"]) -> None:
        current.awaited = set(self._members())
        for member in self._members():
            member.send(Message(kind=kind, number=current.id, decision=current.decision))
