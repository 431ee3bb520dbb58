"""Bundles behind symbolic links, as Kubernetes mounts them, and links that lead elsewhere."""

import shutil
from pathlib import Path

FILES = ("manifest.json", "vocab.json", "sequence.fp32.onnx")


def mounted(bundle: Path, to: Path) -> Path:
    """The bundle as a ConfigMap's volume: every file a link behind `..data`."""
    to.mkdir(parents=True)
    publish(bundle, to, "..2026_01_01_00_00_00.1")
    for file in bundle.iterdir():
        (to / file.name).symlink_to(f"..data/{file.name}")
    return to


def publish(bundle: Path, to: Path, version: str) -> None:
    """Exchange `..data` at once, as the kubelet does, and remove the version before."""
    before = (to / "..data").readlink() if (to / "..data").is_symlink() else None
    shutil.copytree(bundle, to / version)
    (to / "..data_tmp").symlink_to(version)
    (to / "..data_tmp").rename(to / "..data")
    if before is not None:
        shutil.rmtree(to / before)
