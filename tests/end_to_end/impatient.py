"""`python -m service`, whose supervisor waits a second for an answer, and not twenty."""

import sys

import service.__main__
from service.processes import supervisor

setattr(supervisor, "_ANSWER_S", 1)  # noqa: B010 (private)

if __name__ == "__main__":
    sys.exit(service.__main__.main())
