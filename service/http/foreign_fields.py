"""Fields that other servers know and this one does not: which to ignore, which to reject.

Clients of the APIs of OpenAI and Triton send fields that OpenAI, vLLM, llama.cpp or TensorRT-LLM
read. Most change nothing here (`user`, `store`, `priority`) and are ignored. A field that would
change the text or the answer is rejected, unless its value asks for what happens anyway. A name
that looks like a misspelling of a known field is rejected, too.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from service.errors import InvalidRequest
from service.http.nearest_names import nearest_field

_RULES = "/generate has `pattern`, `choices` and `allowed_chars` for that"

# For each field: the values besides null that change nothing, and what to do instead, if anything.
_FOREIGN: dict[str, tuple[tuple[Any, ...], str]] = {
    # the input
    "messages": ((), "there is no chat; send the text as a prompt"),
    "input": ((), "send the text as a prompt"),
    "prompt_embeds": ((), ""),
    "suffix": (("",), "/infill and /v1 fill blanks"),
    "add_special_tokens": ((True,), "a prompt begins a document; /score has `bos` for that"),
    "truncate_prompt_tokens": ((-1,), "send the end of the prompt"),
    "truncate": ((), "send the end of the prompt"),
    "system": (("",), "there is no chat; send all of the text as a prompt"),
    "template": (("",), "send all of the text as a prompt"),
    "prefix": (("",), "send all of the text as a prompt"),
    "max_tokens_to_sample": ((), "use max_tokens"),
    "max_new_tokens": ((), "use max_tokens"),
    "n_predict": ((), "use max_tokens"),
    "tools": (([],), ""),
    "tool_choice": (("none", "auto"), ""),
    "functions": (([],), ""),
    "function_call": (("none", "auto"), ""),
    # constraints on the text
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
    "stop_token_ids": (([],), "use stop with texts"),
    "min_length": ((0,), ""),
    "include_stop_str_in_output": ((False,), "a stop string is cut off"),
    "logits_processors": (([],), ""),
    "logits_processor_names": (([],), ""),
    # sampling
    "do_sample": ((True,), "use temperature 0 for greedy decoding"),
    "use_beam_search": ((False,), ""),
    "num_beams": ((1,), ""),
    "repetition_penalty": ((1,), "use presence_penalty or frequency_penalty"),
    "repeat_penalty": ((1,), "use presence_penalty or frequency_penalty"),
    "no_repeat_ngram_size": ((0,), ""),
    "typical_p": ((1,), "use top_p"),
    "typical": ((1,), "use top_p"),
    "top_n_sigma": ((-1, 0), "use min_p"),
    "penalty_alpha": ((0,), ""),
    "samplers": ((), "send the sampling options themselves"),
    "sampler_seed": ((-1,), "use seed"),
    "options": (({},), "send each option as a field of its own"),
    "no_repeat_ngrams": ((0,), ""),
    "top_a": ((0,), "use min_p"),
    "tfs": ((1,), "use top_p"),
    "tfs_z": ((1,), "use top_p"),
    "epsilon_cutoff": ((0,), "use min_p"),
    "eta_cutoff": ((0,), "use min_p"),
    "mirostat": ((0,), ""),
    "mirostat_mode": ((0,), ""),
    "dynatemp_range": ((0,), ""),
    "smoothing_factor": ((0,), ""),
    "xtc_probability": ((0,), ""),
    "dry_multiplier": ((0,), ""),
    # the answer
    "return_full_text": ((False,), "use echo on /v1"),
    "n_probs": ((0,), "use logprobs on /v1"),
    "prompt_logprobs": ((), "use echo with logprobs on /v1"),
    "return_tokens_as_token_ids": ((False,), "/tokenize gives the ids"),
    "return_log_probs": ((False,), "use details"),
    "return_context_logits": ((False,), ""),
    "return_generation_logits": ((False,), ""),
    "exclude_input_in_output": ((True,), "the prompt is not repeated"),
    "sampling_parameters": (("", "{}"), "send each option as a field of its own"),
    "end_id": ((-1, 2), "a text ends with id 2"),
}
_MAX_UNKNOWN = 64
_ALIKE = 0.85  # of two names: matches `max_token`, but neither `top_a` nor `min_tokens`


def refuse_foreign(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise InvalidRequest for an unknown field that cannot be ignored.

    `given` holds the fields that the schema does not have, `known` the names of those it has.
    """
    # Comparing names takes time, and no real client sends this many.
    if len(given) > _MAX_UNKNOWN:
        raise InvalidRequest(f"too many unknown fields; at most {_MAX_UNKNOWN} are ignored")
    for name, value in given.items():
        if value is None:
            continue
        neutral, instead = _FOREIGN.get(name, (None, ""))
        if neutral is not None:
            # Compare the type as well: in Python, True == 1 and False == 0.
            if not any(
                value == x and isinstance(value, bool) == isinstance(x, bool) for x in neutral
            ):
                raise InvalidRequest.of_option(name, _refusal(neutral, instead))
            continue
        meant = nearest_field(name, known, _ALIKE)
        if meant is not None:
            raise InvalidRequest(f"unknown field; did you mean `{meant}`?")


def _refusal(neutral: tuple[Any, ...], instead: str) -> str:
    allowed = f"must be {json.dumps(neutral[0])} or left out" if neutral else "must be left out"
    return allowed + (f"; {instead}" if instead else "")
