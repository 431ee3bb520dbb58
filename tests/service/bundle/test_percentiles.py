"""The table of held-out texts in a manifest."""

from typing import Any

import pytest
from pydantic import ValidationError

from service.bundle.percentiles import Percentiles
from tests.bundles import plain_files

RANGE: dict[str, Any] = {
    "least_chars": 3,
    "most_chars": 9,
    "texts": 40,
    "ranks": [1, 20, 39, 40],
    "bits_per_char": [1.0, 2.0, 2.0, 5.5],
    "bits_per_char_with_eos": [1.5, 2.0, 3.0, 6.0],
}
LONGER = RANGE | {"least_chars": 10, "most_chars": 10}


def table(*ranges: dict[str, Any]) -> dict[str, Any]:
    return {"split": "test", "texts": "documents", "lengths": list(ranges)}


def test_a_manifest_has_one_or_none() -> None:
    assert plain_files()[0].percentiles is None
    manifest, _ = plain_files(percentiles=table(RANGE, LONGER))
    assert type(manifest).model_validate_json(manifest.model_dump_json()) == manifest
    assert manifest.percentiles is not None
    assert [x.texts for x in manifest.percentiles.lengths] == [40, 40]


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [RANGE, RANGE],
        [LONGER, RANGE],
        [RANGE | {"least_chars": 10}],
        [RANGE | {"ranks": [1, 20, 20, 40]}],
        [RANGE | {"ranks": [2, 20, 39, 40]}],
        [RANGE | {"texts": 41}],
        [RANGE | {"bits_per_char": [1.0, 2.0, 5.5]}],
        [RANGE | {"bits_per_char": [1.0, 2.0, 1.9, 5.5]}],
        [RANGE | {"bits_per_char_with_eos": [-1.0, 2.0, 3.0, 6.0]}],
        [RANGE | {"mean": 2.0}],
    ],
)
def test_a_table_that_is_not_whole_is_rejected(ranges: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        Percentiles.model_validate(table(*ranges))
