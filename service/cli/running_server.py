"""A running server (`--url`), asked over HTTP."""

import json
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from service.cli.answers import REFUSED, Answer, CommandError, Refusal
from service.setting_values import is_loopback


class RunningServer:
    """A server, through urllib: the service's environment has no other HTTP client."""

    def __init__(self, url: str, model: str | None, key_file: Path | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise CommandError("--url must begin with http:// or https://")
        self._url = url.rstrip("/")
        # A proxy from the environment (`http_proxy`) is not meant for this machine's own addresses.
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
        models: list[Answer] = []
        after: str | None = ""
        while after is not None:
            query = f"?after={quote(after, safe='')}" if after else ""
            page = self._answer(Request(f"{self._url}/models{query}", headers=self._headers))
            models += page["models"]
            after = page.get("next")
        return models

    def close(self) -> None:
        """Nothing to close."""

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
    """The key from a file, since other users can read command lines."""
    try:
        return path.read_text("utf-8-sig").encode("ascii").decode().strip()
    except (OSError, UnicodeError) as error:
        raise CommandError(f"{path}: no key can be read from it") from error


def _problem(error: HTTPError) -> CommandError:
    """The error in a problem document."""
    try:
        problem = json.load(error)
        detail = str(problem["detail"])
        pointer = str(problem["errors"][0]["pointer"]) if problem["errors"] else ""
    except (ValueError, KeyError, TypeError):
        return CommandError(f"the server answered {error.code}")
    # The fields of a body have the options' names.
    option = pointer.removeprefix("/").partition("/")[0]
    return Refusal(detail, option) if error.code in REFUSED else CommandError(detail)
