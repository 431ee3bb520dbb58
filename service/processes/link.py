"""A server process's connection to its supervisor, used in the event loop."""

import asyncio
import logging
import signal
from itertools import count
from multiprocessing.connection import Connection

from service.bundle.files import BundleError
from service.drain import Drain
from service.processes.messages import Message
from service.tasks.decisions import Decision
from service.tasks.registry import ModelRegistry

logger = logging.getLogger(__name__)


class Link:
    """Takes part in decisions, asks for them, and ends the process when it is told to."""

    def __init__(self, connection: Connection, registry: ModelRegistry) -> None:
        self._connection = connection
        self._registry = registry
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._preparing: set[asyncio.Task[None]] = set()
        self._drain: Drain | None = None
        self.all_leave = False  # whether every process of the server shuts down
        registry.agree = self.agree

    def start(self, drain: Drain) -> None:
        """Tell the supervisor that this process serves, and listen to it from now on."""
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._connection.fileno(), self._on_message)
        self._send(Message(kind="serving"))

    def close(self) -> None:
        """Stop listening."""
        if self._drain is not None:
            self._loop.remove_reader(self._connection.fileno())

    async def agree(self, decision: Decision) -> None:
        """Have every process carry out a decision. Raises BundleError if one of them cannot."""
        number = next(self._numbers)
        self._asked[number] = self._loop.create_future()
        try:
            self._send(Message(kind="propose", number=number, decision=decision))
            error = await self._asked[number]
        finally:
            del self._asked[number]
        if error:
            raise BundleError(error)

    def _send(self, message: Message) -> None:
        try:
            self._connection.send(message)
        except OSError:
            # The supervisor is gone; `_on_message` finds out.
            logger.debug("the supervisor is gone")

    def _on_message(self) -> None:
        try:
            message: Message = self._connection.recv()
        except (EOFError, OSError):
            self._end_with_supervisor()
            return
        match message.kind:
            case "ping":
                self._send(Message(kind="pong"))
            case "leave" if self._drain is not None:
                self.all_leave = True
                self._drain.begin(message.number)
            case "hurry" if self._drain is not None:
                self._drain.hurry()
            case "verdict" if message.number in self._asked:
                asked = self._asked[message.number]
                if not asked.done():
                    asked.set_result(message.error)
            case _:
                self._take_part(message)

    def _take_part(self, message: Message) -> None:
        if message.decision is None:
            return  # a verdict that nobody waits for any more
        if message.kind == "prepare":
            task = self._loop.create_task(self._prepare(message.number, message.decision))
            self._preparing.add(task)
            task.add_done_callback(self._preparing.discard)
        elif message.kind == "forget":
            self._registry.forget(message.decision)
        else:
            self._registry.carry_out(message.decision)
            self._send(Message(kind="done", number=message.number))

    async def _prepare(self, number: int, decision: Decision) -> None:
        try:
            await asyncio.to_thread(self._registry.prepare, decision)
        except BundleError as error:
            self._send(Message(kind="done", number=number, error=str(error)))
        else:
            self._send(Message(kind="done", number=number))

    def _end_with_supervisor(self) -> None:
        """Without it nobody would end this process, which would hold the port forever."""
        self._loop.remove_reader(self._connection.fileno())
        logger.error("the supervisor has ended")
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result("the server is shutting down")
        self.all_leave = True
        if self._drain is not None:
            self._drain.begin(signal.SIGTERM)
