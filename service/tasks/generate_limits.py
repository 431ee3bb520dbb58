"""Options of `generate`: fills in the defaults and checks all options against the limits."""

from collections.abc import Sequence
from dataclasses import replace

from service.bundle.text import BOS_ID, PAD_ID, UNK_ID
from service.decoding.normal_form import normal_form
from service.decoding.sampling import SamplingParams
from service.errors import InvalidRequest
from service.tasks.limits import at_most, check_details, check_stop
from service.tasks.text_model import TextModel
from service.tasks.values import DEFAULT_MAX_TOKENS, GenerateOptions, Prompt


def checked_options(
    model: TextModel, prompts: Sequence[Prompt], options: GenerateOptions
) -> GenerateOptions:
    """The options with their defaults, and the bias by token id. Raises InvalidRequest."""
    seal = model.seal(adapt=options.adapt)
    if options.max_tokens is None:
        options = replace(options, max_tokens=min(DEFAULT_MAX_TOKENS, model.max_tokens))
    _check_counts(model, prompts, options)
    _check_costs(model, prompts, options)
    if options.return_state:
        seal.check_count(len(prompts) * options.n, model.settings)
    _check_after_state(options)
    return replace(options, sampling=_with_bias(model, options)) if options.logit_bias else options


def _check_counts(model: TextModel, prompts: Sequence[Prompt], options: GenerateOptions) -> None:
    settings = model.settings
    at_most("prompt", len(prompts), settings.max_inputs, "prompts")
    at_most("n", options.n, settings.max_n, "choices")
    check_stop(options.stop, settings)


def _check_costs(model: TextModel, prompts: Sequence[Prompt], options: GenerateOptions) -> None:
    settings = model.settings
    max_tokens = options.max_tokens or 0
    at_most("max_tokens", max_tokens, model.max_tokens, "tokens")
    cost = len(prompts) * options.n * max_tokens
    at_most("max_tokens", cost, settings.max_cost_tokens, "prompts · n · max_tokens")
    for prompt in prompts:
        at_most("prompt", len(prompt), settings.max_prompt_chars, "characters a prompt")
    if options.logprobs is not None:
        # Every choice repeats its prompt.
        told = cost + (sum(map(len, prompts)) * options.n if options.echo else 0)
        check_details("logprobs", told, options.logprobs, settings)


def _check_after_state(options: GenerateOptions) -> None:
    sampling = options.sampling
    if options.state is None or not (sampling.presence_penalty or sampling.frequency_penalty):
        return
    name = "presence" if sampling.presence_penalty else "frequency"
    raise InvalidRequest.of_option(
        f"{name}_penalty",
        "must be 0 after a state, which does not record the tokens of its choice",
    )


def _with_bias(model: TextModel, options: GenerateOptions) -> SamplingParams:
    """The sampling options, with the bias by token id."""
    bias: dict[int, float] = {}
    for token, gain in options.logit_bias.items():
        character = normal_form(token, model.normalization, "logit_bias")
        id_ = model.id_of_token.get(character, UNK_ID)
        if id_ in {PAD_ID, BOS_ID, UNK_ID}:
            raise InvalidRequest.of_option(
                "logit_bias", "every key is one character of the model's vocabulary, or U+E002"
            )
        if id_ in bias:
            raise InvalidRequest.of_option("logit_bias", "two keys stand for the same character")
        bias[id_] = gain
    return replace(options.sampling, logit_bias=tuple(bias.items()))
