"""Files of a bundle behind symbolic links, as Kubernetes mounts a ConfigMap or a Secret.

There, `manifest.json` is a link to `..data/manifest.json`, and `..data` is a link to a folder named
by the time, which an update replaces atomically. A link is followed if it stays within the bundle's
folder. It is read once for all files, so that no bundle is half old and half new. Each part of a
path is opened relative to an open folder and without following links, so that no link that is
replaced meanwhile can lead out.
"""

import errno
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_MOST_LINKS = 8  # on the way to one file
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Opening a pipe must not wait for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LinkRefused(OSError):
    """A link that leads out of the folder, or in circles."""


class _Folder:
    """An open folder, and the links in it as they were when they were first read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._targets: dict[str, str | None] = {}  # by path from the folder; None is no link

    def open(self, path: str) -> int:
        """A descriptor of a file or folder in it. Raises OSError, and LinkRefused."""
        parts, links = deque(path.split("/")), 0
        here, place = os.dup(self._descriptor), ""
        try:
            while parts:
                name = parts.popleft()
                if name in {"", "."}:
                    continue
                target = None if name == ".." else self._target(here, place, name)
                links += target is not None
                if name == ".." or (target is not None and target.startswith("/")):
                    raise LinkRefused(errno.ELOOP, "symbolic links must stay within the folder")
                if links > _MOST_LINKS:
                    raise LinkRefused(errno.ELOOP, "too many symbolic links in a row")
                if target is not None:
                    parts.extendleft(reversed(target.split("/")))
                    continue
                before, here = here, os.open(name, _FILE, dir_fd=here)
                os.close(before)
                place = f"{place}{name}/"
        except BaseException:
            os.close(here)
            raise
        return here

    def _target(self, here: int, place: str, name: str) -> str | None:
        """Where a name leads, or None if it is not a link."""
        path = place + name
        if path not in self._targets:
            self._targets[path] = _target(name, here)
        return self._targets[path]

    @property
    def has_changed(self) -> bool:
        """Whether a link leads elsewhere now."""
        for path, target in list(self._targets.items()):
            if target is not None:
                folder, _, name = path.rpartition("/")
                with suppress(OSError):
                    here = self.open(folder)
                    try:
                        if _target(name, here) != target:
                            return True
                    finally:
                        os.close(here)
        return False

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


class BundleFolder:
    """The folder of a bundle while it is read; a context manager."""

    def __init__(self, path: Path, *, contained: bool = False) -> None:
        """With `contained`, the folder may be a link that stays within its parent folder.

        Raises OSError, and LinkRefused.
        """
        self.name = path.name
        self._around: _Folder | None = None
        if contained:
            self._around = _Folder(os.open(path.parent, _FOLDER))
            try:
                descriptor = self._around.open(path.name)
            except BaseException:
                self._around.close()
                raise
        else:
            descriptor = os.open(path, _FOLDER)
        self._files = _Folder(descriptor)

    def open(self, file: str) -> int:
        """A descriptor of one of its files. Raises OSError, and LinkRefused."""
        return self._files.open(file)

    @property
    def has_changed(self) -> bool:
        """Whether a link on the way to one of its files leads elsewhere now."""
        return self._files.has_changed or (self._around is not None and self._around.has_changed)

    def __enter__(self) -> Self:
        """Return it; it is already open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self._files.close()
        if self._around is not None:
            self._around.close()


def _target(name: str, folder: int) -> str | None:
    """Where a link leads; None if it is not a link. Raises OSError if there is nothing."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
