"""A model's tokens for clients that handle tokens themselves: texts to ids, and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from service.bundle.text import Normalization, Vocabulary
from service.bundle.tokenization import Tokenization, Tokenizer, special_ids
from service.decoding.normal_form import normal_form

Side: TypeAlias = Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class ClientVocabulary:
    """The tokens of one side, or of a model without sides."""

    tokenization: Tokenization
    normalization: Normalization
    tokenizer: Vocabulary | Tokenizer
    join: Callable[[Sequence[str]], str]  # printed tokens to a text
    max_length: int  # characters of a prompt, or tokens of a source

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""
        return self.tokenizer.tokens

    def ids_of(self, text: str) -> list[int]:
        """The ids of a text, in which printed special tokens are read as such."""
        return special_ids(self.tokenizer, normal_form(text, self.normalization, "prompt"))

    def text_of(self, ids: Sequence[int]) -> str:
        """The printed tokens of ids, joined as a text is."""
        return self.join([self.tokens[i] for i in ids])


# By side; the key is None for a model without sides.
Vocabularies: TypeAlias = Mapping[Side | None, ClientVocabulary]
