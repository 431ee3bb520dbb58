"""Options of `infill`: fills in the defaults and checks all options against the limits."""

from collections.abc import Sequence

from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.infill_values import Blanks, InfillOptions
from service.tasks.limits import at_most
from service.tasks.text_model import TextModel

MAX_BLANKS = 32
# Texts that are kept from one blank to the next, at least.
MIN_KEPT = 64


def kept_between_blanks(candidates: int, settings: Settings) -> int:
    """How many texts are kept from one blank to the next: all, while there are few."""
    return max(MIN_KEPT, settings.max_choices // max(1, candidates))


def check_infill(
    model: TextModel, texts: Sequence[Blanks], options: InfillOptions, *, is_proposed: bool
) -> None:
    """Raise InvalidRequest for what is too much; the first piece of a text is its `prefix`."""
    settings = model.settings
    if options.candidates is None and not is_proposed:
        raise InvalidRequest.of_option("candidates", "list what the blank may be")
    at_most("prefix", len(texts), settings.max_inputs, "texts")
    size = sum(len(piece) for text in texts for piece in text.pieces)
    # One prefix or suffix can stand in every text of a list: the body does not bound this.
    at_most("prefix", size, settings.max_queue_tokens, "characters")
    for text in texts:
        if not 2 <= len(text.pieces) <= 1 + MAX_BLANKS:
            raise InvalidRequest.of_option("text", f"a text has 1 to {MAX_BLANKS} blanks")
    if options.candidates is not None:
        _check_candidates(texts, options.candidates, settings)


def _check_candidates(
    texts: Sequence[Blanks], candidates: Sequence[str], settings: Settings
) -> None:
    option, chars = "candidates", sum(map(len, candidates))
    at_most(option, len(candidates), settings.max_choices, "candidates")
    at_most(option, chars, settings.max_choices_chars, "characters")
    most = kept_between_blanks(len(candidates), settings)
    cost = 0
    for text in texts:
        branches = 1
        for piece in text.pieces[1:]:
            cost += branches * (chars + len(candidates) * len(piece))
            branches = min(branches * len(candidates), most)
    unit = "characters to read: candidates · (their own and what stands after the blank)"
    at_most(option, cost, settings.max_queue_tokens, unit)
