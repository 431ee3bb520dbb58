"""The folder of bundles: which there are, and in what state."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from service.bundle.files import BundleError
from service.bundle.store import Manifest

MANIFEST = "manifest.json"

Stamp: TypeAlias = tuple[int, int, int]  # of a manifest, which changes with every new version


def bundle_folders(models_dir: Path) -> list[Path]:
    """The folders of bundles, sorted by name. Raises BundleError when there are none."""
    try:
        entries = sorted(models_dir.iterdir())
    except OSError as error:
        raise BundleError(f"{models_dir}: {error.strerror}") from error
    # Names that start with a dot are the exporter's scratch folders.
    folders = [x for x in entries if not x.name.startswith(".") and not x.is_file()]
    if not folders:
        raise BundleError(f"{models_dir}: there is no bundle in it")
    return folders


def stamps_of(models_dir: Path) -> Mapping[str, Stamp]:
    """The stamp of every bundle's manifest, by name; empty when there are none."""
    stamps: dict[str, Stamp] = {}
    with suppress(BundleError):
        for folder in bundle_folders(models_dir):
            stamp = stamp_of(folder)
            if stamp is not None:
                stamps[folder.name] = stamp
    return stamps


def stamp_of(folder: Path) -> Stamp | None:
    """The stamp of a bundle's manifest; None if there is none."""
    with suppress(OSError):
        status = (folder / MANIFEST).stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None


def version_of(manifest: Manifest) -> str:
    """The version of a bundle: the SHA-256 of its manifest's content.

    The manifest has the checksums of all other files.
    """
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
