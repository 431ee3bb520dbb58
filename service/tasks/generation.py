"""The prompts of one `generate` request, from texts to ids, rows and texts again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.text import BOS_ID, PAD_ID, UNK_ID
from service.decoding.constraints import Constraint
from service.decoding.rows import Continuation, WriteRow
from service.scheduling.language_model import TextWork
from service.tasks.handles import Handle, NoisePlace, Seal
from service.tasks.scored_tokens import ScoredToken, scored_tokens
from service.tasks.seed import drawn_seed
from service.tasks.text_model import TextModel, read_after
from service.tasks.text_stream import offsets_of, pieces_of, read_ids, text_of
from service.tasks.unknown import Unknown
from service.tasks.values import Choice, Generated, GenerateOptions, Prompt, StreamUsage


class Generation:
    """Call `read`, run `works`, and take the results."""

    def __init__(
        self,
        model: TextModel,
        prompts: Sequence[Prompt],
        options: GenerateOptions,
        constraint: Constraint | None,
    ) -> None:
        """`options` must be checked. Raises InvalidRequest if their state cannot be continued."""
        self.prompts = prompts
        self.options = options
        self.works: list[TextWork] = []
        self.unknown: list[Unknown] = []
        self._model = model
        self._seal = model.seal(adapt=options.adapt)
        self._constraint = constraint
        self._beginning = _beginning(self._seal, options)

    def read(self) -> None:
        """Turn the prompts into work for the scheduler. Raises InvalidRequest."""
        read = [self._model.read_prompt(x, self.options.unknown) for x in self.prompts]
        self.unknown = [unknown for _, unknown in read]
        stop = self._stop_sequences()
        for ids, _ in read:
            # All prompts share one table of the constraint.
            held = 0 if self.works or self._constraint is None else self._constraint.cells
            self.works.append(self._work(ids, stop, held))

    def _stop_sequences(self) -> tuple[tuple[int, ...], ...]:
        texts = (self._model.encode(text, "stop") for text in self.options.stop)
        stop = (tuple(map(int, ids)) for ids in texts)
        # A stop string with a character that the model cannot write can never end a text.
        return tuple(sequence for sequence in stop if UNK_ID not in sequence)

    def _work(self, ids: Ids, stop: tuple[tuple[int, ...], ...], held: int) -> TextWork:
        options, beginning = self.options, self._beginning
        tokens = ids
        if beginning.after is None:
            tokens = np.empty(1 + len(ids), np.uint16)
            tokens[0], tokens[1:] = BOS_ID, ids
        tells = options.echo and options.logprobs is not None
        counted = tokens if tells else np.full_like(tokens, PAD_ID)
        read = read_after(beginning.after, tokens, counted, options.logprobs if tells else None)
        ended = _ended_before(options.max_tokens or 0, self._constraint)
        rows = [
            WriteRow(
                params=options.sampling,
                seed=beginning.noise.seed,
                choice=beginning.noise.choice + choice,
                drawn=beginning.noise.drawn,
                wants_continuation=options.return_state,
                max_tokens=options.max_tokens or 0,
                stop=stop,
                detail_top=options.logprobs,
                constraint=self._constraint,
                finish_reason=ended,
            )
            for choice in range(options.n)
        ]
        return TextWork(read, rows, held=held, adapt=options.adapt)

    @property
    def written(self) -> int:
        """Tokens of all choices."""
        return sum(len(row.tokens) for work in self.works for row in work.write)

    @property
    def answer_size(self) -> int:
        """Roughly how many characters the answer has."""
        options = self.options
        size = self.written + (sum(map(len, self.prompts)) if options.echo else 0)
        size *= 1 + (options.logprobs or 0)
        if options.return_state:
            size += sum(len(work.write) for work in self.works) * self._seal.handle_chars
        return size

    def results(self, reused: Sequence[int]) -> list[Generated]:
        """The choices of each prompt; `reused` has the tokens of each that needed no run."""
        columns = zip(self.prompts, self.works, reused, self.unknown, strict=True)
        return [self._result(*each) for each in columns]

    def usage(self, reused: Sequence[int]) -> StreamUsage:
        """The last event of a stream."""
        prompt_tokens = [len(read_ids(work)) for work in self.works]
        return StreamUsage(
            prompt_tokens=sum(prompt_tokens),
            completion_tokens=self.written,
            cached_tokens=sum(map(min, reused, prompt_tokens)),
            unknown=tuple(self.unknown),
        )

    def sealed(self, work: TextWork, row: WriteRow) -> str | None:
        """The handle of a choice that has ended; None after eos, and where none was asked for."""
        if not self.options.return_state:
            return None
        read = work.read
        continuation = row.continuation if row.tokens else read.continuation
        if continuation is None:
            return None
        position = self._beginning.position + len(read.tokens) + len(row.tokens)
        noise = NoisePlace(row.seed, row.choice, row.drawn + len(row.tokens))
        return self._seal.seal(Handle(continuation, position, noise), now=time.time())

    def _result(self, prompt: Prompt, work: TextWork, reused: int, unknown: Unknown) -> Generated:
        options, names = self.options, self._model.tokens
        prefix = text_of(prompt, names) if options.echo else ""
        before: Sequence[ScoredToken] = ()
        pieces: tuple[str, ...] = ()
        if options.echo and options.logprobs is not None:
            before = scored_tokens(names, read_ids(work), work.read.details)
            pieces = pieces_of(prompt, names, len(before))
        choices = tuple(self._choice(work, row, prefix, before, pieces) for row in work.write)
        prompt_tokens = len(read_ids(work))
        # bos is read, too, but not counted.
        return Generated(choices, prompt_tokens, min(reused, prompt_tokens), unknown)

    def _choice(
        self,
        work: TextWork,
        row: WriteRow,
        prefix: str,
        before: Sequence[ScoredToken],
        pieces: tuple[str, ...],
    ) -> Choice:
        model = self._model
        kept = len(row.tokens) - row.stop_tokens
        tokens: Sequence[ScoredToken] | None = None
        offsets: tuple[int, ...] = ()
        if self.options.logprobs is not None:
            tokens = scored_tokens(model.tokens, row.tokens, row.details).after(before)
            offsets = offsets_of(prefix, pieces, len(row.tokens), kept)
        return Choice(
            text=prefix + model.vocab.decode(row.tokens[:kept]),
            finish_reason=row.finish_reason or "length",
            seed=row.seed,
            tokens=tokens,
            completion_tokens=len(row.tokens),
            state=self.sealed(work, row),
            matched=_matched(row.constraint, row.tokens[:kept]),
            offsets=offsets,
        )


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Where the choices of a request begin."""

    noise: NoisePlace  # of the first choice; each further choice has a place of its own
    handle: Handle | None = None

    @property
    def after(self) -> Continuation | None:
        """What every prompt is read after."""
        return None if self.handle is None else self.handle.continuation

    @property
    def position(self) -> int:
        """Tokens read before the prompt."""
        return 0 if self.handle is None else self.handle.position


def _beginning(seal: Seal, options: GenerateOptions) -> _Beginning:
    """Where the choices begin, and their noise. Raises InvalidRequest."""
    if options.state is None:
        return _Beginning(NoisePlace(drawn_seed(options.seed), 0, 0))
    handle = seal.open(options.state, now=time.time())
    if options.seed is None and handle.noise is not None:
        return _Beginning(handle.noise, handle)
    return _Beginning(NoisePlace(drawn_seed(options.seed), 0, 0), handle)


def _ended_before(
    max_tokens: int, constraint: Constraint | None
) -> Literal["stop", "length"] | None:
    """Why a text ends before its first token; None if it goes on."""
    if constraint is not None and constraint.is_closed[0]:
        return "stop"
    return None if max_tokens else "length"


def _matched(constraint: Constraint | None, tokens: Sequence[int]) -> bool | None:
    return None if constraint is None else constraint.matches(tokens)
