"""Manifests of labelers that the service could not answer with are refused when they are read."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from service.bundle.labeler import MAX_TOKENS, LabelerManifest
from tests.labelers import Sort, tiny_labeler_files

Change = Callable[[dict[str, Any]], object]


def _short_row(manifest: dict[str, Any]) -> object:
    return manifest["chain"]["transitions"][2].pop()


def _two_states_of_a_name(manifest: dict[str, Any]) -> object:
    return manifest["states"].append(manifest["states"][0])


@pytest.mark.parametrize(
    ("sort", "change", "message"),
    [
        ("chain", _short_row, "one number for every label"),
        # Sums of these have no digits left for the text, or are infinite.
        ("chain", lambda x: x["chain"].update(first=[1e308] * 5), r"chain\.first\.0"),
        ("chain", lambda x: x["chain"].update(last=[-1e5] * 5), r"chain\.last\.0"),
        # A state handle would hold other numbers than the session gives.
        ("forward", _two_states_of_a_name, "states: names must be unique"),
        ("forward", lambda x: x.update(states=[]), "states: for models that read forward"),
        # One step of a worker would take longer than the watchdog waits.
        ("text", lambda x: x["limits"].update(max_tokens=MAX_TOKENS + 1), r"limits\.max_tokens"),
        ("text", lambda x: x["labels"].update(names=["de", "en", "de"]), "they must differ"),
        ("plain", lambda x: x["labels"].update(applied=True), "labels are characters"),
    ],
)
def test_a_manifest_that_cannot_be_served_is_refused(
    sort: Sort, change: Change, message: str
) -> None:
    manifest, _ = tiny_labeler_files(sort)
    document = manifest.model_dump(mode="json")
    assert LabelerManifest.model_validate(document) == manifest
    change(document)
    with pytest.raises(ValidationError, match=message):
        LabelerManifest.model_validate(document)
