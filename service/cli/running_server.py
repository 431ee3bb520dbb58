"""A server that runs already (`--url`), asked over HTTP."""

import json
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from service.cli.answers import REFUSED, Answer, CommandError, Refusal
from service.settings import is_loopback


class RunningServer:
    """A server, by the standard library: this environment has no other HTTP client."""

    def __init__(self, url: str, model: str | None, key_file: Path | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise CommandError("--url begins with http:// or https://")
        self._url = url.rstrip("/")
        # A proxy of the environment (`http_proxy`) is for elsewhere.
        is_here = is_loopback(urlsplit(url).hostname or "")
        self._opener = build_opener(ProxyHandler({})) if is_here else build_opener()
        self._model = model
        self._headers = {} if key_file is None else {"Authorization": f"Bearer {_key(key_file)}"}

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a body."""
        named = {"model": self._model} if self._model else {}
        content = json.dumps({**named, **body}).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        return self._answer(Request(self._url + path, content, headers, method="POST"))

    def models(self) -> list[Answer]:
        """Every served model."""
        models: list[Answer] = self._answer(Request(f"{self._url}/models", headers=self._headers))[
            "models"
        ]
        return models

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, request: Request) -> Answer:
        try:
            with self._opener.open(request, timeout=600) as answer:
                found: Answer = json.load(answer)
                return found
        except HTTPError as error:
            raise _problem(error) from error
        except (URLError, HTTPException, OSError, ValueError) as error:
            raise CommandError(f"{self._url}: {error}") from error


def _key(path: Path) -> str:
    """The key in a file: command lines can be read by others."""
    try:
        return path.read_text("utf-8-sig").encode("ascii").decode().strip()
    except (OSError, UnicodeError) as error:
        raise CommandError(f"{path}: no key can be read from it") from error


def _problem(error: HTTPError) -> CommandError:
    """What a problem document says."""
    try:
        problem = json.load(error)
        detail = str(problem["detail"])
        pointer = str(problem["errors"][0]["pointer"]) if problem["errors"] else ""
    except (ValueError, KeyError, TypeError):
        return CommandError(f"the server answered {error.code}")
    # A body's fields have the names of the options.
    option = pointer.removeprefix("/").partition("/")[0]
    return Refusal(detail, option) if error.code in REFUSED else CommandError(detail)
