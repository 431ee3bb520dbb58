"""How many values a JSON text holds: as many as its parser makes, wherever the parts are cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http import json_values
from service.http.json_values import holds_more_values

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(alphabet='a,[{\\"\u00e9', max_size=8)
)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(alphabet='a,{"\\', max_size=4), inner, max_size=4),
    ),
    max_leaves=20,
)


def marks(value: Any) -> int:
    """Commas and opening brackets that a document is written with."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(0, len(value) - 1) + sum(map(marks, inner))


@given(documents, st.booleans(), st.integers(1, 9))
def test_values_are_counted_and_what_stands_in_strings_is_not(
    document: Any, ascii_only: bool, part: int
) -> None:
    body = json.dumps(document, ensure_ascii=ascii_only).encode()
    count = marks(document)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_PART", part)
        assert not holds_more_values(body, count)
        assert count == 0 or holds_more_values(body, count - 1)
