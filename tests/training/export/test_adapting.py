"""Fitting how an output layer adapts, and what a bundle of one that does holds."""

import dataclasses

import numpy as np
import pytest
import torch

from service.bundle.language_model import LanguageModelBundle
from service.bundle.manifest import Precision, Role
from service.bundle.store import read_language_model
from service.bundle.text import EOS_ID
from service.runtime.adapting import language_model_sessions
from tests.training.helpers import (
    FABLE,
    documents,
    split_of,
    tiny_document,
    tiny_model,
    write_toml,
)
from training.__main__ import main
from training.errors import ExportError
from training.evaluation.fitting import Shares
from training.export import adapting_fit
from training.export.adapting import adapting_golden, adapting_graphs, measured_adapting
from training.export.adapting_fit import fit_adaptation
from training.export.language_model import build_graphs
from training.export.manifest_parts import Graphs
from training.export.precision import in_double
from training.networks.adapting import Adaptation, Adapting
from training.networks.language_model import LanguageModel

V = 11
ALONE = Shares((1.0,), (1.0,))
# What a held-out text repeats, and the training text never says.
REFRAIN = "the crow had stolen the cheese, said the fox.\n"
OTHER_REFRAIN = "grapes of wrath are what a hungry vine gets.\n"
ADAPTATION = Adaptation(
    rate=0.2, decay=0.0, projections=[None], scales=[1.0], weights=[1.0], exponent=1.0
)


def some_model() -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return tiny_model(V)


def repetitive() -> list[int]:
    return [4 + i for i in np.random.default_rng(0).integers(0, V - 4, 9)] * 30


# --- the fit --------------------------------------------------------------------------------------


def test_a_text_that_resembles_itself_is_worth_adapting_to() -> None:
    model = some_model()
    found = fit_adaptation(model, ALONE, split_of([repetitive()]), rank=None)
    assert found is not None
    assert found.rate > 0.0
    assert (found.projections, found.weights, found.exponent) == ([None], (1.0,), 1.0)


def test_a_large_vocabulary_is_fitted_on_less_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = repetitive()
    monkeypatch.setattr(adapting_fit, "_MAX_LOGITS", len(text) * V)
    text, other = [*text, *text], [*text, *[4] * 100]
    found = [fit_adaptation(some_model(), ALONE, split_of([x]), rank=None) for x in (text, other)]
    assert found[0] is not None
    assert found[0] == found[1]


def test_the_projection_has_the_rank_and_orthonormal_rows() -> None:
    found = fit_adaptation(some_model(), ALONE, split_of([repetitive()]), rank=3)
    assert found is not None
    projection = found.projections[0]
    assert projection is not None
    np.testing.assert_allclose(projection @ projection.T, np.eye(3), atol=1e-6)


def test_short_texts_are_not_worth_adapting_to(caplog: pytest.LogCaptureFixture) -> None:
    letters = np.random.default_rng(1).integers(4, V, 300)
    model = some_model()
    with torch.no_grad():
        model.output.weight.zero_()
        counts = np.bincount(letters, minlength=V) + 300.0 * (np.arange(V) == EOS_ID) + 1e-3
        model.output.bias.copy_(torch.from_numpy(np.log(counts)))
    found = fit_adaptation(model, ALONE, split_of([[int(x)] for x in letters]), rank=None)
    assert found is None
    assert "adapting gains too little" in caplog.text


def test_the_rank_is_lowered_to_what_a_row_may_carry() -> None:
    wide = tiny_model(15_000)
    found = fit_adaptation(wide, ALONE, split_of([[5, 6, 7] * 20]), rank=None)
    assert found is None or found.projections[0] is not None
    assert fit_adaptation(tiny_model(20_000), ALONE, split_of([[5, 6]]), rank=None) is None


# --- checks of the graphs -------------------------------------------------------------------------

TEXT = split_of([repetitive(), repetitive()[:50], [5]])


