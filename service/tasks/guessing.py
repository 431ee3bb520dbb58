"""Guess numbers of scored texts: which requests can have them, and the number of one text."""

from collections.abc import Sequence

from service.bundle.guesses import NEVER, GuessCurve, Guesses
from service.errors import InvalidRequest
from service.tasks.unknown import Unknown
from service.tasks.values import ScoreOptions

_WHOLE = "a guess number is of a whole text, from its beginning to its end"


def check_guesses(
    curve: GuessCurve | None, options: ScoreOptions, contexts: Sequence[str] | None
) -> None:
    """Raise InvalidRequest if guess numbers are requested for texts that have none."""
    if not options.guesses:
        return
    if curve is None:
        raise InvalidRequest.of_option(
            "guesses",
            "this model has no guess numbers: the export estimates them for models of lines "
            '(documents = "line" in the training configuration) that are not too varied',
        )
    if options.eos is False:
        raise InvalidRequest.of_option("eos", f"not false with guesses: {_WHOLE}")
    if options.bos is False:
        raise InvalidRequest.of_option("bos", f"not false with guesses: {_WHOLE}")
    if contexts is not None or options.state is not None:
        option = "state" if contexts is None else "context"
        raise InvalidRequest.of_option(option, f"not together with guesses: {_WHOLE}")
    if options.adapt:
        raise InvalidRequest.of_option(
            "adapt", "not together with guesses, which are for the model as it was trained"
        )


def guesses_of(curve: GuessCurve | None, logprob: float, chars: int, unknown: Unknown) -> Guesses:
    """The guesses that a whole text takes; an unknown character is never guessed."""
    if curve is None or unknown.count:
        return NEVER
    return curve.of(logprob, chars)
