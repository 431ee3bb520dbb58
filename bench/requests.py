"""`python -m bench.requests`: processor time a request, beside a FastAPI route that does nothing.

The processor time of all threads and processes of the server over a span, divided by the requests
that it answered in it: unlike latencies, it hardly depends on what else the machine does. Servers
take turns in several short rounds; a figure is the median of the rounds, a ratio the median of the
rounds' ratios. Texts have 20 characters and are never repeated.

    python -m bench.requests --rows score --clients 32
    python -m bench.requests --rows score generate-1 --set workers=1 --against ../other-checkout

`--rows` and `--clients` choose rows, so that a run takes seconds. `--against` starts the server
of another checkout as well, and prints how it compares. Only a run without them writes its results.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.empty_route import LABEL as EMPTY
from bench.empty_route import empty_route
from bench.models import WORK, ensure
from bench.plain_clients import Span, connected, posts, texts
from bench.report import RESULTS, Row, machine, say, table, write
from bench.server import Server, unroll

CHARS = 20
CLIENTS = (1, 32)
Body = Callable[[str, str], dict[str, object]]  # of a model and a text


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request."""

    title: str
    path: str
    body: Body


def _generate(tokens: int) -> Kind:
    def body(model: str, text: str) -> dict[str, object]:
        return {"model": model, "prompt": text, "max_tokens": tokens, "seed": 1}

    title = f"/generate, {tokens} token{'s' * (tokens > 1)}"
    return Kind(title, "/generate", body)


KINDS: Mapping[str, Kind] = {
    "tokenize": Kind(
        "/tokenize", "/tokenize", lambda model, text: {"model": model, "prompt": text}
    ),
    "score": Kind(
        f"/score, {CHARS} characters", "/score", lambda model, text: {"model": model, "text": text}
    ),
    "generate-1": _generate(1),
    "generate-64": _generate(64),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A server, and where it takes the requests of a kind."""

    label: str
    server: Server
    url: Callable[[Kind], str]


def main() -> None:
    """Measure, print and, if every row was measured, write `requests.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.requests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--shape", type=shape_of, default=(2, 128), help="such as 2x512")
    add_server_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each turn")
    parser.add_argument("--quick", action="store_true", help="two rounds of 0.2 s")
    options = parser.parse_args()
    rounds, seconds = (2, 0.2) if options.quick else (options.rounds, options.seconds)
    settings = dict(options.set)
    title = f"processor time a request; settings: {described(settings)}"
    say(f"{machine()}; {title}; {rounds} rounds of {seconds:g} s")
    name = ensure(WORK, *options.shape)
    rows: list[Row] = []
    with subjects_of(name, settings, options.against) as subjects:
        for clients in options.clients:
            for kind in (KINDS[x] for x in options.rows):
                spans = turns(
                    subjects, name, kind, clients=clients, rounds=rounds, duration_s=seconds
                )
                part = rows_of(
                    f"{name}, {clients} client{'s' * (clients > 1)}: {kind.title}", spans
                )
                say(table(part))
                rows += part
    whole = (*options.rows, *options.clients) == (*KINDS, *CLIENTS)
    if whole and options.shape == (2, 128) and is_plain(options):
        write("requests.json", title, rows)
        say(f"written: {RESULTS / 'requests.json'}")


def is_plain(options: argparse.Namespace) -> bool:
    """Whether nothing was set that makes a run one of its own, whose results are not kept."""
    return not (options.quick or options.set or options.against)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add `--set NAME=VALUE` and `--against FOLDER`."""
    add_settings(parser)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--set NAME=VALUE`."""
    parser.add_argument(
        "--set",
        nargs="+",
        type=_setting_of,
        default=[],
        metavar="NAME=VALUE",
        help="settings of the server, such as workers=1",
    )


def shape_of(word: str) -> tuple[int, int]:
    """Layers and units, from a word such as `2x128`."""
    layers, units = word.split("x")
    return int(layers), int(units)


def _setting_of(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=VALUE")
    return name, value


def described(settings: Mapping[str, object]) -> str:
    """The settings in words."""
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "defaults"


@contextmanager
def subjects_of(
    name: str, settings: Mapping[str, object], against: Path | None
) -> Iterator[list[Subject]]:
    """Start this checkout's server, the empty route, and perhaps another checkout's server."""
    models, logs = WORK / "models" / name, WORK / "logs"
    with ExitStack() as stack:
        server = stack.enter_context(unroll(models, logs / "requests.log", **settings))
        subjects = [_subject("Unroll", server)]
        empty, url = stack.enter_context(empty_route(logs / "empty-route.log"))
        subjects.append(Subject(EMPTY, empty, lambda _: url))
        if against:
            folder = against.resolve()
            log = logs / "requests-against.log"
            other = stack.enter_context(unroll(models, log, folder, **settings))
            subjects.append(_subject(f"Unroll in {against}", other))
        yield subjects


def _subject(label: str, server: Server) -> Subject:
    return Subject(label, server, lambda kind: f"{server.url}{kind.path}")


_seeds = itertools.count(1)


def turns(
    subjects: Sequence[Subject],
    model: str,
    kind: Kind,
    *,
    clients: int,
    rounds: int,
    duration_s: float,
) -> dict[str, list[Span]]:
    """A span of every subject in every round, by label."""
    spans: dict[str, list[Span]] = {subject.label: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            prompts = texts(CHARS, next(_seeds))
            requests = posts(subject.url(kind), (kind.body(model, text) for text in prompts))
            with connected(subject.url(kind), requests, clients) as connections:
                span = connections.span(duration_s, subject.server.pid)
            spans[subject.label].append(span)
    return spans


def rows_of(where: str, spans: Mapping[str, Sequence[Span]]) -> list[Row]:
    """Median and minimum of the first subject, and the others with its ratio to each.

    A ratio is how many times less the first subject takes.
    """
    (label, mine), *others = (
        (label, [1e6 * span.cpu_s_per_request for span in measured])
        for label, measured in spans.items()
    )
    rows = []
    for other, theirs in others:
        ratio = statistics.median(y / x for x, y in zip(mine, theirs, strict=True))
        rows.append(Row(f"{where}: {label}", statistics.median(mine), "µs", other, ratio))
    rows.append(Row(f"{where}: {label}, minimum", min(mine), "µs"))
    for other, theirs in others:
        rows.append(Row(f"{where}: {other}", statistics.median(theirs), "µs"))
    client = statistics.median(1e6 * span.client_cpu_s / span.answers for span in spans[label])
    rows.append(Row(f"{where}: the clients themselves", client, "µs"))
    return rows


if __name__ == "__main__":
    main()
