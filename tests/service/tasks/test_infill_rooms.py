"""What a list of texts with blanks holds at once."""

import pytest

from service.settings import Settings
from service.tasks.infill_values import Blanks, InfillOptions
from service.tasks.infilling import ROWS_IN_HAND, Infilling
from service.tasks.text_model import TextModel
from tests.bundles import in_memory, plain_files

CHARACTERS = "abcdefgh"


@pytest.mark.parametrize(
    ("candidates", "blanks", "together"),
    [(2, 1, 512), (2, 2, 256), (2, 9, 2), (2, 10, 1), (2, 32, 1), (1, 32, 1024), (8, 2, 16)],
)
def test_texts_run_together_as_long_as_their_combinations_are_few(
    candidates: int, blanks: int, together: int
) -> None:
    """Two candidates for each of ten blanks have 1024 combinations."""
    bundle = in_memory(*plain_files("fake", CHARACTERS), CHARACTERS)
    model = TextModel.of(bundle, "fp32", Settings())
    options = InfillOptions(candidates=tuple(CHARACTERS[:candidates]))
    infilling = Infilling(model, [Blanks(("a",) * (blanks + 1))] * 1024, options, None)
    infilling.read()
    assert {len(group) for group in infilling.groups()} == {together}
    assert together * min(candidates**blanks, ROWS_IN_HAND) <= ROWS_IN_HAND
