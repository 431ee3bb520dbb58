"""The texts of one `score` request of a language model, from texts to rows to scores."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.guesses import Guesses
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from service.decoding.rows import ReadRow
from service.errors import InvalidRequest
from service.scheduling.language_model import TextWork
from service.tasks.guessing import check_guesses, guesses_of
from service.tasks.handles import Handle
from service.tasks.limits import at_most, check_details
from service.tasks.percentiles import standing
from service.tasks.scored_tokens import ScoredToken, scored_tokens
from service.tasks.scored_words import ScoredWords
from service.tasks.text_model import TextModel, read_after
from service.tasks.unknown import Unknown
from service.tasks.values import Scored, ScoreOptions

_NO_IDS: Ids = np.empty(0, np.uint16)


class TextScoring:
    """Call `read`, run `works`, and take the results."""

    def __init__(
        self,
        model: TextModel,
        texts: Sequence[str],
        contexts: Sequence[str] | None,
        options: ScoreOptions,
    ) -> None:
        """`options` must be checked. Raises InvalidRequest and QueueFull."""
        settings = model.settings
        self._model = model
        self._seal = model.seal(adapt=options.adapt)
        self._options = replace(
            options,
            bos=options.bos is not False and options.state is None,
            eos=bool(options.eos) or options.guesses,
        )
        self._texts = texts
        self._contexts = contexts or [""] * len(texts)
        self._plans: list[_Plan] = []
        self.size = sum(map(len, texts)) + sum(map(len, self._contexts))
        check_guesses(model.manifest.guesses, options, contexts)
        at_most("text", len(texts), settings.max_inputs, "texts")
        # One context can stand before every text of a list: the body does not bound this.
        at_most("text", self.size, settings.max_queue_tokens, "characters, contexts included")
        if options.detail_top is not None:
            check_details("text", sum(map(len, texts)), options.detail_top, settings)
        if options.return_state:
            self._seal.check_count(len(texts), settings)
        self._handle: Handle | None = None
        if options.state is not None:
            self._handle = self._seal.open(options.state, now=time.time())

    def read(self) -> None:
        """Turn the texts into rows to read. Raises InvalidRequest."""
        pairs = zip(self._texts, self._contexts, strict=True)
        self._plans = [self._plan(text, context) for text, context in pairs]

    @property
    def works(self) -> list[TextWork]:
        """The rows to read."""
        adapt = self._options.adapt
        return [TextWork(x.row, adapt=adapt) for x in self._plans if x.row is not None]

    @property
    def answer_size(self) -> int:
        """Roughly how many characters the answer has."""
        options = self._options
        size = 0 if options.detail_top is None else self.size * (1 + options.detail_top)
        if options.return_state:
            size += len(self._texts) * self._seal.handle_chars
        return size

    def results(self, reused: Sequence[int]) -> list[Scored]:
        """The score of each text; `reused` has the tokens of each work that needed no run."""
        left = iter(reused)
        return [self._scored(x, 0 if x.row is None else next(left)) for x in self._plans]

    def _plan(self, text: str, context: str) -> "_Plan":
        options, handle = self._options, self._handle
        ids, unknown = self._model.read(text, options.unknown, "text")
        before = _NO_IDS
        if context:
            before, _ = self._model.read(context, options.unknown, "context")
        start = [BOS_ID] if options.bos else []
        end = [EOS_ID] if options.eos else []
        first = len(start) + len(before)  # counted
        sequence = np.empty(first + len(ids) + len(end), np.uint16)
        sequence[: len(start)] = start
        sequence[len(start) : first] = before
        sequence[first : first + len(ids)] = ids
        sequence[first + len(ids) :] = end
        counted = sequence.copy()
        counted[:first] = PAD_ID
        # The last token is read only if its state is returned, and never if it is eos.
        goes_on = options.return_state and not options.eos
        tokens = sequence if goes_on else sequence[:-1]
        row = None
        if handle is not None or (len(tokens) and (goes_on or counted[1:].any())):
            after = None if handle is None else handle.continuation
            row = read_after(after, tokens, counted, options.detail_top, goes_on=goes_on)
        return _Plan(
            row=row,
            text=text,
            ids=ids,
            unknown=unknown,
            context_tokens=len(before),
            lacks_first=handle is None and not (start or len(before)),
            read_before=0 if handle is None else handle.position,
        )

    def _scored(self, plan: "_Plan", reused: int) -> Scored:
        options, row = self._options, plan.row
        read = plan.context_tokens + len(plan.ids)
        scored = Scored(
            logprob=0.0 if row is None else row.logprob,
            chars=len(plan.ids) - plan.uncounted,
            bos=bool(options.bos),
            eos=bool(options.eos) and row is not None,
            unknown=plan.unknown,
            tokens=self._tokens(plan) if options.tokens else None,
            prompt_tokens=read,
            cached_tokens=min(reused, read),
            state=self._sealed(plan) if options.return_state else None,
            words=None if options.units is None else self._words(plan),
            guesses=self._guesses(plan) if options.guesses else None,
        )
        table = self._model.manifest.percentiles
        if not options.percentile or table is None:
            return scored
        found = standing(
            table, chars=scored.chars, bits_per_char=scored.bits_per_char, eos=scored.eos
        )
        return replace(scored, standing=found)

    def _tokens(self, plan: "_Plan") -> Sequence[ScoredToken]:
        """What is counted: the text, and eos where it is asked for."""
        names, uncounted, row = self._model.tokens, plan.uncounted, plan.row
        counted = np.append(plan.ids, np.uint16(EOS_ID)) if self._options.eos else plan.ids
        if row is None:
            counted = counted[:uncounted]
        first = tuple(ScoredToken(names[i], None, None, None, ()) for i in counted[:uncounted])
        details = [] if row is None else row.details
        return scored_tokens(names, counted[uncounted:], details).after(first)

    def _words(self, plan: "_Plan") -> ScoredWords:
        """The words of the text, as far as they are counted."""
        options, row = self._options, plan.row
        text = self._model.readable(plan.text, options.unknown)
        details = [] if row is None else row.details
        eos = bool(options.eos) and row is not None
        return ScoredWords(text, details, uncounted=plan.uncounted, eos=eos)

    def _guesses(self, plan: "_Plan") -> Guesses:
        """How many guesses the whole text takes."""
        # What is skipped is no part of the text that was scored.
        unknown = Unknown() if self._options.unknown == "skip" else plan.unknown
        logprob = 0.0 if plan.row is None else plan.row.logprob
        return guesses_of(self._model.manifest.guesses, logprob, len(plan.ids), unknown)

    def _sealed(self, plan: "_Plan") -> str | None:
        """The handle of a text that was read to its end; None where none was asked for."""
        row = plan.row
        if row is None or row.continuation is None:
            return None
        position = plan.read_before + len(row.tokens)
        return self._seal.seal(Handle(row.continuation, position), now=time.time())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """One text."""

    row: ReadRow | None  # None where nothing has to be read
    text: str  # as it came
    ids: Ids  # of the text, unknown characters dropped where they are skipped
    unknown: Unknown
    context_tokens: int
    lacks_first: bool  # nothing stands before the first token
    read_before: int  # tokens before the row's own

    @property
    def uncounted(self) -> int:
        """Tokens at the start of the text with nothing before them to predict them from."""
        return 1 if self.lacks_first and len(self.ids) else 0


def check_score_options(
    options: ScoreOptions,
    contexts: Sequence[str] | None,
    sources: Sequence[str] | None,
    *,
    has_percentiles: bool,
) -> None:
    """Raise InvalidRequest for options that a language model lacks or cannot combine."""
    if sources is not None:
        raise InvalidRequest.of_option("source", "a language model takes `context`, not `source`")
    if options.state is not None:
        if contexts is not None:
            raise InvalidRequest.of_option("context", "not together with state, which replaces it")
        if options.bos:
            raise InvalidRequest.of_option("bos", "a text after a state does not begin a document")
    if options.percentile:
        check_percentile(
            options, has_percentiles=has_percentiles, has_contexts=contexts is not None
        )


def check_percentile(options: ScoreOptions, *, has_percentiles: bool, has_contexts: bool) -> None:
    """Raise InvalidRequest for texts that are not scored as the held-out texts were."""
    if not has_percentiles:
        raise InvalidRequest.of_option(
            "percentile",
            "this bundle has no table of held-out texts; export its run again to add one (this "
            "needs at least 30 held-out texts)",
        )
    others = {
        "context": has_contexts,
        "state": options.state is not None,
        "bos": options.bos is False,
        "adapt": options.adapt,
        "unknown": options.unknown == "skip",
    }
    for option, is_given in others.items():
        if is_given:
            raise InvalidRequest.of_option(
                option,
                "not together with percentile: the held-out texts were scored whole, each from its "
                "beginning, by the model as it was trained",
            )
