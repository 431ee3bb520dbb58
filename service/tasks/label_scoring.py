"""`score` of labels: log P(label | text), the number that `classify` gives."""

from collections.abc import Mapping, Sequence

from service.errors import InvalidRequest
from service.tasks.classification import Classification
from service.tasks.label_model import LabelModel
from service.tasks.label_values import ClassifyOptions
from service.tasks.values import Scored, ScoreOptions

# Most labels that an error lists, and most characters of each.
_LISTED_LABELS = 32
_LISTED_CHARS = 64


class LabelScoring:
    """Call `classification.read`, run its works, and take the results."""

    def __init__(
        self,
        model: LabelModel,
        texts: Sequence[str],
        labels: Sequence[str],
        options: ScoreOptions,
    ) -> None:
        """Raises InvalidRequest and QueueFull."""
        check_label_options(options)
        ids = {name: i for i, name in enumerate(model.label_names)}
        if any(label not in ids for label in labels):
            raise InvalidRequest.of_option("label", _no_such_label(model.label_names))
        self._labels = [ids[label] for label in labels]
        asked = ClassifyOptions(top=1, unknown=options.unknown)
        self.classification = Classification(model, texts, asked)

    def results(self) -> list[Scored]:
        """The score of each text's label."""
        rows = zip(
            self.classification.read_texts,
            self.classification.logprobs,
            self._labels,
            strict=True,
        )
        return [
            Scored(
                logprob=float(logprobs[label]),
                chars=0,  # the text is given, so none of its characters is counted
                bos=True,
                eos=False,
                unknown=text.unknown,
                tokens=None,
                prompt_tokens=len(text.ids),
                cached_tokens=0,
            )
            for text, logprobs, label in rows
        ]


def check_label_options(options: ScoreOptions) -> None:
    """Raise InvalidRequest for options that only make sense for scored texts."""
    given: Mapping[str, bool] = {
        "tokens": options.tokens,
        "units": options.units is not None,
        "guesses": options.guesses,
        "percentile": options.percentile,
        "adapt": options.adapt,
        "bos": options.bos is False,
        "eos": options.eos is not None,
        "state": options.state is not None,
        "return_state": options.return_state,
    }
    for option, is_given in given.items():
        if is_given:
            raise InvalidRequest.of_option(
                option, "not together with label: it scores the label, not the text"
            )


def _no_such_label(names: Sequence[str]) -> str:
    listed = ", ".join(name[:_LISTED_CHARS] for name in names[:_LISTED_LABELS])
    more = "" if len(names) <= _LISTED_LABELS else f" and {len(names) - _LISTED_LABELS} more"
    return f"not a label of this model; its labels are {listed}{more}"
