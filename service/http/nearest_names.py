"""Suggestions ("did you mean") for unknown fields and unknown paths."""

from collections.abc import Collection
from difflib import get_close_matches

# Names of fields in other servers, each with the names here; the first in the schema is suggested.
_TEXTS = ("prompt", "text", "source", "q")
_COUNTS = ("n", "num_hypotheses", "alternatives")
_ELSEWHERE = {
    **dict.fromkeys(("input", "inputs", "text", "texts", "text_input", "q", "query"), _TEXTS),
    **dict.fromkeys(("prompt", "prompts", "source", "src", "sentence", "content"), _TEXTS),
    **dict.fromkeys(
        ("max_new_tokens", "max_length", "max_completion_tokens", "n_predict", "num_predict"),
        ("max_tokens",),
    ),
    **dict.fromkeys(("num_return_sequences", "best_of", "num_samples", "samples"), _COUNTS),
    **dict.fromkeys(("beams", "num_beams", "beam_width", "beam"), ("beam_size",)),
    **dict.fromkeys(("stop_words", "stop_sequences", "stop_strings"), ("stop",)),
    **dict.fromkeys(("regex", "guided_regex"), ("pattern",)),
    "guided_choice": ("choices",),
    "random_seed": ("seed",),
    "model_name": ("model",),
    "target": ("text", "target_prefix"),
    "return_alignment": ("return_alignments",),
}
_CHAT = "there is no chat; POST /v1/completions continues a text"
_HEALTH = "GET /livez and GET /readyz report the server's health"
# Paths of other servers, each with a hint to what to use here.
_PATHS = {
    **dict.fromkeys(("/v1/chat/completions", "/chat/completions", "/v1/responses"), _CHAT),
    **dict.fromkeys(("/completions", "/v1/engines", "/api/v1/completions"), "see /v1/completions"),
    **dict.fromkeys(
        ("/v1/embeddings", "/embeddings"),
        "there are no embeddings; POST /v1/completions continues a text",
    ),
    "/api/chat": "there is no chat; POST /generate continues a text",
    "/api/generate": "POST /generate continues a text",
    "/api/tags": "GET /models lists the models",
    **dict.fromkeys(("/health", "/healthz", "/status", "/ping", "/v1/health"), _HEALTH),
}
_LONGEST = 64  # characters of a name that are compared
_ALIKE = 0.7


def nearest_field(name: str, known: Collection[str], alike: float = _ALIKE) -> str | None:
    """The known field most like `name`, or None. The cost does not depend on the name's length.

    `alike` is the lowest similarity that counts as a misspelling (difflib's ratio; 1 is equal).
    """
    name = name[:_LONGEST].lower().replace("-", "_")
    for meant in _ELSEWHERE.get(name, ()):
        if meant in known:
            return meant
    flat = {field.replace("_", ""): field for field in known}
    if name.replace("_", "") in flat:  # maxTokens
        return flat[name.replace("_", "")]
    return next(iter(get_close_matches(name, known, n=1, cutoff=alike)), None)


def path_hint(path: str, known: Collection[str]) -> str:
    """A hint for an unknown path: the nearest one of `known`, or where all paths are listed."""
    path = path[:_LONGEST].lower().rstrip("/")
    if path in _PATHS:
        return _PATHS[path]
    likeliest = get_close_matches(path, known, n=1, cutoff=_ALIKE)
    return f"did you mean {likeliest[0]}?" if likeliest else "/docs lists all paths"
