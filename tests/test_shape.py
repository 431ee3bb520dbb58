"""The shape of the code: short files and functions, rooms without code, no forks by kind."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("service", "training", "unroll_client")
FILES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
ROOMS = [path for path in FILES if path.name == "__init__.py" and path.parts[-2] != PACKAGES[2]]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# Classes that there is one of for each kind of model.
_OF_A_KIND = re.compile(r"(LanguageModel|EncoderDecoder|Labeler)\w*")


def each(paths: list[Path]) -> list[Any]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


parsed = functools.cache(ast.parse)


def long_functions(code: str) -> Iterator[str]:
    """Functions over the limit, decorators not counted."""
    for node in ast.walk(parsed(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.name}: {lines} lines"


def is_docstring(code: str) -> bool:
    body = ast.parse(code).body
    return len(body) == 1 and ast.get_docstring(ast.parse(code)) is not None


def forks(code: str) -> Iterator[str]:
    """Places that ask of which kind a model is, where a method or a table would answer."""
    for node in ast.walk(parsed(code)):
        asked: ast.expr | None = None
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, asked]):
                pass
            case ast.MatchClass(cls=asked):
                pass
        names = [] if asked is None else [ast.unparse(x) for x in ast.walk(asked)]
        for name in names:
            if _OF_A_KIND.fullmatch(name.rpartition(".")[2]):
                yield f"line {getattr(node, 'lineno', 0)}: {name}"


@pytest.mark.parametrize("path", each(FILES))
def test_a_file_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", each(FILES))
def test_a_function_has_at_most_60_lines(path: Path) -> None:
    assert list(long_functions(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("path", each(ROOMS))
def test_a_room_holds_only_what_its_files_hold(path: Path) -> None:
    assert is_docstring(path.read_text("utf-8"))


@pytest.mark.parametrize("path", each(FILES))
def test_nothing_asks_which_kind_a_model_is(path: Path) -> None:
    assert list(forks(path.read_text("utf-8"))) == []


def test_the_rooms_are_all_there() -> None:
    folders = {path.parent for path in FILES if path.parent.name != "unroll_client"}
    assert {path.parent for path in ROOMS} == folders
    assert len(ROOMS) > 15


@pytest.mark.parametrize(("lines", "is_long"), [(60, False), (61, True)])
def test_a_long_function_would_be_found(lines: int, is_long: bool) -> None:
    body = "\n".join(["class X:", "    async def f(self):", *["        pass"] * (lines - 1)])
    assert bool(list(long_functions(body))) == is_long


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("isinstance(x, LanguageModelEngine)", True),
        ("isinstance(x, (int, tasks.EncoderDecoderEngine))", True),
        ("isinstance(x, int | EncoderDecoderManifest)", True),
        ("match x:\n    case LanguageModelConfig():\n        pass", True),
        ("isinstance(x, str)", False),
        ("def f(x: LanguageModelEngine) -> None: ...", False),
    ],
)
def test_a_fork_by_kind_would_be_found(code: str, is_found: bool) -> None:
    assert bool(list(forks(code))) == is_found


@pytest.mark.parametrize(
    ("code", "is_room"), [('"""What."""\n', True), ('"""What."""\nimport x\n', False), ("", False)]
)
def test_a_room_with_code_would_be_found(code: str, is_room: bool) -> None:
    assert is_docstring(code) == is_room
