"""Markdown as the tests of the documents see it: fenced blocks, commands, links, anchors."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.server import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
DOCUMENTS = (*PAGES, *sorted(ROOT.glob("[!R]*.md")), ROOT / "models/README.md")

# A fence of one of these words holds commands.
_COMMANDS = ("", "bash")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True, slots=True)
class Block:
    """What stands in a fence."""

    word: str  # behind the opening fence
    text: str
    answer: "Block | None"  # the block of JSON or text that follows at once

    @property
    def has_commands(self) -> bool:
        """Whether it is typed into a shell."""
        return self.word in _COMMANDS

    @property
    def commands(self) -> list[str]:
        """Its commands, one a line or continued by a backslash."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line for line in lines if line.strip()]


@dataclass(frozen=True, slots=True)
class Command:
    """A command, taken apart."""

    variables: tuple[str, ...]  # assignments before it, or after `export`
    words: tuple[str, ...]

    @property
    def flags(self) -> set[str]:
        """Its options by their long names."""
        return {word.partition("=")[0] for word in self.words if word.startswith("--")}


def blocks_of(document: str) -> list[Block]:
    """The fenced blocks, in order."""
    found = list(_FENCE.finditer(document))
    blocks: list[Block] = []
    following: Block | None = None
    start_of_following = 0
    for match in reversed(found):
        between = document[match.end() : start_of_following]
        is_answered = following is not None and following.word in {"json", "text"}
        answer = following if is_answered and not between.strip() else None
        following = Block(match[1], match[2].removesuffix("\n"), answer)
        start_of_following = match.start()
        blocks.append(following)
    return blocks[::-1]


def parsed(command: str) -> Command:
    """The words of a command, without its comment."""
    words = shlex.split(command, comments=True)
    if words[0] == "export":
        return Command(tuple(words[1:]), ())
    count = 0
    while count < len(words) and _ASSIGNMENT.match(words[count]):
        count += 1
    return Command(tuple(words[:count]), tuple(words[count:]))


def prose_of(document: str) -> str:
    """The document without what stands in fences."""
    return _FENCE.sub("", document)


def links_of(document: str) -> list[str]:
    """Targets of links to files and headings; pages elsewhere are not asked for."""
    found: list[str] = _LINK.findall(re.sub(r"`[^`\n]*`", "", prose_of(document)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors_of(document: str) -> set[str]:
    """What links to the document's headings say behind `#` (GitHub's rule)."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose_of(document)):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(name)
    return found


def paragraphs_of(document: str) -> list[list[str]]:
    """Paragraphs of prose as lines: no tables, lists or headings."""
    parts = re.split(r"\n\s*\n", prose_of(document))
    lines = [part.strip("\n").splitlines() for part in parts if part.strip()]
    return [x for x in lines if not x[0].lstrip().startswith(("|", "- ", "#", "1. ", "<", "!["))]


def target_of(link: str, document: Path) -> tuple[Path, str]:
    """The file that a link leads to, and the anchor in it."""
    path, _, anchor = link.partition("#")
    return ((document.parent / path).resolve() if path else document, anchor)


@dataclass(frozen=True, slots=True)
class Asked:
    """A row of a table of requests: `path`, `body`, and members of the answer."""

    path: str
    body: str
    members: tuple[tuple[str, str], ...]  # names and values, as JSON


_ASKED = re.compile(r"^\|[^|`]*\| `(/\w+)` \| `(\{.*\})` \| `(.*)` \|$", re.MULTILINE)
_MEMBER = re.compile(r'"(\w+)": ("[^"]*"|[^,]+)')


def asked_in(document: str) -> list[Asked]:
    """The requests of the document's tables."""
    return [
        Asked(path, body, tuple(_MEMBER.findall(members)))
        for path, body, members in _ASKED.findall(document)
    ]
