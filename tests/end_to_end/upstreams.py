"""Replicas that are told what to do with each request, and count."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase

# What a replica does: it is given the head of a request, and the stream to answer on.
Act = Callable[[bytes, BufferedIOBase], None]


@dataclass(eq=False)
class Upstream:
    """A running one."""

    address: str
    heads: list[bytes] = field(default_factory=list)  # of the requests

    @property
    def posts(self) -> int:
        return sum(head.startswith(b"POST ") for head in self.heads)


def answering(status: str, body: bytes = b"{}", *headers: str) -> Act:
    """Answer every request so."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    answer = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def act(_: bytes, out: BufferedIOBase) -> None:
        out.write(answer)

    return act


def cutting(_: bytes, __: BufferedIOBase) -> None:
    """Read the request and break the connection: the work may have begun."""
    raise ConnectionAbortedError


@contextmanager
def upstream(act: Act) -> Iterator[Upstream]:
    """Run one on a free port."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while (head := _head(self.rfile)) is not None:
                running.heads.append(head)
                try:
                    act(head, self.wfile)
                except ConnectionError:
                    return

    class Threads(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 64

    with Threads(("127.0.0.1", 0), Handler) as server:
        running = Upstream(f"127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()


def _head(stream: BufferedIOBase) -> bytes | None:
    """The head of the next request, once its body has been read; None at the end."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    lower = head.lower()
    if b"content-length:" in lower:
        stream.read(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
    return head


@contextmanager
def refusing() -> Iterator[str]:
    """An address that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"
