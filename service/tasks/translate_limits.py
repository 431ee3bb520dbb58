"""Options of an encoder-decoder's tasks: filled in, and checked against the limits."""

from collections.abc import Sequence
from dataclasses import replace

from service.decoding.search import Search
from service.errors import InvalidRequest
from service.tasks.limits import at_most, check_details
from service.tasks.sides import Sides
from service.tasks.translations import TranslateOptions, default_beam_size
from service.tasks.values import ScoreOptions

# One token's row of an alignment counts as this many alternatives among an answer's details.
_ATTENTION_DETAILS = 20


def checked_options(sides: Sides, options: TranslateOptions) -> TranslateOptions:
    """The options with their defaults. Raises InvalidRequest."""
    settings = sides.settings
    if options.beam_size is None:
        options = replace(options, beam_size=default_beam_size(settings.max_beam_size))
    if options.sampling is None:
        at_most("beam_size", options.width, settings.max_beam_size, "beams")
        beams = "hypotheses: as many as beams (beam_size)"
        at_most("num_hypotheses", options.num_hypotheses, options.width, beams)
    elif options.copy_unknown:
        raise InvalidRequest.of_option("copy_unknown", "needs temperature 0")
    at_most("num_hypotheses", options.num_hypotheses, settings.max_n, "hypotheses")
    if options.copy_unknown and options.rule is not None:
        detail = "not together with a rule for the targets, which no unknown token obeys"
        raise InvalidRequest.of_option("copy_unknown", detail)
    if not sides.manifest.memory and options.attends:
        option = "return_alignments" if options.return_alignments else "copy_unknown"
        raise InvalidRequest.of_option(option, "this model has no attention, so no alignment")
    return options


def check_costs(sides: Sides, searches: Sequence[Search], options: TranslateOptions) -> None:
    """Raise InvalidRequest where all searches together have too many tokens or details."""
    cost = sum(search.width * search.max_tokens for search in searches)
    rows = "num_hypotheses" if options.sampling is not None else "beam_size"
    unit = f"tokens: {rows} · max_tokens, over all sources"
    at_most("source", cost, sides.settings.max_cost_tokens, unit)
    detailed = {
        "tokens": options.tokens,
        "return_alignments": options.return_alignments,
        "copy_unknown": options.copy_unknown,
    }
    option = next((name for name, asked in detailed.items() if asked), None)
    if option is not None:
        told = sum(search.num_hypotheses * search.max_tokens for search in searches)
        check_details(option, told, _ATTENTION_DETAILS if options.attends else 0, sides.settings)


def checked_sources(
    sides: Sides,
    options: ScoreOptions,
    contexts: Sequence[str] | None,
    sources: Sequence[str] | None,
) -> Sequence[str]:
    """The sources. Raises InvalidRequest for what an encoder-decoder does not take."""
    if sources is None:
        raise InvalidRequest.of_option(
            "source", "an encoder-decoder scores a text given its source"
        )
    if contexts is not None or options.bos is False:
        option = "context" if contexts is not None else "bos"
        raise InvalidRequest.of_option(
            option, "an encoder-decoder scores a target from its beginning"
        )
    if options.adapt:
        raise InvalidRequest.of_option("adapt", "an encoder-decoder cannot adapt; leave it out")
    if options.percentile:
        raise InvalidRequest.of_option(
            "percentile", "an encoder-decoder has no table of held-out texts; leave it out"
        )
    if options.state is not None or options.return_state:
        option = "state" if options.state is not None else "return_state"
        raise InvalidRequest.of_option(option, "an encoder-decoder has no states to continue from")
    if options.guesses:
        raise InvalidRequest.of_option("guesses", "only language models have guess numbers")
    if options.units is not None and sides.manifest.target.tokenization != "character":
        raise InvalidRequest.of_option(
            "units",
            "this model's targets are not made of characters; `tokens` has a score each",
        )
    return sources
