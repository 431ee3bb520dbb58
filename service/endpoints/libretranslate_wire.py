"""LibreTranslate's requests and answers. Field names and shapes are theirs."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.http.wire import Answer, Problem, Texts

AUTO = "auto"
# The largest body with a key in it: nobody may fill the memory before the key is known.
KEYLESS_BYTES = 256 * 1024
# The field for the engine's options: its source is a text, which is a language here.
FIELD_OF_OPTION = {"source": "q", "target_prefix": "q"}


def _number(value: Any) -> Any:
    """A number that stands in a text, as forms have it."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value


Count: TypeAlias = Annotated[int, Field(ge=0)]
BodyKey: TypeAlias = Annotated[
    str | None,
    Field(
        max_length=512,
        description="Where keys are asked for, and none is in the headers; a body with its key has "
        f"{KEYLESS_BYTES:,} bytes at most.",
    ),
]
Digits: TypeAlias = Annotated[str, Field(pattern="^[0-9]{1,9}$")]


class LibreTranslateRequest(BaseModel):
    """Translate a text, or every text of a list; also as a form, url-encoded or multipart."""

    # Unknown fields are passed over, as theirs are.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    q: Texts = Field(
        description="A text or a list of texts, in a form also a list in JSON. Lines are "
        "translated one by one, and longer ones sentence by sentence."
    )
    source: str = Field(description=f'Language code, or "{AUTO}" where the target leaves one.')
    target: str = Field(description="Language code; `en-US` is `en` where that alone is known.")
    format: Literal["text", "html"] | None = Field(
        None, description="Of HTML the texts between tags are translated, and the tags stay."
    )
    alternatives: Annotated[
        Count | None, BeforeValidator(_number, json_schema_input_type=Count | Digits | None)
    ] = Field(None, description="Further translations of each text.")
    api_key: BodyKey = None
    model: str | None = Field(
        None, description="An extension: which of several models for the same languages."
    )


class DetectRequest(BaseModel):
    """Say which language a text is in."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    q: Texts = Field(description="A text or a list of texts.")
    api_key: BodyKey = None


class DetectedLanguage(Answer):
    """A language that no text was needed for to tell."""

    language: str = Field(description="Language code.")
    confidence: int = Field(description="100: no other is served.")


class LibreTranslateResponse(Answer):
    """Answer of `/libretranslate/translate`."""

    translatedText: str | list[str] = Field(  # noqa: N815 (their name)
        description="The translation, or one a text."
    )
    alternatives: list[str] | list[list[str]] | None = Field(
        None, description="Where they were asked for."
    )
    detectedLanguage: DetectedLanguage | list[DetectedLanguage] | None = Field(  # noqa: N815
        None, description=f'Where the source was "{AUTO}", and the model reads one language.'
    )


class Language(Answer):
    """A language that is translated from."""

    code: str = Field(description="What requests call it.")
    name: str = Field(description="The same for people.")
    targets: list[str] = Field(description="What it is translated to.")


class SettingsLanguage(Answer):
    """A language in `/libretranslate/frontend/settings`."""

    code: str = Field(description="What requests call it.")
    name: str = Field(description="The same for people.")


class SettingsLanguages(Answer):
    """What a page begins with."""

    source: SettingsLanguage = Field(description="From.")
    target: SettingsLanguage = Field(description="To.")


class FrontendSettings(Answer):
    """Answer of `/libretranslate/frontend/settings`."""

    charLimit: int = Field(description="-1: the limit is the body's.")  # noqa: N815
    frontendTimeout: int = Field(description="Milliseconds to wait after a key.")  # noqa: N815
    apiKeys: bool = Field(description="Whether there are keys.")  # noqa: N815
    keyRequired: bool = Field(description="Whether one is asked for.")  # noqa: N815
    suggestions: bool = Field(description="They are not taken.")
    filesTranslation: bool = Field(description="They are not translated.")  # noqa: N815
    supportedFilesFormat: list[str] = Field(description="None.")  # noqa: N815
    language: SettingsLanguages = Field(description="The first that are served.")


class HealthOut(Answer):
    """Answer of `/libretranslate/health`."""

    status: Literal["ok"] = Field(description="Every model answers.")


class LibreTranslateError(Answer):
    """An error in LibreTranslate's form."""

    error: str = Field(description="What was wrong and what is allowed.")


def libretranslate_error(problem: Problem) -> LibreTranslateError:
    """A problem in LibreTranslate's form."""
    if not problem.errors:
        return LibreTranslateError(error=problem.detail)
    told = [f"{x.detail} ({x.pointer})" if x.pointer else x.detail for x in problem.errors[:3]]
    return LibreTranslateError(error="; ".join(told))
