"""The command line: commands and their options."""

import argparse
from collections.abc import Callable
from pathlib import Path

from service.environment import program
from service.http.api_keys import ROLES

COMMANDS = ("generate", "score", "translate", "infill", "classify", "tag", "models", "keys")


def command_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Serve bundles (without a command), or run a task from the command line.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = _common()
    texts = argparse.ArgumentParser(add_help=False)
    texts.add_argument(
        "texts", nargs="*", help="default: the lines of standard input, as they arrive"
    )
    for name, (add_options, does, example) in _TASKS.items():
        add_options(commands.add_parser(name, parents=[common, texts], help=does, epilog=example))
    commands.add_parser(
        "models",
        parents=[common],
        help="list the served models, or the bundles of a folder",
        epilog="python -m service models --bundle models",
    )
    keys = commands.add_parser(
        "keys",
        help="make an API key: the key goes to stderr, its line for the key file to stdout",
        epilog="python -m service keys alice >> api-keys",
    )
    keys.add_argument("name", help="name of the key's owner, as the logs show it")
    keys.add_argument("--role", choices=ROLES, default="use")
    return parser


def flag_of(options: argparse.Namespace, option: str) -> str | None:
    """The command's flag for an option of a task; None if it has none."""
    name = _FLAG_NAMES.get(option, option)
    return f"--{name.replace('_', '-')}" if hasattr(options, name) else None


# Flags that differ from the option's name.
_FLAG_NAMES = {"return_alignments": "alignments"}


def _common() -> argparse.ArgumentParser:
    """Options for where to send requests and how to show answers."""
    common = argparse.ArgumentParser(add_help=False)
    where = common.add_mutually_exclusive_group()
    where.add_argument("--url", default="http://127.0.0.1:8000", help="URL of a running server")
    where.add_argument("--bundle", type=Path, help="folder of a bundle, to run it in this process")
    common.add_argument("--model", help="name of a served model")
    common.add_argument("--api-key-file", type=Path, help="file with the key of a running server")
    common.add_argument("--format", choices=("text", "tsv", "json"), default="text")
    return common


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("-n", "--n", type=int, help="choices for each prompt")
    parser.add_argument("--stop", action="append", default=[], help="may be given again")
    parser.add_argument(
        "--pattern", help="regular expression for the text; tokens are masked, not conditioned"
    )
    parser.add_argument(
        "--adapt", action="store_true", help="learn from each prompt and from what follows it"
    )


def _add_score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", help="encoder-decoders: the source that the texts translate")
    parser.add_argument("--context", help="read before each text, but not counted")
    parser.add_argument(
        "--label",
        help="for models that label texts: print the probability of this label instead",
    )
    parser.add_argument("--unknown", choices=("unk", "error", "skip"))
    parser.add_argument("--eos", action="store_true", help="count the end of each text")
    parser.add_argument(
        "--tokens", action="store_true", help="with json: figures for every character"
    )
    parser.add_argument(
        "--adapt", action="store_true", help="learn from each text while it is read"
    )
    parser.add_argument(
        "--percentile",
        action="store_true",
        help="print first the percentile among held-out texts of its length (- if there are none)",
    )
    parser.add_argument(
        "--guesses",
        action="store_true",
        help="print first how many guesses each text takes (> marks a lower bound); counts its end",
    )
    parser.add_argument(
        "--words", action="store_true", help="with --format json: figures for every word"
    )
    _add_file_options(parser)


def _add_file_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group(
        "files",
        "With --bundle: score files of any size, also compressed with gzip or Zstandard. Each gets "
        "an output with one row for each line, in order. The same command continues a stopped run.",
    )
    files.add_argument(
        "--input", nargs="+", action="extend", metavar="FILES", help="files, folders or patterns"
    )
    files.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the results")
    files.add_argument(
        "--workers", type=int, metavar="N", help="processes; default: one for each processor"
    )
    files.add_argument(
        "--field",
        metavar="NAME",
        help="field or column with the text (default: text); the files are NDJSON or Parquet",
    )
    files.add_argument(
        "--source-field", metavar="NAME", help="encoder-decoders: field or column with the source"
    )


def _add_translate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beam-size", type=int)
    parser.add_argument("--num-hypotheses", type=int)
    parser.add_argument("--length-penalty", type=float)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--pattern", help="regular expression for every translation")
    parser.add_argument(
        "--must-contain", action="append", help="a word of every translation; may be repeated"
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        help="leave out translations that are less likely right: an empty line where none is left",
    )
    parser.add_argument("--alignments", action="store_true", help="with json")


def _add_infill_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--candidates", nargs="+", action="extend", help="what a blank may be; texts go before it"
    )
    parser.add_argument("--blank", help="the string that marks a blank; ___ by default")
    parser.add_argument("--pattern", help="regular expression for an open blank")
    parser.add_argument("--allowed-chars", help="the only characters of an open blank")
    parser.add_argument("--length", type=int, help="exact number of characters of an open blank")
    parser.add_argument("--max-tokens", type=int, help="most characters of an open blank")
    parser.add_argument("--num-fills", type=int, help="most fills for each text")
    parser.add_argument("--num-proposals", type=int, help="texts to compare for an open blank")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--unknown", choices=("unk", "error", "skip"))
    parser.add_argument("--eos", action="store_true", help="count the end of each text")
    parser.add_argument(
        "--rescore",
        help="a language model that ranks the proposals of a model trained to fill blanks: its "
        "name, or with --bundle the folder of its bundle",
    )


def _add_classify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top",
        type=int,
        help="most labels for each text; by default 1, or all with --min-probability",
    )
    parser.add_argument(
        "--min-probability", type=float, metavar="P", help="leave out labels that are less likely"
    )
    parser.add_argument("--unknown", choices=("unk", "error", "skip"))
    parser.add_argument(
        "--steps",
        action="store_true",
        help="with --format json: also the likeliest label after each character",
    )


def _add_tag_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--n", type=int, help="taggings of each text, likeliest first")
    parser.add_argument(
        "--places",
        action="store_true",
        help="with --format json: also the likeliest labels of each character",
    )
    parser.add_argument("--top", type=int, help="with --places: most labels for each character")
    parser.add_argument("--unknown", choices=("unk", "error", "skip"))


# For each task: what adds its options, what it does, and an example.
_TASKS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, str]] = {
    "generate": (
        _add_generate_options,
        "continue prompts; without a prompt, begin a new text",
        'python -m service generate --bundle models/alice-lstm "Alice was " --seed 1',
    ),
    "score": (
        _add_score_options,
        "how surprising texts are: bits a character, then the text",
        (
            "tail -f log | python -m service score --bundle models/alice-lstm: each line as it "
            "arrives. For the most surprising lines: … score … < log | sort -rn | head"
        ),
    ),
    "translate": (
        _add_translate_options,
        "translate sources",
        "python -m service translate --bundle models/g2p-en unroll recurrent",
    ),
    "infill": (
        _add_infill_options,
        "fill the blanks of texts: each fill's posterior, then the fill",
        'python -m service infill --bundle models/alice-lstm "I am ___." --length 4',
    ),
    "classify": (
        _add_classify_options,
        "label texts: each label's probability, the label, then the text",
        'python -m service classify --bundle models/language-id "Guten Morgen"',
    ),
    "tag": (
        _add_tag_options,
        "label each character: prints restored texts, or texts with each [tag](label) marked",
        'python -m service tag --bundle models/accents "deja vu"',
    ),
}
