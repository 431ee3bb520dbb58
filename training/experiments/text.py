"""The run of any language model: text, bits a character, samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from service.bundle.language_model import LanguageModelManifest
from service.bundle.text import SPECIAL_TOKENS, Vocabulary
from service.bundle.tokenization import Characters
from training.config import AnyLanguageModelConfig, ConfigError
from training.data import corpus as corpora
from training.data.corpus import Corpus, Split
from training.data.splits import SPLITS
from training.evaluation.language_model import evaluate
from training.evaluation.language_model_report import (
    in_words,
    measure_baselines,
    measurement,
    table,
)
from training.evaluation.sampling import sample
from training.experiments import counts
from training.experiments.experiment import NOTHING_KNOWN, Known, Measured
from training.export.language_model import export
from training.loop.language_model import open_best

Config = TypeVar("Config", bound=AnyLanguageModelConfig)

_CORPUS_FOLDER = "corpus"
_CPU = torch.device("cpu")
# Of the held-out text, for the requests that `learn` prints.
_LOOKED_AT = 400  # tokens
_LEAST_LINE = 20  # characters
_MOST_TEXT = 80  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOptions:
    """What `sample` is asked for: `n` texts, each with the next seed."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    n: int


@dataclass(frozen=True, slots=True)
class TextExperiment(Generic[Config]):
    """What all language models have of `experiment.Experiment`, whatever they are trained by."""

    config: Config
    noun: ClassVar[str] = "a language model"
    command: ClassVar[str] = "sample"
    stored: ClassVar[str] = _CORPUS_FOLDER

    def prepare(self, base: Path, run_dir: Path, known: Known = NOTHING_KNOWN) -> Corpus:
        """The text's ids by split, memory-mapped."""
        tokens = known.tokenizers[0].tokens if known.tokenizers else ()
        corpus = corpora.prepare(self.config.data, base, run_dir / _CORPUS_FOLDER, tokens)
        corpora.check_held_out(self.config.data, corpus)
        return corpus

    def open(self, run_dir: Path) -> Corpus:
        """What `prepare` wrote."""
        return corpora.load(run_dir / _CORPUS_FOLDER)

    def input_digest(self, base: Path) -> str:
        """Of the text files."""
        return corpora.input_digest(self.config.data, base)

    def describe(self, data: Corpus) -> str:
        """Characters of each split, and lines where those are the documents."""
        lines = self.config.data.documents == "line"
        splits = (
            f"{split.chars:,} characters to {purpose}"
            + (f" ({split.documents:,} lines)" if lines else "")
            for split, purpose in (
                (data.train, "train"),
                (data.valid, "validate"),
                (data.test, "test"),
            )
        )
        read = f" {counts.in_words(data.counts)};" if data.counts else ""
        special = len(SPECIAL_TOKENS)
        tokens = (
            f"{len(data.vocab)} tokens ({len(data.vocab) - special} characters, {special} special)"
        )
        return f"{self.config.name}:{read} {', '.join(splits)}; {tokens}"

    def measure(self, run_dir: Path, data: Corpus) -> Measured:
        """Nats, bits and perplexity of the model and of every n-gram."""
        _, model, _ = open_best(run_dir)
        config, held_out = self.config, data.held_out
        score = evaluate(model, held_out, _CPU)
        measurements = [
            measurement(f"{self.run_name()} (PyTorch)", "model", score),
            *measure_baselines(data.train, held_out, len(data.vocab), config.baselines, score),
        ]
        document = {
            "split": data.held_out_name,
            "measurements": [x.model_dump() for x in measurements],
        }
        return Measured(document, table(_title(data.held_out_name, data.held_out), measurements))

    def floors(self, data: Corpus) -> str:
        """The n-grams."""
        config = self.config.baselines
        floors = measure_baselines(data.train, data.held_out, len(data.vocab), config)
        return table(_title(data.held_out_name, data.held_out), floors)

    def run_name(self) -> str:
        """What a run's own model is called in tables."""
        return self.config.name

    def evaluate(self, run_dir: Path, split: str | None) -> str:
        """One row: the run's own model on the split, before anything is fitted or mixed in."""
        _, model, _ = open_best(run_dir)
        corpus = self.open(run_dir)
        name = split or corpus.held_out_name
        if name not in SPLITS:
            raise ConfigError(f"--split: there are {', '.join(SPLITS)}")
        found = corpus.split(name) if split else corpus.held_out
        if found.chars == 0:
            raise ConfigError(f"the {name} split is empty")
        score = evaluate(model, found, _CPU)
        return table(_title(name, found), [measurement(self.run_name(), "model", score)])

    def answer(self, run_dir: Path, options: SampleOptions) -> Iterator[str]:
        """The prompt, continued."""
        config, model, record = open_best(run_dir)
        vocab = Vocabulary(record["vocab"])
        for seed in range(options.seed, options.seed + options.n):
            text, _ = sample(
                model,
                vocab,
                config.data.normalization,
                prompt=options.prompt,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                seed=seed,
            )
            yield options.prompt + text

    def export(
        self,
        run_dir: Path,
        data: Corpus,
        models_dir: Path,
        *,
        name: str | None,
        others: Sequence[Path] = (),
    ) -> Path:
        """A step and a sequence graph of each precision."""
        ensemble = [(other, self.open(other)) for other in others]
        return export(run_dir, data, models_dir, name=name, ensemble=ensemble)

    def table(self, manifest: LanguageModelManifest) -> str:
        """Both precisions, adapting or not, and the parts of a mixture."""
        models = [x for x in manifest.metrics.measurements if x.kind != "baseline"]
        return table(f"{manifest.metrics.split}, served in {manifest.precision}", models)

    def figures(self, manifest: LanguageModelManifest) -> list[str]:
        """Bits a character beside guessing and the best n-gram."""
        unit = "lines" if self.config.data.documents == "line" else "text"
        return in_words(manifest, unit)

    def requests(
        self, manifest: LanguageModelManifest, data: Corpus
    ) -> list[tuple[str, dict[str, Any]]]:
        """Score a held-out text with all that the bundle knows of it; continue its beginning."""
        name = manifest.name
        known = {"percentile": manifest.percentiles, "guesses": manifest.guesses}
        asked = {option: True for option, found in known.items() if found is not None}
        text = _held_out_text(data)
        prompt = text[: _prompt_length(text)]
        return [
            ("/score", {"model": name, "text": text, **asked}),
            (
                "/generate",
                {"model": name, "prompt": prompt, "max_tokens": 100, "n": 3, "temperature": 0.7},
            ),
        ]

    def reading(self) -> Iterator[tuple[str, Any]]:
        """The normalization."""
        for rule, value in self.config.data.normalization.model_dump(mode="json").items():
            yield f"data.normalization.{rule}", value

    def known(self, record: Mapping[str, Any]) -> Known:
        """The characters."""
        return Known((Characters(record["vocab"]),))


def _title(name: str, split: Split) -> str:
    return f"{name}, {split.chars:,} characters"


def _held_out_text(corpus: Corpus) -> str:
    """The first held-out line that has a few words, or the whole of a short text."""
    split, tokens = corpus.held_out, corpus.vocab.tokens
    ids = split.ids[int(split.starts[0]) :][:_LOOKED_AT]
    text = "".join(tokens[i] if i >= len(SPECIAL_TOKENS) else "" for i in ids)
    first = [tokens[i] for i in split.ids[1 : int(split.starts[1]) - 1][:_LOOKED_AT]]
    lines = [line.strip() for line in "".join(first).split("\n")]
    # The first one may have begun before the held-out part.
    whole = [line for line in lines[1:] if len(line) >= _LEAST_LINE] or list(filter(None, lines))
    return whole[0][:_MOST_TEXT] if whole else text[:_MOST_TEXT]


def _prompt_length(text: str) -> int:
    """Of a sentence its first words, of a name its first letter or two."""
    blank = text.find(" ", 8)
    return blank + 1 if 0 < blank < len(text) - 1 else max(1, len(text) // 3)
