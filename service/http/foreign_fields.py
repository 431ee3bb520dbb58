"""Fields that other servers know and this one does not: which of them may be passed over.

Clients of OpenAI's and Triton's interfaces send what some server reads: OpenAI's own, vLLM,
llama.cpp, TensorRT-LLM. Most of it changes nothing here (`user`, `store`, `priority`). What would
change the text or the answer is refused, unless its value asks for what is done anyway, and so is
a name that looks like a misspelling of a known one.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from service.errors import InvalidRequest
from service.http.nearest_names import nearest_field

_RULES = "/generate has `pattern`, `choices` and `allowed_chars` for that"

# Of each field the values that change nothing, beside null, and what to do instead, if anything.
_FOREIGN: dict[str, tuple[tuple[Any, ...], str]] = {
    # what is asked
    "messages": ((), "there is no chat; send the text as a prompt"),
    "input": ((), "send the text as a prompt"),
    "prompt_embeds": ((), ""),
    "suffix": (("",), "a text is continued, and not filled in"),
    "add_special_tokens": ((True,), "a prompt begins a document; /score has `bos` for that"),
    "truncate_prompt_tokens": ((-1,), "send the end of the prompt"),
    "truncate": ((), "send the end of the prompt"),
    "system": (("",), "there is no chat; send all of the text as a prompt"),
    "template": (("",), "send all of the text as a prompt"),
    "prefix": (("",), "send all of the text as a prompt"),
    "max_tokens_to_sample": ((), "say max_tokens"),
    "max_new_tokens": ((), "say max_tokens"),
    "n_predict": ((), "say max_tokens"),
    "tools": (([],), ""),
    "tool_choice": (("none", "auto"), ""),
    "functions": (([],), ""),
    "function_call": (("none", "auto"), ""),
    # what the text may be
    "response_format": (({"type": "text"},), _RULES),
    "structured_outputs": ((), _RULES),
    "guided_json": ((), _RULES),
    "guided_regex": ((), _RULES),
    "guided_choice": ((), _RULES),
    "guided_grammar": ((), _RULES),
    "guided_decoding_guide": ((), _RULES),
    "grammar": (("",), _RULES),
    "regex": ((), _RULES),
    "ebnf": ((), _RULES),
    "force_words": (([],), _RULES),
    "json_schema": ((), _RULES),
    "allowed_token_ids": ((), _RULES),
    "bad_words": (([], "", [""]), "give single tokens a logit_bias of -1000 on /v1"),
    "stop_token_ids": (([],), "say stop, with texts"),
    "min_length": ((0,), ""),
    "include_stop_str_in_output": ((False,), "a stop string is cut off"),
    "logits_processors": (([],), ""),
    "logits_processor_names": (([],), ""),
    # how a token is drawn
    "do_sample": ((True,), "say temperature 0"),
    "use_beam_search": ((False,), ""),
    "num_beams": ((1,), ""),
    "repetition_penalty": ((1,), "say presence_penalty or frequency_penalty"),
    "repeat_penalty": ((1,), "say presence_penalty or frequency_penalty"),
    "no_repeat_ngram_size": ((0,), ""),
    "typical_p": ((1,), "say top_p"),
    "typical": ((1,), "say top_p"),
    "top_n_sigma": ((-1, 0), "say min_p"),
    "penalty_alpha": ((0,), ""),
    "samplers": ((), "say the options themselves"),
    "sampler_seed": ((-1,), "say seed"),
    "options": (({},), "say them one by one"),
    "no_repeat_ngrams": ((0,), ""),
    "top_a": ((0,), "say min_p"),
    "tfs": ((1,), "say top_p"),
    "tfs_z": ((1,), "say top_p"),
    "epsilon_cutoff": ((0,), "say min_p"),
    "eta_cutoff": ((0,), "say min_p"),
    "mirostat": ((0,), ""),
    "mirostat_mode": ((0,), ""),
    "dynatemp_range": ((0,), ""),
    "smoothing_factor": ((0,), ""),
    "xtc_probability": ((0,), ""),
    "dry_multiplier": ((0,), ""),
    # what is answered
    "return_full_text": ((False,), "say echo on /v1"),
    "n_probs": ((0,), "say logprobs on /v1"),
    "prompt_logprobs": ((), "say echo with logprobs on /v1"),
    "return_tokens_as_token_ids": ((False,), "/tokenize gives the ids"),
    "return_log_probs": ((False,), "say details"),
    "return_context_logits": ((False,), ""),
    "return_generation_logits": ((False,), ""),
    "exclude_input_in_output": ((True,), "the prompt is not repeated"),
    "sampling_parameters": (("", "{}"), "say them one by one"),
    "end_id": ((-1, 2), "a text ends with id 2"),
}
_MAX_UNKNOWN = 64
_ALIKE = 0.85  # of two names: `max_token`, and neither `top_a` nor `min_tokens`


def refuse_foreign(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise InvalidRequest for an unknown field that cannot be passed over.

    `given` holds the fields that the schema does not have, `known` the names of those it has.
    """
    # To compare names takes time, and so many fields no client sends.
    if len(given) > _MAX_UNKNOWN:
        raise InvalidRequest(f"too many unknown fields; at most {_MAX_UNKNOWN} are passed over")
    for name, value in given.items():
        if value is None:
            continue
        neutral, instead = _FOREIGN.get(name, (None, ""))
        if neutral is not None:
            # By kind as well: to Python true is 1, and false is 0.
            if not any(
                value == x and isinstance(value, bool) == isinstance(x, bool) for x in neutral
            ):
                raise InvalidRequest.of_option(name, _refusal(neutral, instead))
            continue
        meant = nearest_field(name, known, _ALIKE)
        if meant is not None:
            raise InvalidRequest(f"there is an unknown field; did you mean `{meant}`?")


def _refusal(neutral: tuple[Any, ...], instead: str) -> str:
    allowed = f"must be {json.dumps(neutral[0])} or left out" if neutral else "must be left out"
    return allowed + (f"; {instead}" if instead else "")
