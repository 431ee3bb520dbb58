"""The peers' virtual environments: one each, built when first asked for."""

import os
import shutil
import subprocess
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
# PyTriton's wheel holds stubs for the distribution's own builds of Python, and needs its libpython.
DISTRIBUTION_PYTHON = "/usr/bin/python3.11"


def python_of(peer: str, work: Path) -> Path:
    """The interpreter of a peer's environment under `work`/env, built unless it is up to date.

    Raises CalledProcessError when an environment cannot be built.
    """
    requirements = PEERS / peer / "requirements.txt"
    folder = work / "env" / peer
    python = folder / "bin" / "python"
    built_from = folder / "requirements.txt"
    pinned = requirements.read_bytes()
    if built_from.is_file() and built_from.read_bytes() == pinned:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([DISTRIBUTION_PYTHON, "-m", "venv", str(folder)], check=True)
    torch = [line for line in pinned.decode().splitlines() if line.startswith("torch==")]
    # torch first and by version alone: its wheel differs by platform.
    for packages in ([torch] if torch else []) + [["-r", str(requirements)]]:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *packages], check=True)
    built_from.write_bytes(pinned)
    return python


def environment_of(peer: str) -> dict[str, str]:
    """What a peer's process needs in its environment besides what ours has."""
    environment = {"OMP_WAIT_POLICY": "passive"}
    return environment