def measured(changes: Graphs | None = None) -> float:
    """The loss while adapting in fp32, after every check; `changes` replace graphs."""
    model = some_model()
    graphs = {**build_graphs(model, adapting=True), **adapting_graphs(model, ADAPTATION)}
    golden = adapting_golden(model, ADAPTATION, TEXT, ["fp32", "int8"])
    found = measured_adapting(model, ADAPTATION, {**graphs, **(changes or {})}, TEXT, golden)
    assert [(x.name, x.kind) for x in found] == [("fp32", "adapting"), ("int8", "adapting")]
    return found[0].loss


def test_the_graphs_measure_what_the_formulas_do() -> None:
    exact = in_double(Adapting(some_model(), ADAPTATION))
    nats = 0.0
    for document in documents(TEXT):
        tokens = torch.tensor([document])
        with torch.no_grad():
            logprobs, _ = exact(tokens[:, :-1], exact.initial_states(1))
        nats -= float(logprobs[0].gather(1, tokens[0, 1:, None]).sum())
    assert measured() == pytest.approx(nats / TEXT.tokens, abs=1e-5)


def test_graphs_of_another_rate_are_refused() -> None:
    other = adapting_graphs(some_model(), dataclasses.replace(ADAPTATION, rate=0.21))
    with pytest.raises(ExportError, match="the adapting graphs and PyTorch in double"):
        measured(other)


def test_a_step_graph_of_another_rate_is_refused() -> None:
    kind: tuple[Precision, Role] = ("fp32", "adapt_step")
    other = adapting_graphs(some_model(), dataclasses.replace(ADAPTATION, rate=0.21))[kind]
    with pytest.raises(ExportError, match="depend on how a text is cut into calls"):
        measured({kind: other})


# --- a run to a bundle ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelBundle:
    """A mixture with an n-gram, whose held-out texts repeat what its training text never says."""
    folder = tmp_path_factory.mktemp("adapting")
    for name, text in (("train", FABLE), ("valid", REFRAIN * 20), ("test", OTHER_REFRAIN * 20)):
        (folder / f"{name}.txt").write_text(text)
    document = tiny_document(training={"steps": 20, "eval_every": 20, "learning_rate": 0.02})
    document["data"] = {f"{x}_files": [f"{x}.txt"] for x in ("train", "valid", "test")}
    document |= {"ngram": {"order": 3}, "adapt": {"rank": 5}}
    config = write_toml(folder / "config.toml", document)
    run = folder / "run"
    assert main(["train", str(config), "--run", str(run)]) == 0
    assert main(["export", str(run), "--models", str(folder / "models")]) == 0
    return read_language_model(folder / "models" / "tiny")


def test_the_bundle_measures_both(exported: LanguageModelBundle) -> None:
    metrics = exported.manifest.metrics.measurements
    static, adapting = (
        {x.name: x.bits_per_char for x in metrics if x.kind == kind}
        for kind in ("model", "adapting")
    )
    assert adapting.keys() == {x.precision for x in exported.manifest.graphs}
    assert all(adapting[name] != static[name] for name in adapting)
    assert adapting["int8"] == pytest.approx(adapting["fp32"], abs=0.01)


def test_the_manifest_says_how_it_adapts(exported: LanguageModelBundle) -> None:
    manifest = exported.manifest
    assert manifest.adapt is not None
    assert manifest.adapt.rank == 5
    assert sum(manifest.adapt.weights) == pytest.approx(1.0)
    assert [x is None for x in manifest.adapt.temperatures] == [False, True]
    assert [(x.name, x.shape[-1]) for x in manifest.adapt.states] == [
        ("adapt_weights0", 5),
        ("adapt_features0", 5),
        ("adapt_errors0", manifest.vocab.size),
        ("adapt_filled", 1),
    ]


def test_there_is_a_known_answer_of_each_precision(exported: LanguageModelBundle) -> None:
    manifest = exported.manifest
    adapting = {x.precision for x in manifest.golden if x.adapt}
    assert adapting == {x.precision for x in manifest.graphs}


def test_the_service_opens_it(exported: LanguageModelBundle) -> None:
    for precision in exported.precisions:
        _, adapting = language_model_sessions(exported, precision)
        assert adapting is not None
