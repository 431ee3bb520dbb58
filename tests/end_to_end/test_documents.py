"""What README.md and docs/ say is what a person sees: commands, answers, links, fields."""

import contextlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cli import commands
from service.cli.parser import COMMANDS
from service.errors import ClientGone, ServiceError
from service.settings import Settings
from tests.end_to_end.documents import (
    DOCUMENTS,
    PAGES,
    Asked,
    Block,
    Command,
    anchors_of,
    asked_in,
    blocks_of,
    links_of,
    paragraphs_of,
    parsed,
    target_of,
)
from tests.end_to_end.server import ROOT, Server, serve
from training import __main__ as training

URL = "http://127.0.0.1:8000"
SERVICE_PYTHON = ".venv/service/bin/python"
CLIENTS_PYTHON = ROOT / ".venv/clients/bin/python"
MAX_LINES = {"README.md": 150, "ARCHITECTURE.md": 150}
PACKAGES = ("service", "training")
MAX_PARAGRAPH_LINES = 5
MAX_LINE_CHARS = 150


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def all_blocks() -> list[Any]:
    """Every block of every page, named by its page and its place."""
    return [
        pytest.param(block, id=f"{name_of(page)}-{i}")
        for page in PAGES
        for i, block in enumerate(blocks_of(page.read_text()))
    ]


def blocks(keep: Callable[[Block], bool]) -> list[Any]:
    return [param for param in all_blocks() if keep(param.values[0])]


RUN = blocks(lambda block: block.has_commands and block.answer is not None)
SCRIPTS = blocks(lambda block: block.word == "python")
NOT_RUN = blocks(lambda block: block.has_commands and block.answer is None)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(ROOT / "models") as running:
        yield running


# --- what is run ----------------------------------------------------------------------------------

# How much was known before depends on what was asked before, and each request has its own id.
VARYING = {"cached_tokens", "tokens_cached", "request_id"}


def rounded(value: Any) -> Any:
    """Numbers to five digits: documents round, and processors differ in the last ones."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items() if key not in VARYING}
    return value


def digits(text: str) -> str:
    """Numbers to five digits, and without what varies."""
    text = re.sub(r'"cached_tokens":\d+', "", text.rstrip("\n"))
    return re.sub(r"-?\d+\.\d{5,}", lambda found: f"{float(found[0]):.5g}", text)


def compare(printed: str, answer: Block) -> None:
    if answer.word == "json":
        assert rounded(json.loads(printed)) == rounded(json.loads(answer.text))
    else:
        assert digits(printed) == digits(answer.text)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the documents' commands need curl")
@pytest.mark.parametrize("block", RUN)
def test_a_command_prints_what_stands_beside_it(server: Server, block: Block) -> None:
    command = block.text.replace(URL, server.url).replace(SERVICE_PYTHON, sys.executable)
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert block.answer is not None
    compare(done.stdout, block.answer)


@pytest.mark.parametrize("asked", asked_in((ROOT / "README.md").read_text()), ids=str)
def test_a_task_is_answered_as_its_row_says(server: Server, asked: Asked) -> None:
    with server.client() as client:
        answer = client.post(asked.path, json=json.loads(asked.body)).raise_for_status().text
    assert asked.members
    for name, value in asked.members:
        found = re.findall(rf'"{name}":("[^"]*"|[^,}}\]]+)', answer)
        assert any(shown_as(value, each) for each in found), (name, found)


def shown_as(shown: str, value: str) -> bool:
    """Whether a table may show a value like this: a number may be rounded."""
    try:
        digits_shown = len(shown.partition(".")[2])
        return round(float(value), digits_shown) == float(shown)
    except ValueError:
        return shown == value


@pytest.mark.parametrize("block", SCRIPTS)
def test_a_script_prints_what_stands_beside_it(server: Server, block: Block) -> None:
    is_others = "unroll_client" not in block.text
    if is_others and not CLIENTS_PYTHON.exists():
        pytest.skip("the clients' environment is not there: make .venv/clients/.done")
    python = CLIENTS_PYTHON if is_others else sys.executable
    done = subprocess.run(
        [python, "-c", block.text.replace(URL, server.url)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    assert block.answer is not None
    compare(done.stdout, block.answer)


def test_there_is_an_example_for_every_task() -> None:
    def paths(page: str) -> list[str]:
        shown = [x.values[0].text for x in RUN if str(x.id).startswith(page)]
        return re.findall(r"http://127\.0\.0\.1:8000(/\w+)", "\n".join(map(str, shown)))

    readme = {asked.path for asked in asked_in((ROOT / "README.md").read_text())}
    tasks = {"/generate", "/score", "/infill", "/translate", "/classify", "/tag"}
    assert readme | set(paths("README.md")) == tasks
    assert tasks | {"/tokenize"} <= set(paths("docs/api.md"))
    assert {"/infill", "/v2", "/libretranslate"} <= set(paths("docs/clients.md"))
    assert len(SCRIPTS) >= 2


# --- what is there to be run ----------------------------------------------------------------------


def help_of(arguments: tuple[str, ...]) -> str:
    """The help of a subcommand of `python -m training`, or of the service's command line."""
    run = commands.run if arguments[0] in COMMANDS else training.main
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        run([arguments[0], "--help"])
    assert ended.value.code == 0, arguments
    return printed.getvalue()


