"""An HTTP server that sleeps, to run load generators against."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def sleeper(
    seconds: float, at_once_at_most: int = 100, status: bytes = b"200 OK"
) -> Iterator[tuple[str, list[int]]]:
    """An HTTP server that answers after so long; how many it serves at a time."""
    at_once: list[int] = []
    active = 0
    turns = asyncio.Semaphore(at_once_at_most)
    started, ended = threading.Event(), threading.Event()
    address: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal active
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                (size,) = (int(x[15:]) for x in lines if x.startswith(b"content-length:"))
                await reader.readexactly(size)
                async with turns:
                    active += 1
                    at_once.append(active)
                    await asyncio.sleep(seconds)
                    active -= 1
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        started.set()
        await asyncio.to_thread(ended.wait)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    started.wait()
    try:
        yield address[0], at_once
    finally:
        ended.set()
        thread.join()
