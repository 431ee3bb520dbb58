"""Headless Chromium over the DevTools protocol, through a pipe: no port, no driver, no library.

Protocol: https://chromedevtools.github.io/devtools-protocol/. With `--remote-debugging-pipe` the
browser reads commands from file descriptor 3 and writes to 4, each message ended by a NUL.
"""

import base64
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PATIENCE_S = 30.0
_POLL_S = 0.02
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root there is none to be had
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-sync",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-features=OptimizationHints,MediaRouter,Translate",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Chromium finds its two ends at 3 and 4, wherever they were opened.
_LAUNCH = (
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3)\n"
    "os.dup2(int(sys.argv[2]), 4)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)
_FIRST_FREE_FD = 10  # so that neither end already is 3 or 4
# Key, code and Windows key code: https://w3c.github.io/uievents-code/.
_KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    " ": 32,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
_TEXTS = {"Enter": "\r", " ": " "}


class ProtocolError(Exception):
    """Chromium refused a command, or is gone."""


class Browser:
    """A running browser. Commands are answered by id; events are kept by session."""

    def __init__(self, to_browser: IO[bytes], from_browser: IO[bytes]) -> None:
        self._to = to_browser
        self._from = from_browser
        self._news = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._count = 0
        self._gone = False
        self._reader = threading.Thread(target=self._read, name="chromium", daemon=True)
        self._reader.start()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command's result. Raises ProtocolError."""
        with self._news:
            self._count += 1
            number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        with self._news:
            self._news.wait_for(lambda: number in self._answers or self._gone, PATIENCE_S)
            answer = self._answers.pop(number, None)
        if answer is None:
            raise ProtocolError(f"{method}: no answer")
        if "error" in answer:
            raise ProtocolError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def events(self, session: str, method: str) -> list[dict[str, Any]]:
        """The parameters of every such event so far."""
        with self._news:
            return [
                event["params"]
                for event in self._events
                if event.get("sessionId") == session and event["method"] == method
            ]

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._from.fileno(), 1 << 16):
            *messages, rest = (rest + chunk).split(b"\0")
            with self._news:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self._events.append(message)
                self._news.notify_all()
        with self._news:
            self._gone = True
            self._news.notify_all()

    def close(self) -> None:
        """Both ends of the pipe; the browser ends with them."""
        self._to.close()
        self._reader.join(PATIENCE_S)
        self._from.close()


