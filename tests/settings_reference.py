"""docs/settings.md, written from the settings: `make docs/settings.md`."""

import sys
from collections.abc import Iterator

from service import setting_words
from service.environment import PREFIX
from service.settings import SUBJECTS, Settings

PREAMBLE = """\
# Settings

Every setting of `python -m service`, with its default and its bounds; `--help` lists the same.
[operations.md](operations.md#processes-threads-and-memory) says how several processes share limits.

| way to set one | example |
| --- | --- |
| a flag | `--max-rows 128` |
| a variable in the environment | `UNROLL_MAX_ROWS=128` |
| a variable that names a file with the value | `UNROLL_STATE_KEY_FILE=/run/secrets/state_key` |

- A flag wins over a variable. A variable and its `_FILE` together are an error.
- Blanks around a value and the case of a choice do not matter. An empty variable counts as unset.
- A value that is not allowed ends the start with status 2 and a line that says what is.
- An unknown `UNROLL_…` variable is ignored, with a warning that names the closest setting.
- What Kubernetes sets for a Service named `unroll`, such as `UNROLL_PORT=tcp://…`, is ignored.
- The server logs its settings when it starts, without the secrets.

`make docs/settings.md` writes this page from the settings, and a test compares the two.
"""


def render() -> str:
    """The whole page."""
    return PREAMBLE + "\n".join(_tables()) + "\n"


def _tables() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        if name in SUBJECTS:
            yield f"\n## {SUBJECTS[name]}\n"
            yield "| flag and variable | default | allowed | what it does |"
            yield "| --- | --- | --- | --- |"
        names = f"`--{name.replace('_', '-')}`<br>`{PREFIX}{name.upper()}`"
        allowed = setting_words.allowed(name).removesuffix(", or leave it unset")
        cells = (names, setting_words.default(name), allowed, field.description or "")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.write(render())
