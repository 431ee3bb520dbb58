"""`python -m training` on texts with blanks, from a file to a bundle that fills them."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.infill import BLANK, MARKS
from service.bundle.store import read_bundle
from service.bundle.text import EOS_ID, SPECIAL_TOKENS
from service.settings import Settings
from service.tasks.engine import INFILL
from service.tasks.infill_values import Blanks, InfillOptions
from service.tasks.kinds import Surroundings, open_engine
from tests.training.helpers import FABLE, Main, tiny_infill_document, write_toml
from training.__main__ import main
from training.config import InfillConfig, load_config
from training.data import infill as infill_data
from training.data.infill import InfillCorpus, infill_options
from training.evaluation.beam_search import NetworkSteps
from training.evaluation.filling import fill_blanks
from training.evaluation.infill_report import Floors, in_words, table
from training.loop.encoder_decoder import load_best

# Long enough that 20 tokens of each split are held out.
TEXT = FABLE * 3
TRAINING = {"steps": 12, "eval_every": 6, "checkpoint_every": 6, "learning_rate": 0.02}


def configured(folder: Path, text: str = TEXT, **sections: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text)
    training = {**TRAINING, **sections.pop("training", {})}
    return write_toml(folder / "tiny.toml", tiny_infill_document(training=training, **sections))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, its finished run and its bundle."""
    folder = tmp_path_factory.mktemp("infill")
    run = str(folder / "run")
    assert main(["train", str(configured(folder)), "--run", run]) == 0
    assert main(["export", run, "--models", str(folder / "models")]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(made: Path) -> EncoderDecoderBundle:
    found = read_bundle(made / "models/tiny-infill")
    assert isinstance(found, EncoderDecoderBundle)
    return found


def corpus_of(config: Path, folder: Path) -> tuple[InfillConfig, InfillCorpus]:
    loaded = load_config(config)
    assert isinstance(loaded, InfillConfig)
    return loaded, infill_data.prepare(loaded, config.parent, folder)


def test_the_bundle_says_how_blanks_are_written(bundle: EncoderDecoderBundle) -> None:
    infill = bundle.manifest.infill
    assert infill is not None
    assert (infill.context, infill.max_blanks, infill.max_chars) == (12, 3, 6)
    assert infill.marks == MARKS
    assert bundle.source.tokens[: len(SPECIAL_TOKENS) + len(MARKS)] == (*SPECIAL_TOKENS, *MARKS)
    assert bundle.source.tokens == bundle.target.tokens


def test_the_manifest_has_the_model_beside_its_floors(bundle: EncoderDecoderBundle) -> None:
    (metrics,) = bundle.manifest.metrics
    assert (metrics.split, metrics.pairs) == ("test", 30)
    names = [(x.kind, x.name) for x in metrics.measurements]
    assert names[:4] == [
        ("model", "greedy"),
        ("model", "beam 2"),
        ("baseline", "frequent"),
        ("baseline", "6-gram"),
    ]
    for measured in metrics.measurements[:4]:
        assert {"exact_match", "symbol_error_rate"} <= set(measured.values)
    assert all("___" in example.source for example in bundle.manifest.examples)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_bundle_fills_blanks(bundle: EncoderDecoderBundle, precision: str) -> None:
    async def filled() -> list[tuple[str, ...]]:
        settings = Settings.model_validate({"precision": precision})
        engine = open_engine(bundle, Surroundings(settings=settings, threads=1))
        infills = INFILL.of(engine)
        assert infills is not None
        engine.start()
        try:
            (found,) = await infills.infill([Blanks(("a fox ", " day"))], InfillOptions(length=3))
        finally:
            await engine.stop()
        return [fill.texts for fill in found.fills]

    if precision not in {graph.precision for graph in bundle.manifest.graphs}:
        pytest.skip("the gate has left it out")
    found = asyncio.run(filled())
    assert len(found) == 5
    assert {len(text) for (text,) in found} == {3}


def test_a_run_fills_blanks_is_evaluated_and_goes_on(
    made: Path, tmp_path: Path, call: Main
) -> None:
    run = tmp_path / "run"
    assert call("train", configured(tmp_path, training={"steps": 6}), "--run", run)[0] == 0
    assert call("train", configured(tmp_path), "--run", run, "--resume")[0] == 0
    whole, resumed = (
        list(map(json.loads, (folder / "run/log.jsonl").read_text().splitlines()))
        for folder in (made, tmp_path)
    )
    # The pairs that are drawn anew are the same, too; the schedule is not.
    assert [x["step"] for x in whole if x["kind"] == "valid"] == [
        x["step"] for x in resumed if x["kind"] == "valid"
    ]
    status, output, _ = call("infill", run, "a fox ___ day", "the ?? of a ?? tree", "--blank", "??")
    assert status == 1
    status, output, _ = call("infill", run, "a fox ___ day", "the ___ of a ___ tree")
    assert status == 0
    lines = output.splitlines()
    assert re.fullmatch(r"a fox \[[^]]+\] day", lines[0])
    assert re.fullmatch(r"the \[[^]]+\] of a \[[^]]+\] tree", lines[1])
    assert "valid: 20 sources" in call("evaluate", run, "--split", "valid")[1]


def test_a_run_starts_from_anothers_weights_and_characters(
    made: Path, tmp_path: Path, call: Main
) -> None:
    config = configured(tmp_path, TEXT.replace("fox", "wolf") + "zebra 12 xyz\n" * 40)
    status, _, errors = call(
        "train", config, "--run", tmp_path / "run", "--init-from", made / "run"
    )
    assert status == 0, errors
    status, _, errors = call(
        "train", config, "--run", tmp_path / "b", "--init-from", made / "models/tiny-infill"
    )
    assert (status, "start from its run's folder instead" in errors) == (1, True)


def test_held_out_pairs_are_the_same_each_time_and_training_pairs_are_new(tmp_path: Path) -> None:
    config = configured(tmp_path)
    loaded, corpus = corpus_of(config, tmp_path / "corpus")
    again = infill_data.load(loaded, tmp_path / "corpus").pairs
    pairs = corpus.pairs
    assert again.valid.pairs == pairs.valid.pairs
    assert [x.pairs for x in again.tests] == [x.pairs for x in pairs.tests]
    assert pairs.drawn is not None
    assert again.drawn is not None
    first, second = pairs.drawn(0), pairs.drawn(1)
    assert first.pairs != second.pairs
    assert any(BLANK in target for _, target in first.pairs)
    assert not any(BLANK in target for _, target in (*pairs.valid.pairs, *pairs.tests[0].pairs))
    assert again.drawn(1).pairs == second.pairs


def test_held_out_texts_are_never_trained_on(tmp_path: Path) -> None:
    # Each split has characters of its own.
    text = "abc " * 400 + "xyz " * 60 + "123 " * 60
    sections = {"data": {"valid_fraction": 60 / 520, "test_fraction": 60 / 520}}
    _, corpus = corpus_of(configured(tmp_path, text, **sections), tmp_path / "corpus")
    assert corpus.pairs.drawn is not None
    splits = [corpus.pairs.drawn(0), corpus.pairs.valid, *corpus.pairs.tests]
    characters = [
        {char for pair in split.pairs for text in pair for char in text} - {*MARKS, " "}
        for split in splits
    ]
    assert characters[0] == set("abc")
    assert not characters[0] & (characters[1] | characters[2])


def test_the_floors_see_the_left_or_nothing(tmp_path: Path) -> None:
    loaded, corpus = corpus_of(configured(tmp_path, "abcdefgh\n" * 300), tmp_path / "corpus")
    infill = infill_options(loaded.spans)
    frequent, ngram = Floors(corpus, infill).measured(corpus.pairs.held_out[0])
    # The next letter follows from the last ones.
    assert ngram.values["exact_match"] > 0.9
    assert frequent.values["exact_match"] < 0.5


def constant(token: int, size: int) -> Tensor:
    """Log-probabilities that prefer one token, then the lower ids."""
    logits = -torch.arange(size, dtype=torch.float32)
    logits[token] = 10.0
    return torch.log_softmax(logits, -1)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("preferred", ["end", "blank", "letter"])
def test_every_blank_gets_a_text_that_is_not_empty(
    made: Path, preferred: str, beam_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(made / "tiny.toml")
    assert isinstance(config, InfillConfig)
    _, model, *_ = load_best(made / "run")
    pairs, infill = (
        infill_data.load(config, made / "run/corpus").pairs,
        infill_options(config.spans),
    )
    (mark,), (letter,) = (pairs.target.encode(x).tolist() for x in (BLANK, "a"))
    token = {"end": EOS_ID, "blank": mark, "letter": letter}[preferred]
    plain = NetworkSteps.step

    def step(self: NetworkSteps, tokens: Tensor, *rest: Any) -> tuple[Tensor, Any]:
        logprobs, after = plain(self, tokens, *rest)
        return constant(token, logprobs.shape[1]).expand_as(logprobs).clone(), after

    monkeypatch.setattr(NetworkSteps, "step", step)
    sources = [
        infill.source(x, begins=True, ends=False) for x in (["a ", " b"], ["a ", " b ", " c"])
    ]
    one, two = fill_blanks(
        model, pairs, infill, sources, beam_size=beam_size, device=torch.device("cpu")
    )
    assert (len(one), len(two)) == (1, 2)
    assert {1 <= len(text) <= infill.max_chars for text in (*one, *two)} == {True}


@pytest.mark.parametrize(
    ("mine", "grams", "verdict"),
    [(0.5, 0.2, "better"), (0.2, 0.5, "worse"), (0.31, 0.3, "chance")],
)
def test_the_report_says_how_the_model_compares_with_the_gram(
    bundle: EncoderDecoderBundle, mine: float, grams: float, verdict: str
) -> None:
    (metrics,) = bundle.manifest.metrics
    shares = {"beam 2": mine, "6-gram": grams}
    measurements = [
        x.model_copy(update={"values": {**x.values, "exact_match": shares[x.name]}})
        for x in metrics.measurements
        if x.name in shares
    ]
    found = metrics.model_copy(update={"measurements": measurements, "pairs": 200})
    for last in (table([found]).splitlines()[-1], in_words([found])[-1]):
        assert verdict in last
        assert f"{100 * mine:.1f} % exactly" in last
        assert f"told how long each blank is {100 * grams:.1f} %" in last
