"""Options of `infill`: fills in the defaults and checks all options against the limits."""

from collections.abc import Sequence
from dataclasses import replace

from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.infill_values import DEFAULT_MAX_TOKENS, DEFAULT_NUM_FILLS, Blanks, InfillOptions
from service.tasks.limits import at_most
from service.tasks.proposing import DEFAULT_NUM_PROPOSALS, WINDOW, Effort, most_held
from service.tasks.text_model import TextModel

MAX_BLANKS = 32
# Texts that are kept from one blank to the next, at least.
MIN_KEPT = 64


def kept_between_blanks(candidates: int, settings: Settings) -> int:
    """How many texts are kept from one blank to the next: all, as long as they are few."""
    return max(MIN_KEPT, settings.max_choices // max(1, candidates))


def checked_infill(
    model: TextModel, texts: Sequence[Blanks], options: InfillOptions
) -> InfillOptions:
    """The options with their defaults. Errors call the first piece of a text its `prefix`.

    Raises InvalidRequest.
    """
    settings = model.settings
    at_most("prefix", len(texts), settings.max_inputs, "texts")
    most = max(settings.max_choices, DEFAULT_NUM_FILLS)
    at_most("num_fills", options.num_fills, most, "fills")
    size = sum(len(piece) for text in texts for piece in text.pieces)
    # One prefix or suffix can stand in every text of a list: the body does not bound this.
    at_most("prefix", size, settings.max_queue_tokens, "characters")
    for text in texts:
        if not 2 <= len(text.pieces) <= 1 + MAX_BLANKS:
            raise InvalidRequest.of_option("prefix", f"a text has 1 to {MAX_BLANKS} blanks")
    if options.candidates is not None:
        _check_candidates(texts, options.candidates, settings)
        return options
    options = replace(
        options,
        max_tokens=_longest(options, model),
        num_proposals=options.num_proposals or DEFAULT_NUM_PROPOSALS,
    )
    _check_proposals(texts, options, model)
    return options


def _longest(options: InfillOptions, model: TextModel) -> int:
    """Most characters of an open blank."""
    if options.length is None:
        longest = options.max_tokens or min(DEFAULT_MAX_TOKENS, model.max_tokens)
        at_most("max_tokens", longest, model.max_tokens, "tokens")
        return longest
    at_most("length", options.length, model.max_tokens, "characters")
    if options.max_tokens is not None:
        at_most("length", options.length, options.max_tokens, "characters for max_tokens")
    return options.length


def _check_candidates(
    texts: Sequence[Blanks], candidates: Sequence[str], settings: Settings
) -> None:
    option, chars = "candidates", sum(map(len, candidates))
    if not candidates:
        raise InvalidRequest.of_option(option, "list at least one candidate")
    at_most(option, len(candidates), settings.max_choices, "candidates")
    at_most(option, chars, settings.max_choices_chars, "characters")
    unit = "characters to read: candidates · (their own and those after the blank)"
    cost = _cost(texts, len(candidates), chars, settings)
    at_most(option, cost, settings.max_queue_tokens, unit)


def _cost(texts: Sequence[Blanks], candidates: int, chars: int, settings: Settings) -> int:
    """The most characters to read for candidates that have `chars` together."""
    most = kept_between_blanks(candidates, settings)
    cost = 0
    for text in texts:
        branches = 1
        for piece in text.pieces[1:]:
            cost += branches * (chars + candidates * len(piece))
            branches = min(branches * candidates, most)
    return cost


def _check_proposals(texts: Sequence[Blanks], options: InfillOptions, model: TextModel) -> None:
    settings, longest = model.settings, options.max_tokens or 1
    option, proposals = "num_proposals", options.num_proposals or 1
    vocab_size = len(model.tokens)
    most = min(settings.max_choices, most_held(vocab_size))
    at_most(option, proposals, most, "proposals")
    if longest == 1:
        # Every character is a candidate.
        unit = "characters to read: characters of the vocabulary · characters after the blank"
        cost = _cost(texts, vocab_size, vocab_size, settings)
        at_most("suffix", cost, settings.max_queue_tokens, unit)
        return
    effort, blanks = Effort.of(proposals, vocab_size), sum(len(x.pieces) - 1 for x in texts)
    unit = "tokens to propose: blanks · (max_tokens - 1) · the beam's rows"
    at_most("max_tokens", blanks * effort.written(longest), settings.max_cost_tokens, unit)
    after = sum(len(piece) for text in texts for piece in text.pieces[1:])
    cost = proposals * after + blanks * effort.looked * WINDOW
    at_most(option, cost, settings.max_queue_tokens, "characters to read: proposals · suffix")