@contextmanager
def chromium(executable: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile folder of its own; always ended, with all its processes."""
    read_commands, write_commands = _pipe()
    read_answers, write_answers = _pipe()
    arguments = [executable, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(read_commands), str(write_answers), *arguments],
        pass_fds=(read_commands, write_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_commands)
    os.close(write_answers)
    browser = Browser(os.fdopen(write_commands, "wb"), os.fdopen(read_answers, "rb"))
    try:
        yield browser
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)
        browser.close()


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class Page:
    """One tab, used as a person uses it: pointer, keys, eyes."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        # A context of its own: no cache, no storage of another test's.
        self._context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call(
            "Target.createTarget", url="about:blank", browserContextId=self._context
        )["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of this tab."""
        return self._browser.call(method, self._session, **params)

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    # --- where and how -----------------------------------------------------------------------

    def look(self, *, width: int = 1200, height: int = 800, dark: bool = False) -> None:
        """The window and the person's preferences; motion is reduced."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",
        }
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    def network(self, *, bytes_per_s: int = -1, offline: bool = False) -> None:
        """How fast answers arrive, if at all; -1 is as fast as they come."""
        self.call(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=0,
            downloadThroughput=bytes_per_s,
            uploadThroughput=-1,
        )

    def hold_back(self, pattern: str) -> None:
        """Keep requests to such addresses from the server; `answer` answers the first."""
        self.call("Fetch.enable", patterns=[{"urlPattern": pattern}])

    def answer(self, status: int, headers: dict[str, str], body: str) -> None:
        """Wait for the request that is held back, and answer it in the server's place."""
        deadline = time.monotonic() + PATIENCE_S
        while not (held := self._browser.events(self._session, "Fetch.requestPaused")):
            if time.monotonic() > deadline:
                raise TimeoutError("nothing was asked for")
            time.sleep(_POLL_S)
        self.call(
            "Fetch.fulfillRequest",
            requestId=held[0]["requestId"],
            responseCode=status,
            responseHeaders=[{"name": name, "value": value} for name, value in headers.items()],
            body=base64.b64encode(body.encode()).decode("ascii"),
        )

    def open(self, url: str, ready: str) -> None:
        """Go there, and wait until the expression holds."""
        self.call("Page.navigate", url=url)
        self.wait(ready)

    # --- eyes --------------------------------------------------------------------------------

    def evaluate(self, expression: str) -> Any:
        """A JavaScript expression's value, awaited. Raises ProtocolError where it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise ProtocolError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Poll until the expression is truthy; its value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                shown = self.evaluate("document.body?.innerText.slice(0, 2000)")
                raise TimeoutError(f"never true: {expression}; the page shows {shown!r}")
            time.sleep(_POLL_S)
        return value

    def text(self, selector: str) -> str:
        """What a person reads there."""
        value: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return value

    def screenshot(self) -> bytes:
        """What is in the window, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def accessible(self) -> list[tuple[str, str]]:
        """Role and name of everything that assistive technology is told of."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    # --- pointer and keys --------------------------------------------------------------------

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, scrolled to."""
        x, y = self.evaluate(
            f"""(() => {{
              const node = document.querySelector({json.dumps(selector)});
              node.scrollIntoView({{ block: "center" }});
              const at = node.getClientRects()[0];
              return [at.x + at.width / 2, at.y + at.height / 2];
            }})()"""
        )
        return x, y

    def hover(self, selector: str) -> None:
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, *keys: str) -> None:
        """Keys by name; `Shift+Tab` with a modifier."""
        for key in keys:
            name = key.removeprefix("Shift+")
            event = {
                "key": name,
                "code": "Space" if name == " " else name,
                "windowsVirtualKeyCode": _KEYS[name],
                "modifiers": 8 if key != name else 0,
            }
            text = _TEXTS.get(name)
            down = {"type": "rawKeyDown"} if text is None else {"type": "keyDown", "text": text}
            self.call("Input.dispatchKeyEvent", **down, **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def fill(self, selector: str, value: str) -> None:
        """Put the focus on a field and type over what it has."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"({field}.focus(), {field}.select())")
        if value:
            self.call("Input.insertText", text=value)
        else:
            self.evaluate("document.execCommand('delete')")

    def select(self, selector: str, value: str) -> None:
        """Choose an option; headless Chromium has no menu to point at."""
        self.evaluate(
            f"""(() => {{
              const field = document.querySelector({json.dumps(selector)});
              field.value = {json.dumps(value)};
              field.dispatchEvent(new Event("change", {{ bubbles: true }}));
            }})()"""
        )

    # --- what should not have happened -------------------------------------------------------

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, violations of the policy, exceptions."""
        found = [
            str(event["exceptionDetails"])
            for event in self._browser.events(self._session, "Runtime.exceptionThrown")
        ]
        found += [
            str(event["args"])
            for event in self._browser.events(self._session, "Runtime.consoleAPICalled")
            if event["type"] in {"error", "warning", "assert"}
        ]
        for event in self._browser.events(self._session, "Log.entryAdded"):
            entry = event["entry"]
            # A refused request is no complaint: the page tells of it.
            if entry["level"] in {"error", "warning"} and entry["source"] != "network":
                found.append(entry["text"])
        return found

    def requested(self) -> list[str]:
        """Every address that was asked for."""
        events = self._browser.events(self._session, "Network.requestWillBeSent")
        return [event["request"]["url"] for event in events]
