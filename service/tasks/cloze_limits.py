"""Options of `infill` for a model that sees both sides of a blank: filled in and checked."""

from collections.abc import Sequence

from service.bundle.infill import Infill
from service.decoding.blank_constraint import BlankTexts
from service.decoding.constraints import Constraint
from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.infill_values import DEFAULT_MAX_TOKENS, Blanks, InfillOptions
from service.tasks.limits import at_most

MAX_BLANKS = 32
# Texts that are searched for together, where a request names no number.
DEFAULT_PROPOSALS = 20


def open_blank(
    infill: Infill, options: InfillOptions, settings: Settings, rule: Constraint | None
) -> BlankTexts:
    """What the text of an open blank may be. Raises InvalidRequest."""
    max_tokens, length = options.max_tokens, options.length
    at_most("max_tokens", max_tokens or 0, settings.max_tokens, "characters of a blank")
    if length is None:
        return BlankTexts(1, min(max_tokens or DEFAULT_MAX_TOKENS, infill.max_chars), rule)
    unit = "characters for this model, which was trained on shorter blanks"
    at_most("length", length, infill.max_chars, unit)
    at_most("length", length, max_tokens or length, "characters for max_tokens")
    return BlankTexts(length, length, rule)


def check_texts(texts: Sequence[Blanks], options: InfillOptions, settings: Settings) -> None:
    """Raise InvalidRequest for what exceeds a limit; the first piece of a text is its `prefix`."""
    at_most("prefix", len(texts), settings.max_inputs, "texts")
    # One prefix or suffix can stand in every text of a list: the body does not bound this.
    size = sum(len(piece) for text in texts for piece in text.pieces)
    at_most("prefix", size, settings.max_queue_tokens, "characters")
    for text in texts:
        if not 2 <= len(text.pieces) <= 1 + MAX_BLANKS:
            raise InvalidRequest.of_option("text", f"a text has 1 to {MAX_BLANKS} blanks")
    at_most("num_fills", options.num_fills, settings.max_choices, "fills")
    if options.candidates is not None:
        at_most("candidates", len(options.candidates), settings.max_choices, "candidates")
        chars = sum(map(len, options.candidates))
        at_most("candidates", chars, settings.max_choices_chars, "characters")
        if not all(options.candidates):
            raise InvalidRequest.of_option(
                "candidates", "must not be empty: this model was trained on no empty blanks"
            )


def beam_width(options: InfillOptions, settings: Settings) -> int:
    """Texts that are searched for together."""
    return min(options.num_proposals or DEFAULT_PROPOSALS, settings.max_beam_size)