def check_options(command: Command, arguments: tuple[str, ...]) -> None:
    known = help_of(arguments)
    assert all(re.search(rf"{flag}\b", known) for flag in command.flags), command


def check_module(command: Command) -> None:
    """`python -m MODULE …`: the module, its subcommand and its options exist."""
    module, arguments = command.words[2], command.words[3:]
    spec = importlib.util.find_spec(module)
    assert spec is not None, command
    if module == "service" and arguments[:1] and not arguments[0].startswith("--"):
        check_options(command, arguments)
    elif module == "service":
        settings = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
        assert command.flags <= settings, command
    elif module == "training":
        check_options(command, arguments)
    elif command.flags:
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        assert all(f'"{flag}"' in source for flag in command.flags), command


def check_make(command: Command) -> None:
    subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, check=True)


def check_pip(command: Command) -> None:
    """Only this checkout, with extras that it has, and packages as they are pinned."""
    project = (ROOT / "pyproject.toml").read_text()
    clients = (ROOT / "requirements/clients.txt").read_text().replace("_", "-").splitlines()
    packages = [x for x in command.words[2:] if not x.startswith(("-", "http"))]
    assert packages
    for package in packages:
        found = re.fullmatch(r"\.\[([a-z,]+)\]", package)
        extras = found[1].split(",") if found else ()
        is_pinned = f'"{package}"' in project or re.sub(r"\[\w+\]", "", package) in clients
        assert found or ("==" in package and is_pinned), command
        assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)


def check_copy(command: Command) -> None:
    """What is copied is there."""
    assert all((ROOT / path).exists() for path in command.words[2:-1]), command


def check_folder(command: Command) -> None:
    """A new folder must not be in the way of one that is there."""
    assert not any((ROOT / path).exists() for path in command.words[1:]), command


def check_compose(command: Command) -> None:
    """Every service and profile that is named stands in the compose file."""
    compose = (ROOT / "docker/compose.yaml").read_text()
    services = set(re.findall(r"^  (\w+):$", compose, re.MULTILINE))
    words = command.words[2:]
    if "--profile" in words:
        assert f"profiles: [{words[words.index('--profile') + 1]}]" in compose
    assert "up" in words or services & set(words), command


def check_lm_eval(command: Command) -> None:
    pins = (ROOT / "requirements/clients.txt").read_text()
    pinned = re.search(r"^lm[-_]eval==(.*)$", pins, re.MULTILINE)
    assert pinned
    assert f"lm-eval {pinned[1]}" in (ROOT / "docs/clients.md").read_text()
    assert "tokenizer_backend=remote" in command.words[-1]


