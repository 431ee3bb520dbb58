"""Bundles on disk: read and check one; write one next to the old and swap it in."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from service.bundle import encoder_decoder, labeler, language_model
from service.bundle.encoder_decoder import EncoderDecoderBundle, EncoderDecoderManifest
from service.bundle.files import BundleError, read_file
from service.bundle.labeler import LabelerBundle, LabelerManifest
from service.bundle.language_model import LanguageModelBundle, LanguageModelManifest
from service.bundle.links import BundleFolder

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 2**20

# The kinds of bundle: a new one joins the two unions and the table.
Manifest: TypeAlias = LanguageModelManifest | EncoderDecoderManifest | LabelerManifest
Bundle: TypeAlias = LanguageModelBundle | EncoderDecoderBundle | LabelerBundle
_READERS: Mapping[str, Callable[[BundleFolder, Any], Bundle]] = {
    "language_model": language_model.read,
    "encoder_decoder": encoder_decoder.read,
    "labeler": labeler.read,
}
Read = TypeVar("Read")
_ANY_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Annotated[Manifest, Field(discriminator="task")])


def read_language_model(folder: Path) -> LanguageModelBundle:
    """Read and verify a language model. Raises BundleError with a one-line cause."""
    bundle = read_bundle(folder)
    if bundle.manifest.task != "language_model":
        raise BundleError(f"{folder.name}: its kind is {bundle.manifest.task}, not language_model")
    return bundle


def read_bundle(folder: Path, *, contained: bool = False) -> Bundle:
    """Read and verify a bundle. Raises BundleError with a one-line cause.

    With `contained`, a folder that is a symbolic link must stay within its parent folder.
    """
    return _read(folder, _whole, contained=contained)


def read_manifest(folder: Path, *, contained: bool = False) -> Manifest:
    """Read and check the manifest alone. Raises as `read_bundle` does."""
    return _read(folder, _manifest, contained=contained)


def _read(folder: Path, read: Callable[[BundleFolder], Read], *, contained: bool) -> Read:
    """Read from the folder; again if its links were replaced meanwhile."""
    for is_last in (False, False, True):
        try:
            opened = BundleFolder(folder, contained=contained)
        except OSError as error:
            if folder.is_symlink() and not is_last:
                continue
            raise BundleError(f"{folder.name}: {error.strerror}") from error
        with opened:
            try:
                return read(opened)
            except BundleError:
                if is_last or not opened.has_changed:
                    raise
    raise AssertionError("unreachable")


def _whole(folder: BundleFolder) -> Bundle:
    manifest = _manifest(folder)
    return _READERS[manifest.task](folder, manifest)


def _manifest(folder: BundleFolder) -> Manifest:
    name = folder.name
    raw = read_file(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    try:
        manifest = _ANY_MANIFEST.validate_json(raw)
    except ValidationError as error:
        raise BundleError(f"{name}: {MANIFEST_FILE}: {_first_mistake(error)}") from error
    if manifest.name != name:
        raise BundleError(f"{name}: {MANIFEST_FILE} names another bundle, {manifest.name}")
    return manifest


def _first_mistake(error: ValidationError) -> str:
    """Where the first mistake is and what it is, in one line that repeats no value."""
    first = error.errors(include_url=False, include_input=False)[0]
    # A union's location begins with the branch that it took.
    places = first["loc"][1:] if first["loc"] and first["loc"][0] in _READERS else first["loc"]
    # The names of unknown fields can hold anything.
    parts = [str(part)[:64].encode("unicode_escape").decode() for part in places]
    where = ".".join(parts) or "the document"
    cause = first["msg"]
    if first["type"] == "union_tag_invalid":
        # Its message repeats the task, and that can hold anything, too.
        cause = f"task must be one of {first['ctx']['expected_tags']}"
    return f"{where}: {cause}"


def write_bundle(
    models_dir: Path,
    manifest: Manifest,
    files: Mapping[str, bytes],
) -> Path:
    """Write `models_dir/<manifest.name>`, whole or not at all, and return its path.

    The new bundle is written and read back under a temporary name in the same folder, then
    swapped in by two renames: a reader finds the old bundle, the new one or, for an instant, none;
    never a mixture. Raises BundleError when what was written does not read back.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    final = models_dir / manifest.name
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=models_dir))
    try:
        staged = scratch / manifest.name
        staged.mkdir()
        document = manifest.model_dump_json(indent=2) + "\n"
        for file, data in {**files, MANIFEST_FILE: document.encode()}.items():
            _write_synced(staged / file, data)
        read_bundle(staged)
        replaced = scratch / "replaced"
        if final.exists():
            final.rename(replaced)
        try:
            staged.rename(final)
        except OSError:
            if replaced.exists():
                replaced.rename(final)
            raise
    finally:
        shutil.rmtree(scratch)
    return final


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
