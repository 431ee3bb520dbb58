"""LibreTranslate's requests and answers. Field names and shapes are theirs."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.http.wire import Answer, Problem, Texts

AUTO = "auto"
# The largest body with a key in it: until the key is checked, nobody may fill the memory.
KEYLESS_BYTES = 256 * 1024
# The fields for the engine's options: the engine's source is a text, LibreTranslate's a language.
FIELD_OF_OPTION = {"source": "q", "target_prefix": "q"}


def _number(value: Any) -> Any:
    """A number that arrives as text, as forms send it."""
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

    # Unknown fields are ignored, as LibreTranslate does.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    q: Texts = Field(
        description="A text or a list of texts, in a form also a list in JSON. Lines are "
        "translated one by one, and longer ones sentence by sentence."
    )
    source: str = Field(description=f'Language code, or "{AUTO}" where the target leaves one.')
    target: str = Field(
        description="Language code; `en-US` stands for `en` where only `en` is known."
    )
    format: Literal["text", "html"] | None = Field(
        None, description="With HTML, the text between tags is translated and the tags stay."
    )
    alternatives: Annotated[
        Count | None, BeforeValidator(_number, json_schema_input_type=Count | Digits | None)
    ] = Field(None, description="Further translations of each text.")
    api_key: BodyKey = None
    model: str | None = Field(
        None, description="An extension: chooses among several models for the same languages."
    )


class DetectRequest(BaseModel):
    """Find the language of a text."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    q: Texts = Field(description="A text or a list of texts.")
    api_key: BodyKey = None


class DetectedLanguage(Answer):
    """The only source language that is served; the text itself is not examined."""

    language: str = Field(description="Language code.")
    confidence: int = Field(description="Always 100: no other source language is served.")


class LibreTranslateResponse(Answer):
    """Answer of `/libretranslate/translate`."""

    translatedText: str | list[str] = Field(  # noqa: N815 (their name)
        description="The translation, or one for each text."
    )
    alternatives: list[str] | list[list[str]] | None = Field(
        None, description="Further translations, if requested."
    )
    detectedLanguage: DetectedLanguage | list[DetectedLanguage] | None = Field(  # noqa: N815
        None, description=f'If the source was "{AUTO}" and the model has one source language.'
    )


class Language(Answer):
    """A source language."""

    code: str = Field(description="Its code in requests.")
    name: str = Field(description="Its name for people.")
    targets: list[str] = Field(description="The languages it is translated to.")


class SettingsLanguage(Answer):
    """A language in `/libretranslate/frontend/settings`."""

    code: str = Field(description="Its code in requests.")
    name: str = Field(description="Its name for people.")


class SettingsLanguages(Answer):
    """The languages a translation page starts with."""

    source: SettingsLanguage = Field(description="From.")
    target: SettingsLanguage = Field(description="To.")


class FrontendSettings(Answer):
    """Answer of `/libretranslate/frontend/settings`."""

    charLimit: int = Field(description="-1: only the size of the body is limited.")  # noqa: N815
    frontendTimeout: int = Field(description="Milliseconds to wait after a keystroke.")  # noqa: N815
    apiKeys: bool = Field(description="Whether API keys exist.")  # noqa: N815
    keyRequired: bool = Field(description="Whether an API key is required.")  # noqa: N815
    suggestions: bool = Field(description="Whether suggestions are accepted: they are not.")
    filesTranslation: bool = Field(description="Whether files are translated: they are not.")  # noqa: N815
    supportedFilesFormat: list[str] = Field(description="Always empty.")  # noqa: N815
    language: SettingsLanguages = Field(description="The first languages that are served.")


class HealthOut(Answer):
    """Answer of `/libretranslate/health`."""

    status: Literal["ok"] = Field(description="Every model is ready.")


class LibreTranslateError(Answer):
    """An error in LibreTranslate's form."""

    error: str = Field(description="What was wrong and what is allowed.")


def libretranslate_error(problem: Problem) -> LibreTranslateError:
    """A problem in LibreTranslate's form."""
    if not problem.errors:
        return LibreTranslateError(error=problem.detail)
    told = [f"{x.detail} ({x.pointer})" if x.pointer else x.detail for x in problem.errors[:3]]
    return LibreTranslateError(error="; ".join(told))
