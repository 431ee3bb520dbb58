"""Tests of what a text can lose."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.losses import Loss, lost, lost_character

LOSSES: list[list[Loss]] = [["accents"], ["case"], ["accents", "case"]]
TEXTS = st.text() | st.text("aàáâãäåāăąạảấđĐ\u0131İiIøłŁßæÆẞǿǾй한がќ Ω", max_size=30)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Žluťoučký kůň", "Zlutoucky kun"),
        ("Hôtel, déjà là", "Hotel, deja la"),
        ("árvíztűrő tükörfúrógép", "arvizturo tukorfurogep"),
        ("Đường Nguyễn Huệ", "Duong Nguyen Hue"),
        ("Iğd\u0131r, İzmir", "Igdir, Izmir"),
        ("Ǿlgod, Łódź", "Olgod, Lodz"),
        ("æ, ß, 한, x̌", "æ, ß, 한, x̌"),  # two sounds, syllables, a mark by itself
    ],
)
def test_accents_are_lost_a_character_for_a_character(text: str, left: str) -> None:
    assert lost(unicodedata.normalize("NFC", text), ["accents"]) == left


@pytest.mark.parametrize(("text", "left"), [("ÉTÉ Straße", "été straße"), ("İ ẞ", "İ ß")])
def test_case_is_lost_where_the_lower_case_is_one_character(text: str, left: str) -> None:
    assert lost(text, ["case"]) == left


def test_both_may_be_lost() -> None:
    assert lost("Đà Nẵng İ", ["accents", "case"]) == "da nang i"
    assert lost("Đà Nẵng", []) == "Đà Nẵng"


@given(TEXTS, st.sampled_from(LOSSES))
def test_a_text_keeps_its_length_and_loses_nothing_twice(text: str, loss: list[Loss]) -> None:
    left = lost(text, loss)

    assert len(left) == len(text)
    assert lost(left, loss) == left


def test_no_character_of_the_basic_plane_loses_more_at_a_second_time() -> None:
    characters = [chr(i) for i in range(0x10000) if not 0xD800 <= i < 0xE000]
    for loss in LOSSES:
        once = [lost_character(x, tuple(loss)) for x in characters]
        assert [lost_character(x, tuple(loss)) for x in once] == once
