"""The two sides of an encoder-decoder: how texts become tokens, and how many tokens are allowed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.encoder_decoder import EncoderDecoderBundle, EncoderDecoderManifest
from service.bundle.text import EOS_ID, UNK_ID, is_blank
from service.bundle.text_side import TextSide
from service.bundle.tokenization import Tokenizer
from service.decoding.normal_form import normal_form
from service.settings import Settings
from service.tasks.limits import at_most
from service.tasks.unknown import Unknown, UnknownPolicy, unknown_text

# White space around a text that the limit on characters allows for: it is stripped.
_MAX_BLANKS = 1024
_FEW_IDS = 64
_EOS = np.array([EOS_ID], np.uint16)


@dataclass(frozen=True, slots=True)
class SideText:
    """A text of one side on its way into the model."""

    text: str  # normalized, without what is skipped
    ids: Ids  # a source's ids end with eos
    unknown: Unknown  # skipped or not

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to translate."""
        return is_blank(self.text)


@dataclass(frozen=True, slots=True)
class SideReader:
    """Source or target."""

    rules: TextSide
    tokenizer: Tokenizer
    max_chars: int  # longer texts have too many tokens, however they are cut

    @classmethod
    def of(cls, rules: TextSide, tokenizer: Tokenizer, max_tokens: int) -> Self:
        """For texts of at most `max_tokens` tokens."""
        return cls(rules, tokenizer, _most_chars(max_tokens, tokenizer))

    def read(self, text: str, policy: UnknownPolicy, option: str) -> SideText:
        """The normalized text after the policy on unknown characters, with its ids.

        After a skip the text is normalized again: a blank beside a skipped character may now stand
        at an end. Raises InvalidRequest.
        """
        rules = self.rules.normalization
        text = normal_form(text, rules, option)
        ids = self.tokenizer.encode(text)
        spans = unknown = self.unknown_spans(ids, text)
        if policy == "error" and unknown:
            raise unknown_text(option, unknown_at(unknown))
        while policy == "skip" and spans:
            text = normal_form(_without(text, spans), rules, option)
            ids = self.tokenizer.encode(text)
            spans = self.unknown_spans(ids, text)
        return SideText(text, ids, unknown_at(unknown))

    def unknown_spans(self, ids: Ids, text: str) -> list[tuple[int, int]]:
        """Where the text has characters outside the vocabulary."""
        # Of few numbers, a list is searched in a seventh of the time.
        if len(ids) <= _FEW_IDS and UNK_ID not in ids.tolist():
            return []
        unknown = ids == UNK_ID
        if not unknown.any():
            return []
        spans = self.tokenizer.spans(text)
        return [spans[i] for i in np.flatnonzero(unknown).tolist()]


@dataclass(frozen=True, slots=True)
class Sides:
    """An encoder-decoder as the tasks on text see it: everything but its workers."""

    manifest: EncoderDecoderManifest
    source: SideReader
    target: SideReader
    settings: Settings

    @classmethod
    def of(cls, bundle: EncoderDecoderBundle, settings: Settings) -> Self:
        """From a bundle."""
        manifest = bundle.manifest
        source = SideReader.of(manifest.source, bundle.source, manifest.limits.max_source_tokens)
        target = SideReader.of(manifest.target, bundle.target, settings.max_tokens)
        return cls(manifest, source, target, settings)

    def check_lengths(
        self, sources: Sequence[str], targets: Sequence[str], target_option: str
    ) -> None:
        """Raise InvalidRequest for texts that have too many tokens however they are cut.

        This check comes first because it costs next to nothing.
        """
        longest = max(map(len, sources), default=0)
        at_most("source", longest, self.source.max_chars, "characters in a source")
        longest = max(map(len, targets), default=0)
        at_most(target_option, longest, self.target.max_chars, "characters in a target")

    def read_source(self, source: str, policy: UnknownPolicy) -> SideText:
        """A source with its eos. Raises InvalidRequest."""
        read = self.source.read(source, policy, "source")
        limit = self.manifest.limits.max_source_tokens
        at_most("source", len(read.ids), limit, "tokens in a source")
        return SideText(read.text, np.concatenate((read.ids, _EOS)), read.unknown)

    def fits(self, source: str) -> bool:
        """Whether a source is within the model's limit."""
        if len(source) > self.source.max_chars:
            return False
        text = normal_form(source, self.manifest.source.normalization)
        return len(self.source.tokenizer.encode(text)) <= self.manifest.limits.max_source_tokens


def unknown_at(spans: Sequence[tuple[int, int]]) -> Unknown:
    """Unknown characters by their spans in the text."""
    return Unknown.at([start for start, _ in spans])


def _most_chars(tokens: int, tokenizer: Tokenizer) -> int:
    """An upper bound on the characters that this many tokens can stand for.

    Normalization merges at most four characters into one, and strips blanks at both ends.
    """
    longest = max(map(len, tokenizer.tokens)) + 1  # a blank between symbols
    return 4 * tokens * longest + _MAX_BLANKS


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text outside of the spans, which are in order."""
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))
