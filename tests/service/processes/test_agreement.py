"""Decisions of several processes: all carry one out, or none, and in the same order."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.files import BundleError
from service.processes.agreement import Agreement
from service.processes.messages import Message
from service.tasks.decisions import Decision
from service.tasks.registry import ModelRegistry


class FakeRegistry(ModelRegistry):
    """Notes what it is asked to do."""

    def __init__(self, failing: frozenset[str] = frozenset()) -> None:
        self._failing = failing
        self.prepared: set[str] = set()
        self.adopted: list[str] = []

    def prepare(self, decision: Decision) -> None:
        if decision.name in self._failing:
            raise BundleError("broken")
        self.prepared.add(decision.name)

    def forget(self, decision: Decision) -> None:
        self.prepared.discard(decision.name)

    def adopt(self, decision: Decision) -> None:
        self.prepared.remove(decision.name)
        self.adopted.append(decision.name)


@dataclass(eq=False)
class FakeMember:
    """A process whose answers a test gives."""

    pid: int | None
    agreement: Agreement | None = None
    inbox: list[Message] = field(default_factory=list)
    carried_out: list[str] = field(default_factory=list)
    verdicts: dict[int, str] = field(default_factory=dict)
    killed: bool = False

    def send(self, message: Message) -> None:
        if message.kind == "verdict":
            self.verdicts[message.number] = message.error
        elif not self.killed:
            self.inbox.append(message)

    def kill(self) -> None:
        self.killed = True

    def answer(self, error: str = "") -> None:
        """Do what the oldest message asks for."""
        message = self.inbox.pop(0)
        assert message.decision is not None
        if message.kind == "forget":
            return
        if message.kind == "carry-out":
            self.carried_out.append(message.decision.name)
        assert self.agreement is not None
        failed = error if message.kind == "prepare" else ""
        self.agreement.answered(self, message.number, failed)


def serve(name: str) -> Decision:
    return Decision(verb="serve", name=name, stamp=(0, 0, 0), version="v")


def agreement_of(
    count: int, failing: frozenset[str] = frozenset()
) -> tuple[Agreement, FakeRegistry, list[FakeMember]]:
    registry = FakeRegistry(failing)
    members = [FakeMember(i) for i in range(count)]
    agreement = Agreement(registry, lambda: list(members), prepare_s=3, carry_out_s=2)
    for member in members:
        member.agreement = agreement
    return agreement, registry, members


def test_the_verdict_comes_when_the_last_process_has_carried_out() -> None:
    agreement, registry, (first, second) = agreement_of(2)
    agreement.propose(first, 7, serve("m"))
    first.answer()
    assert not registry.adopted
    second.answer()  # all have prepared
    assert registry.adopted == ["m"]
    assert agreement.is_open
    first.answer()
    assert not first.verdicts
    second.answer()
    assert first.verdicts == {7: ""}
    assert not agreement.is_open
    assert first.carried_out == second.carried_out == ["m"]


def test_what_one_process_cannot_none_does() -> None:
    agreement, registry, (first, second) = agreement_of(2)
    agreement.propose(first, 1, serve("m"))
    first.answer()
    second.answer("no memory")
    assert first.verdicts == {1: "process 1: no memory"}
    assert not registry.prepared
    assert [x.kind for x in first.inbox] == ["forget"]
    assert not first.carried_out + second.carried_out + registry.adopted


def test_what_the_supervisor_cannot_open_none_serves() -> None:
    agreement, registry, (first, second) = agreement_of(2, frozenset({"m"}))
    agreement.propose(second, 1, serve("m"))
    first.answer()
    second.answer()
    assert second.verdicts == {1: "broken"}
    assert not registry.adopted


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_process_that_does_not_answer_is_not_waited_for(is_prepared: bool) -> None:
    agreement, registry, (first, second) = agreement_of(2)
    agreement.propose(first, 1, serve("m"))
    first.answer()
    if is_prepared:
        second.answer()
        first.answer()
    for _ in range(4):
        agreement.tick()
    assert second.killed == is_prepared
    if is_prepared:
        # Its successor begins with what the supervisor has adopted by now.
        agreement.gone(second)
        assert first.verdicts == {1: ""}
        assert registry.adopted == ["m"]
    else:
        assert first.verdicts == {1: "process 1 did not open it in time"}
        # What it says later belongs to no round any more.
        agreement.propose(first, 2, serve("n"))
        first.answer()  # forget
        second.answer()
        assert registry.adopted == []


# Steps of a test: a proposal by a process, an answer (with an error or not), an end, a second.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("propose"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("answer"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("end"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("tick"), st.just(0), st.booleans()),
    ),
    max_size=60,
)


class Server:
    """Three processes, and what was proposed."""

    def __init__(self) -> None:
        self.agreement, self.registry, self.members = agreement_of(3)
        self.proposed: list[FakeMember] = []  # by number

    def act(self, what: str, place: int, is_bad: bool) -> None:
        member = self.members[place % len(self.members)]
        if what == "propose":
            self.proposed.append(member)
            number = len(self.proposed) - 1
            self.agreement.propose(member, number, serve(str(number)))
        elif what == "answer" and member.inbox:
            member.answer("broken" if is_bad else "")
        elif what == "end":
            member.kill()
        else:
            self.agreement.tick()
        for killed in [x for x in self.members if x.killed]:
            self.members.remove(killed)
            self.agreement.gone(killed)
            if not self.members:
                # A successor, which starts when no decision is being made.
                assert not self.agreement.is_open
                self.members.append(FakeMember(0, self.agreement))
                self.members[0].carried_out = list(self.registry.adopted)

    def settle(self) -> None:
        """Let everyone answer everything."""
        while any(member.inbox for member in self.members):
            for member in self.members:
                if member.inbox:
                    member.answer()


@given(STEPS)
def test_all_processes_make_the_same_changes_in_the_same_order(
    steps: list[tuple[str, int, bool]],
) -> None:
    server = Server()
    for step in steps:
        server.act(*step)
    server.settle()
    assert not server.agreement.is_open
    # Each has been decided, and those who live have done the same.
    for number, proposer in enumerate(server.proposed):
        assert (str(number) in server.registry.adopted) == (proposer.verdicts[number] == "")
    for member in server.members:
        assert member.carried_out == server.registry.adopted
    assert not server.registry.prepared
