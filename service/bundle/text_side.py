"""How the texts of one side become tokens: the manifest's part, and its files."""

from typing import Self

from pydantic import Field, model_validator

from service.bundle.files import (
    MAX_VOCAB_BYTES,
    BundleError,
    check_sha256,
    check_size,
    parsed,
    read_file,
    read_vocab,
)
from service.bundle.links import BundleFolder
from service.bundle.manifest import FileName, Record, Sha256, VocabFile
from service.bundle.text import SideNormalization
from service.bundle.tokenization import Characters, Subwords, Symbols, Tokenization, Tokenizer


class TokenizerFile(Record):
    """A tokenizer of the `tokenizers` library, as its own JSON."""

    file: FileName = Field(description="File name in the bundle's folder.")
    sha256: Sha256 = Field(description="Checksum of the file.")


class TextSide(Record):
    """How the texts of one side, source or target, become tokens."""

    lang: str = Field(description="Its language, for people and clients.")
    tokenization: Tokenization = Field(
        description=(
            "`character`; `whitespace`: symbols with spaces between them; `bpe`: subwords by byte "
            "pair encoding, with the `tokenizer`'s file."
        )
    )
    normalization: SideNormalization = Field(description="What is done to a text before that.")
    vocab: VocabFile = Field(description="The vocabulary and the special ids.")
    tokenizer: TokenizerFile | None = Field(description="With `bpe`: its merges; else null.")

    @model_validator(mode="after")
    def _bpe_has_a_file(self) -> Self:
        if (self.tokenization == "bpe") != (self.tokenizer is not None):
            raise ValueError("tokenizer: required with bpe, and not allowed otherwise")
        return self

    @property
    def files(self) -> list[str]:
        """Names of the files that it needs."""
        return [self.vocab.file, *([self.tokenizer.file] if self.tokenizer is not None else [])]


def read_side(folder: BundleFolder, side: TextSide) -> Tokenizer:
    """The tokenizer of a side, checked against the manifest. Raises BundleError."""
    tokens = read_vocab(folder, side.vocab)
    if side.tokenizer is None:
        kind = Characters if side.tokenization == "character" else Symbols
        tokenizer = parsed(folder.name, side.vocab.file, lambda: kind(tokens))
        check_size(folder.name, side.vocab, tokens)
        return tokenizer
    info = side.tokenizer
    data = read_file(folder, info.file, MAX_VOCAB_BYTES)
    check_sha256(folder.name, info.file, data, info.sha256)
    subwords = parsed(folder.name, info.file, lambda: Subwords(data.decode()))
    if list(subwords.tokens) != tokens:
        raise BundleError(f"{folder.name}: {info.file}: its tokens differ from the vocabulary's")
    check_size(folder.name, side.vocab, tokens)
    return subwords