def check_curl(command: Command) -> None:
    """A request whose answer is not shown: its path is there."""
    paths = json.loads((ROOT / "openapi.json").read_text())["paths"]
    asked = next(word for word in command.words if word.startswith(URL)).removeprefix(URL)
    known = [re.sub(r"\{\w+\}", "[^/]+", path) for path in paths]
    assert any(re.fullmatch(path, asked.partition("?")[0]) for path in known), command


def check_files(command: Command) -> None:
    """Every file of this repository that is named is there."""
    named = [word for word in command.words[1:] if word.startswith("docker/")]
    assert named or command.words[1] in {"wait", "logs", "port-forward"}, command
    assert all((ROOT / path).exists() for path in named), command


def check_ray(command: Command) -> None:
    """Ray's own commands and variables: tests/cluster runs them."""
    assert command.words[1].startswith(("start", "RAY_")), command


def check_torchrun(command: Command) -> None:
    """What follows torchrun's own options is a module's command."""
    begin = command.words.index("-m") + 1
    words = tuple(word for word in command.words[begin:] if word != "--")
    check_module(Command((), ("python", "-m", *words)))


def check_made(command: Command) -> None:
    """A file is written into a folder that is there."""
    assert command.words[-2] == ">", command
    assert (ROOT / command.words[-1]).parent.is_dir(), command


def check(command: Command) -> None:
    program = Path(command.words[0]).name if command.words else ""
    if program in {"python", "python3"} and command.words[1] == "-m":
        check_module(command)
    elif program == "unroll":
        check_options(command, command.words[1:])
    elif program == "docker" and command.words[1] == "compose":
        check_compose(command)
    elif program:
        rules = {
            "make": check_make,
            "pip": check_pip,
            "lm_eval": check_lm_eval,
            "curl": check_curl,
            "cp": check_copy,
            "mkdir": check_folder,
            "kubectl": check_files,
            "sbatch": check_files,
            "serve": check_files,
            "ray": check_ray,
            "export": check_ray,
            "openssl": check_made,
            "printf": check_made,
            "torchrun": check_torchrun,
        }
        assert program in rules, f"neither run nor checked: {command}"
        rules[program](command)


@pytest.mark.parametrize("block", NOT_RUN)
def test_a_command_that_is_not_run_is_there_to_be_run(block: Block) -> None:
    assert block.commands
    for line in block.commands:
        check(parsed(line))


def test_every_variable_is_a_setting() -> None:
    composed = (ROOT / "docker/compose.yaml").read_text() + (ROOT / "Makefile").read_text()
    settings = {f"UNROLL_{name.upper()}" for name in Settings.model_fields}
    for page in DOCUMENTS:
        for name in set(re.findall(r"\bUNROLL_[A-Z][A-Z_]*[A-Z]\b", page.read_text())):
            known = name in settings or name.removesuffix("_FILE") in settings
            assert known or name in composed, f"{name_of(page)}: {name}"


def test_every_configuration_that_is_named_exists() -> None:
    for page in DOCUMENTS:
        named = set(re.findall(r"training/configs/[\w.-]+\.toml", page.read_text()))
        assert all((ROOT / path).exists() for path in named), name_of(page)


def test_a_command_that_is_not_there_is_found() -> None:
    for wrong in (
        "make lern FILE=names.txt",
        "python -m training trane my.toml",
        "python -m training train my.toml --resumed",
        "python -m bench.nothing",
        "pip install '.[telemetrie]'",
        "pip install somebody-elses-package",
        "pip install lm-eval==0.0.1",
        "cp -r models/nothing one",
        "docker compose run nobody",
        "curl http://127.0.0.1:8000/generat",
        "openssl rand -hex 32 > docker/nowhere/key",
        "sometool --help",
    ):
        with pytest.raises((AssertionError, SystemExit, subprocess.CalledProcessError)):
            check(parsed(wrong))


