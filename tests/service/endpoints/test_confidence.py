"""`confidence` and `min_confidence` of `/translate`."""

from collections.abc import Iterator
from typing import Any

import pytest

from service.app import create_app
from service.bundle.confidence import Ranked
from service.settings import Settings
from service.tasks.encoder_decoder import EncoderDecoderEngine
from tests.bundles import CONFIDENCE, encoder_decoder_in_memory, tiny_encoder_decoder_files
from tests.fakes import AppClient, FakeEncoderDecoderSession

SOURCES = ["a", "abc", "a cat in a hat", "rabbit, rabbit, rabbit!"]
# Options under which there is no map, each with the option that the refusal names.
UNFITTED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0.7}, "temperature"),
    ({"beam_size": 4}, "beam_size"),
    ({"length_penalty": 0.5}, "length_penalty"),
    ({"max_tokens": 3}, "max_tokens"),
    ({"copy_unknown": True}, "copy_unknown"),
    ({"unknown": "skip"}, "unknown"),
    ({"target_prefix": "the"}, "target_prefix"),
    ({"pattern": "[a-z ]*"}, "min_confidence"),
    ({"must_contain": "cat"}, "min_confidence"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[AppClient]:
    """One model with a confidence and one without; they find the same."""
    settings = Settings()
    engines = []
    for name, confidence in (("rated", CONFIDENCE), ("bare", None)):
        changes = {"confidence": confidence}
        bundle = encoder_decoder_in_memory(
            *tiny_encoder_decoder_files("gru", name=name, changes=changes)
        )
        session = FakeEncoderDecoderSession(vocab_size=len(bundle.target.tokens))
        engines.append(EncoderDecoderEngine(bundle, session, settings, precision="fp32"))
    with AppClient(create_app(settings, engines)) as running:
        yield running


def results(client: AppClient, source: Any = "abc", model: str = "rated", **options: Any) -> Any:
    return client.ask("/translate", model=model, source=source, **options)["results"]


def confidences(client: AppClient, **options: Any) -> list[float | None]:
    (result,) = results(client, **options)
    return [x["confidence"] for x in result["hypotheses"]]


@pytest.mark.parametrize("source", SOURCES)
def test_every_hypothesis_has_a_confidence_that_does_not_depend_on_how_many_there_are(
    client: AppClient, source: str
) -> None:
    values = confidences(client, source=source, num_hypotheses=5)
    assert len(values) == 5
    assert all(x is not None and 0.0 <= x <= 1.0 for x in values)
    assert values[0]
    assert sum(x or 0.0 for x in values) <= CONFIDENCE.targets + 1e-12
    for count in range(1, 5):
        assert confidences(client, source=source, num_hypotheses=count) == values[:count]


def test_others_are_compared_with_the_best(client: AppClient) -> None:
    (result,) = results(client, num_hypotheses=2, tokens=True)
    best, other = result["hypotheses"]
    assert other["finish_reason"] == "stop"
    ranked = Ranked(other["logprob"], len(other["tokens"]), finished=True)
    value = CONFIDENCE.others.value(ranked, other["logprob"] - best["logprob"])
    left = CONFIDENCE.targets - best["confidence"]
    assert other["confidence"] == pytest.approx(min(value, left))


def test_a_model_without_a_map_has_no_confidence(client: AppClient) -> None:
    assert confidences(client, model="bare", num_hypotheses=2) == [None, None]
    (result,) = results(client, model="bare")
    assert result["abstained"] is False


@pytest.mark.parametrize(("options", "option"), UNFITTED, ids=str)
def test_a_search_that_the_map_was_not_fitted_on_has_no_confidence(
    client: AppClient, options: dict[str, Any], option: str
) -> None:
    assert confidences(client, **options) == [None]
    response = client.post(
        "/translate", json={"model": "rated", "source": "abc", "min_confidence": 0.5, **options}
    )
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["pointer"] == f"/{option}"
    assert "the confidence was fitted without" in error["detail"]


def test_what_is_less_sure_is_left_out(client: AppClient) -> None:
    sources = [*SOURCES, " "]
    everything = results(client, sources, num_hypotheses=3)
    values = sorted(x["confidence"] for each in everything for x in each["hypotheses"])
    for least in (0.0, values[len(values) // 2], values[-2], 1.0):
        found = results(client, sources, num_hypotheses=3, min_confidence=least)
        for whole, kept in zip(everything, found, strict=True):
            sure = [x for x in whole["hypotheses"] if x["confidence"] >= least]
            assert kept == whole | {"hypotheses": sure, "abstained": not sure}
    # Nothing was in doubt about the blank source.
    assert [x["abstained"] for x in found] == [True] * len(SOURCES) + [False]


def test_min_confidence_needs_a_model_with_a_map(client: AppClient) -> None:
    body = {"model": "bare", "source": "abc", "min_confidence": 0.5}
    (error,) = client.post("/translate", json=body).json()["errors"]
    assert error["pointer"] == "/min_confidence"
    assert "python -m training confidence" in error["detail"]


@pytest.mark.parametrize("value", [-0.1, 1.1, "high"])
def test_min_confidence_is_a_probability(client: AppClient, value: Any) -> None:
    body = {"model": "rated", "source": "abc", "min_confidence": value}
    assert client.post("/translate", json=body).status_code == 422


def test_a_stream_does_not_abstain_and_its_end_has_the_confidence(client: AppClient) -> None:
    body = {"model": "rated", "source": "abc", "stream": True}
    refused = client.post("/translate", json=body | {"min_confidence": 0.5})
    assert refused.status_code == 422
    assert "not together with stream" in refused.json()["errors"][0]["detail"]
    end = client.post("/translate", json=body).text.split("event: done")[1]
    (value,) = confidences(client)
    assert f'"confidence":{value}' in end
