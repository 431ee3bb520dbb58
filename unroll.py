"""`unroll COMMAND`: the commands of `python -m service` and `python -m training` by one name.

Nothing is imported before the command is known: the service has no torch, and training no server.
"""

import importlib
import sys
from collections.abc import Sequence

SERVICE = ("serve", "generate", "score", "translate", "infill", "classify", "tag", "models", "keys")
TRAINING = ("learn", "train", "evaluate", "sample", "export", "baselines")
EXTRAS = {"service": "service", "training": "service,training"}

_HELP = f"""usage: unroll COMMAND ...

from your own files to a model that is served:
  learn      look at the files, train, export, and say what the model is worth
  serve      answer over HTTP with every model of a folder

texts, against a server or a bundle: {", ".join(SERVICE[1:-1])}
the steps of `learn` by themselves: {", ".join(TRAINING[1:])}
API keys of a server: keys

`unroll COMMAND --help` says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if words else "--help"
    if command in ("-h", "--help", "help"):
        sys.stdout.write(_HELP)
        return 0
    if command in TRAINING:
        return _run("training", words)
    if command in SERVICE:
        return _run("service", words[1:] if command == "serve" else words)
    sys.stderr.write(f"error: there is no such command\n\n{_HELP}")
    return 2


def _run(package: str, words: list[str]) -> int:
    """Hand the command line on as if `python -m PACKAGE` had got it."""
    try:
        module = importlib.import_module(f"{package}.__main__")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in EXTRAS:
            raise  # ours, and so no extra brings it
        sys.stderr.write(
            f"error: {error.name} is not installed; in Unroll's own folder, "
            f"pip install '.[{EXTRAS[package]}]' brings what this command needs\n"
        )
        return 1
    sys.argv = [sys.argv[0], *words]
    status: int = module.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