# --- links and form -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in links_of(path.read_text()):
        target, anchor = target_of(link, path)
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text()), link


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n\n[one](page.md#a-heading) `[no link](here)` [two](other.md#x)\n")
    links = links_of(page.read_text())
    assert links == ["page.md#a-heading", "other.md#x"]
    assert target_of(links[0], page) == (page, "a-heading")
    assert anchors_of(page.read_text()) == {"a-heading"}
    assert not target_of(links[1], page)[0].exists()


@pytest.mark.parametrize(("name", "limit"), MAX_LINES.items())
def test_a_document_is_short(name: str, limit: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= limit


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`([\w/]+\.(?:py|md))`", text))
    assert len(named) > 25
    folders = (ROOT, ROOT / "service", ROOT / "training")
    assert not [name for name in named if not any((x / name).is_file() for x in folders)]


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = [x.parent.name for x in ROOT.glob("*/*/__init__.py") if x.parts[-3] in PACKAGES]
    assert len(rooms) > 15
    assert not [room for room in rooms if f"`{room}/`" not in text]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_paragraph_is_short(page: Path) -> None:
    for lines in paragraphs_of(page.read_text()):
        assert len(lines) <= MAX_PARAGRAPH_LINES, lines[0]
        assert all(len(line) <= MAX_LINE_CHARS for line in lines), lines[0]


# --- completeness ---------------------------------------------------------------------------------

OPENAPI = json.loads((ROOT / "openapi.json").read_text())


def page_of(path: str) -> str:
    is_foreign = path.startswith(("/v1", "/v2", "/libretranslate"))
    pages = ["clients.md"] if is_foreign else ["api.md"]
    if path == "/infill":  # which also speaks llama.cpp's protocol
        pages.append("clients.md")
    return "".join((ROOT / "docs" / page).read_text() for page in pages)


def field_names(schema: dict[str, Any]) -> set[str]:
    """The properties of an object, and of those that may stand in its place."""
    names = set(schema.get("properties", {}))
    for part in [*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("oneOf", ())]:
        names |= field_names(part)
    return names


@pytest.mark.parametrize("path", OPENAPI["paths"])
def test_every_path_and_field_of_a_request_is_documented(path: str) -> None:
    page = page_of(path)
    head, _, last = path.replace("/versions/1", "").rpartition("/")
    is_admin = path.startswith("/admin")
    assert (f"/{last}`" in page) if is_admin else (path.replace("/versions/1", "") in page), head
    for operation in OPENAPI["paths"][path].values():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            schemas = (content.get("schema", {}), content.get("itemSchema", {}))
            for name in field_names(schemas[0]) | field_names(schemas[1]):
                assert f"`{name}`" in page, name
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query":
                assert re.search(rf"`{parameter['name']}`|\?{parameter['name']}=", page), parameter


def default_of(schema: dict[str, Any]) -> str | None:
    """What stands in a table for a field that is left out; None where that is said in words."""
    told = re.search(r"left out, it is (\d+)", schema.get("description", ""), re.IGNORECASE)
    if told:
        return told[1]
    default = schema.get("default")
    is_number = isinstance(default, int | float)
    return json.dumps(default).removesuffix(".0") if is_number else None


@pytest.mark.parametrize("path", ["/generate", "/score", "/translate", "/classify", "/tag"])
def test_the_defaults_of_a_request_are_those_of_the_service(path: str) -> None:
    page = (ROOT / "docs/api.md").read_text()
    section = page.partition(f"\n## {path.removeprefix('/').capitalize()}\n")[2]
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", section.partition("\n## ")[0], re.MULTILINE
    )
    content = OPENAPI["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    defaults = {name: default_of(x) for name, x in content["schema"]["properties"].items()}
    checked = [name for name, cell in rows if defaults.get(name) is not None]
    for name, cell in rows:
        if defaults.get(name) is not None:
            assert cell == defaults[name], name
    assert len(checked) >= 2


def kinds_of_errors(base: type[ServiceError]) -> set[type[ServiceError]]:
    return {base, *(x for each in base.__subclasses__() for x in kinds_of_errors(each))}


def test_every_kind_of_error_is_documented() -> None:
    page = (ROOT / "docs/api.md").read_text()
    for error in kinds_of_errors(ServiceError) - {ServiceError, ClientGone}:
        if error.__module__ == "service.errors":
            rows = [row for row in page.splitlines() if row.startswith(f"| {error.status} |")]
            assert any(f"`{error.type}`" in row for row in rows), error.type
