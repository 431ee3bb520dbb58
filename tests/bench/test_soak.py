"""What the soak sends and how it judges."""

import random

import pytest

from bench.soak import slope
from bench.soak_random import is_right
from bench.soak_requests import random_request
from bench.soak_wire import Models, Outcome, Wire

MODELS = Models(("one", "other"), ("pairs",), ("classifier",), ("tagger",))


def test_the_same_seed_gives_the_same_requests_of_many_kinds() -> None:
    drawn = [
        [random_request(rng, MODELS, {"one": ["a-state"]}) for _ in range(500)]
        for rng in (random.Random(3), random.Random(3), random.Random(4))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({wire.kind for wire in drawn[0]}) > 24


@pytest.mark.parametrize(
    ("outcome", "status", "body", "right"),
    [
        ("answered", 200, b"", True),
        ("answered", 422, b"", False),
        ("refused", 422, b"", True),
        ("refused", 200, b"", False),
        ("either", 404, b"", True),
        ("either", 500, b"", False),
        ("either", 504, b"", False),
        ("answered", 200, b'event: error\ndata: {"status":503}', False),
    ],
)
def test_an_answer_is_judged_by_its_status_and_by_what_failed_inside(
    outcome: Outcome, status: int, body: bytes, right: bool
) -> None:
    assert is_right(Wire("any", "POST", "/score", outcome=outcome), status, body) == right


def test_only_a_request_with_a_deadline_of_its_own_may_be_late() -> None:
    assert is_right(Wire("any", "POST", "/score", timeout_s=0.01), 504, b"")


def test_growth_is_told_from_noise() -> None:
    places = list(range(5000, 40_000, 500))
    noise = [random.Random(place).gauss(0, 5) for place in places]
    assert slope(places, noise, 8.0).flat
    growing = [x + place / 1000 for x, place in zip(noise, places, strict=True)]
    found = slope(places, growing, 8.0)
    assert found.slope == pytest.approx(10, abs=4 * found.error)
    assert not slope(places, [3 * x for x in growing], 8.0).flat
