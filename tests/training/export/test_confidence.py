"""The confidence of a bundle: training's number is the service's, and all else stays as it is."""

from pathlib import Path

import numpy as np
import pytest

from service.bundle.confidence import BEAM_SIZE, Ranked
from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.store import read_bundle, write_bundle
from service.bundle.text import EOS_ID
from service.decoding.search import Search
from service.runtime.encoder_decoder import OnnxEncoderDecoderSession
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from tests.bundles import ALPHABET, tiny_encoder_decoder_files
from tests.training.helpers import Main, tiny_encoder_decoder_document
from training.evaluation.confidence import Judge
from training.export.confidence import GraphSteps
from training.export.encoder_decoder_parity import OnnxEncoderDecoder

SHIPPED = Path(__file__).parents[3] / "models"


def written(folder: Path, **changes: object) -> Path:
    """A tiny bundle, with the configuration that its manifest keeps."""
    return write_bundle(folder, *tiny_encoder_decoder_files("gru", changes=changes))


def opened(path: Path) -> EncoderDecoderBundle:
    bundle = read_bundle(path)
    assert isinstance(bundle, EncoderDecoderBundle)
    return bundle


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(5)
    letters = sorted(set(ALPHABET) - {" ", "\n"})
    return ["".join(rng.choice(letters, int(rng.integers(1, 9)))) for _ in range(count)]


def served(bundle: EncoderDecoderBundle, sources: list[str]) -> list[Search]:
    """The sources, searched by the service."""
    runner = EncoderDecoderRunner(
        OnnxEncoderDecoderSession(bundle, bundle.manifest.precision), name="test"
    )
    searches = []
    for text in sources:
        ids = np.append(bundle.source.encode(text), np.uint16(EOS_ID))
        bound = bundle.manifest.limits.max_tokens(len(ids))
        searches.append(Search(ids, BEAM_SIZE, bound, num_hypotheses=BEAM_SIZE))
    runner.admit(searches)
    while not runner.free:
        assert not any(error for _, error in runner.run())
    return searches


def test_training_and_service_have_the_same_confidence_of_the_same_source() -> None:
    bundle = opened(SHIPPED / "g2p-en")
    confidence = bundle.manifest.confidence
    assert confidence is not None
    sources = ["unroll", "recurrent", "a", "xylophone", "cat", "o'neill", "thoroughly", "pqrst"]
    judge = Judge(
        steps=GraphSteps(OnnxEncoderDecoder.of_bundle(bundle)),
        precision=bundle.manifest.precision,
        source=bundle.source,
        target=bundle.target,
        limits=bundle.manifest.limits,
    )
    judged = judge.judged({text: ["a"] for text in sources})
    known = dict(zip(sources, judged, strict=True))
    for text, search in zip(sources, served(bundle, sources), strict=True):
        mine, found = known[text], search.best()
        assert search.rival is not None
        assert mine.rival == pytest.approx(search.rival, abs=1e-4)
        assert [x.logprob for x in mine.found] == pytest.approx(
            [x.logprob for x in found], abs=1e-4
        )
        ranked = [Ranked(x.logprob, len(x.tokens), x.finish_reason == "stop") for x in found]
        assert confidence.values(mine.found, mine.rival) == pytest.approx(
            confidence.values(ranked, search.rival), abs=1e-3
        )


def test_a_bundle_gets_a_confidence_from_pairs_of_one_s_own(tmp_path: Path, call: Main) -> None:
    config = tiny_encoder_decoder_document()
    training = {"config": config, "seed": 1, "steps": 0, "git_commit": None, "versions": {}}
    folder = written(tmp_path / "models", training=training)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bundle = opened(folder)
    sources = sorted(set(texts(260)))
    # Half of what the model writes is right.
    found = served(bundle, sources)
    pairs = tmp_path / "mine.tsv"
    pairs.write_text(
        "".join(
            f"{text}\t{bundle.target.decode(x.best()[0].tokens) if i % 2 else 'no'}\n"
            for i, (text, x) in enumerate(zip(sources, found, strict=True))
        )
    )
    status, out, err = call("confidence", folder, "--pairs", pairs)
    assert (status, err) == (0, "")
    assert "confidence, valid: calibration error" in out
    manifest = opened(folder).manifest
    assert manifest.confidence is not None
    assert manifest.confidence.split == "train"
    assert manifest.confidence.beam_size == BEAM_SIZE
    (measured,) = manifest.confidence.measured
    assert manifest.confidence.sources + measured.sources <= len(sources)
    # Nothing else has changed.
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert after.keys() == before.keys()
    assert manifest.model_copy(update={"confidence": None}) == bundle.manifest


def test_a_picture_needs_a_confidence(tmp_path: Path, call: Main) -> None:
    folder = written(tmp_path)
    status, _, err = call("reliability", folder, "--to", tmp_path / "picture.png")
    assert status == 1
    assert "it has no measured confidence to draw" in err


def test_too_few_pairs_are_refused_and_change_nothing(tmp_path: Path, call: Main) -> None:
    training = {
        "config": tiny_encoder_decoder_document(),
        "seed": 1,
        "steps": 0,
        "git_commit": None,
        "versions": {},
    }
    folder = written(tmp_path / "models", training=training)
    before = (folder / "manifest.json").read_bytes()
    pairs = tmp_path / "mine.tsv"
    pairs.write_text("".join(f"{text}\tno\n" for text in texts(50)))
    status, _, err = call("confidence", folder, "--pairs", pairs)
    assert status == 1
    assert "fitted on 100 sources at least" in err
    status, _, err = call("confidence", folder)
    assert status == 1
    assert "name either its CONFIG.toml or --pairs" in err
    assert (folder / "manifest.json").read_bytes() == before
