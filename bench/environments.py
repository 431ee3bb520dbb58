"""The peers' virtual environments: one for each, built when first needed."""

import shutil
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
# The stub in PyTriton's wheel loads the distribution's libpython3.11, so it needs that Python and
# not another build.
DISTRIBUTION_PYTHON = "/usr/bin/python3.11"
FRAMEWORKS = {
    "bentoml",
    "fastapi",
    "litserve",
    "mlserver",
    "nvidia-pytriton",
    "onnxruntime",
    "torch",
}


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
    base = DISTRIBUTION_PYTHON if peer == "pytriton" else sys.executable
    subprocess.run([base, "-m", "venv", str(folder)], check=True)
    # torch first, pinned by version only: its wheel differs by platform.
    torch = [line for line in pinned.decode().splitlines() if line.startswith("torch==")]
    for packages in [[line] for line in torch] + [["-r", str(requirements)]]:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *packages], check=True)
    built_from.write_bytes(pinned)
    return python


def pins_of(peer: str) -> list[str]:
    """The pinned versions of a peer's web framework and of its inference library."""
    lines = (PEERS / peer / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in FRAMEWORKS]


def environment_of(peer: str) -> dict[str, str]:
    """The environment variables that a peer's process needs in addition to ours."""
    # A spinning thread pool would starve the other core.
    environment = {"OMP_WAIT_POLICY": "passive"}
    if peer == "bentoml":
        environment["BENTOML_DO_NOT_TRACK"] = "True"
    return environment
