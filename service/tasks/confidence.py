"""The confidence of translations: when the map of a model applies, and its values."""

from collections.abc import Sequence

from service.bundle.confidence import Confidence, Ranked
from service.decoding.search import Search
from service.errors import InvalidRequest
from service.tasks.translations import TranslateOptions


def check_confidence(
    confidence: Confidence | None, prefixes: Sequence[str], options: TranslateOptions
) -> None:
    """Raise InvalidRequest if `min_confidence` is given and there is no confidence."""
    if options.min_confidence is None:
        return
    if confidence is None:
        raise InvalidRequest.of_option(
            "min_confidence",
            "the bundle of this model has no confidence; `python -m training confidence` adds it",
        )
    if options.rule is not None:
        raise InvalidRequest.of_option(
            "min_confidence",
            "not together with a rule for the targets: the confidence was fitted without one",
        )
    option = "target_prefix" if any(prefixes) else unfitted_option(confidence, options)
    if option is not None:
        raise InvalidRequest.of_option(
            option, "not together with min_confidence: the confidence was fitted without it"
        )


def unfitted_option(confidence: Confidence, options: TranslateOptions) -> str | None:
    """The first option that makes a search unlike those that the map was fitted on."""
    fitted = {
        "temperature": options.sampling is None,
        "beam_size": options.width == confidence.beam_size,
        "length_penalty": options.length_penalty == confidence.length_penalty,
        "max_tokens": options.max_tokens is None,
        "copy_unknown": not options.copy_unknown,
        "unknown": options.unknown != "skip",
    }
    return next((option for option, is_fitted in fitted.items() if not is_fitted), None)


def confidence_of(confidence: Confidence | None, options: TranslateOptions) -> Confidence | None:
    """The confidence of searches with these options; None if it was fitted on others."""
    if confidence is None or unfitted_option(confidence, options) is not None:
        return None
    return confidence


def confidences(confidence: Confidence | None, search: Search) -> list[float | None]:
    """P(right) of each hypothesis of a search that has ended, or None for each.

    `confidence` must be that of its options.
    """
    found = search.best()
    if confidence is None or search.forced or search.constraint is not None:
        return [None] * len(found)
    if search.rival is None:
        return [None] * len(found)
    ranked = [Ranked(x.logprob, len(x.tokens), x.finish_reason == "stop") for x in found]
    return [*confidence.values(ranked, search.rival)]
