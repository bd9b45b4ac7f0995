"""What to say of a name that is none of ours: an argument of `generate`, an option, a command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping


def _by_name(names: Mapping[str, str]) -> dict[str, str]:
    return {name: advice for advice, several in names.items() for name in several.split()}


# What to do instead of the arguments of other decoders that have no counterpart here. {name} is an
# argument of ours, written as the caller writes it.
_FOREIGN = _by_name(
    {
        "pass sequences of different lengths as a list, or padded ones with {attention_mask}": """
            pad_token_id padding padding_side""",
        "the mask token belongs to the model: tabes.load(..., mask_token_id=...)": """
            mask_id mask_token mask_token_id""",
        "end tokens belong to the model: tabes.load(..., eos_token_ids=[...])": """
            eos_token eos_token_id eos_token_ids stop_token_ids""",
        "texts are cut at the model's end tokens, not at strings": """
            stop stop_sequences stop_strings stop_words until""",
        "the prompt holds all tokens of its own, the first among them": """
            bos_token_id decoder_start_token_id forced_bos_token_id""",
        "tokens are drawn where {temperature} is above 0; at 0 the likeliest is taken": """
            do_sample gumbel_temperature sample sampling""",
        "{top_k} and {top_p} cut the distribution, nothing else does": """
            epsilon_cutoff eta_cutoff min_p typical_p""",
        "there is no beam search: {policy} says in which order positions are revealed": """
            beam_size diversity_penalty early_stopping length_penalty num_beam_groups num_beams
            penalty_alpha""",
        "logits are taken as they are; {forbidden} names token ids that are never written": """
            bad_words_ids frequency_penalty logit_bias logits_processor logits_processors
            no_repeat_ngram_size presence_penalty repetition_penalty suppress_tokens""",
        "write the words into the prompt, with masks around them": "force_words_ids",
        "a policy of your own (tabes.Policy) sees every step's predictions": """
            prefix_allowed_tokens_fn""",
        "{gen_length} is the number of new tokens; the prompt's do not count": """
            max_length min_length""",
        "it is {gen_length}": "gen_len max_gen_len max_gen_toks max_tokens",
        "{logits_eos_inf} never writes end tokens, so that no reply is cut short": """
            min_new_tokens min_tokens""",
        "it is {steps}": "diffusion_steps num_inference_steps num_steps sampling_steps timesteps",
        "{steps} divides the masks evenly: a step reveals as many as masks by steps": """
            eps num_transfer num_transfer_tokens tokens_per_step transfer_tokens""",
        "it is {cfg_scale}, 0 for none": "cfg guidance guidance_scale",
        "draws depend on {seed} alone": "generator random_seed random_state rng",
        "{refresh_every} says how often keys and values are computed anew": """
            block_cache cache dual_cache kv_cache past_key_values prefix_cache use_block_cache
            use_cache""",
        "positions are not drawn at a temperature: {policy} 'random' draws them evenly": "alg_temp",
        "settings stand with the policy's name: {policy} as in 'threshold(tau=0.9)'": """
            confidence_threshold policy_option policy_options set tau threshold""",
        "settings stand with the policy's name: {policy} as in 'factor(f=1)'": "f factor",
        "settings stand with the policy's name: {policy} as in 'boe(alpha=0.25, 0.5)'": """
            adjoint alpha anti_collapse context draft every h_max halo min_masked n_candidates
            prefilter probes rho rule weight""",
        "settings stand with the policy's name: {policy} as in 'spread(spread=3)'": """
            candidates spread spread_width width""",
        "settings stand with the policy's name: {policy} as in 'entropy_bound(gamma=0.1)'": "gamma",
        "repeat the prompt: every sequence of a batch draws on its own": """
            best_of n num_return_sequences num_samples samples""",
        "a list of prompts is one batch": "batch_size",
        "the prompt comes first: text, token ids or messages": """
            input_ids inputs messages prompt prompts text""",
        "the tokenizer is the checkpoint's: pass text, or token ids of your own": "tokenizer",
        "the chat template is given messages only; for more, render it yourself and pass ids": """
            add_generation_prompt chat_template chat_template_kwargs documents enable_thinking
            thinking tools""",
        "give its values as arguments of their own": "generation_config sampling_params",
        "the output always holds all tokens, and its trace confidence and entropy of each": """
            output_attentions output_hidden_states output_history output_logits output_scores
            return_dict return_dict_in_generate""",
        "the output's texts hold prompt and completion, of chat the reply alone": """
            return_full_text""",
        "the output's texts leave special tokens out, its tokens keep them": "skip_special_tokens",
        "{callback} sees every step, and stops the run by returning False": """
            stopping_criteria stream streamer verbose""",
        "where and how a model is loaded is said there: tabes.load(..., device=, dtype=)": """
            device device_map dtype torch_dtype""",
    }
)
# Where the command line has means of its own.
_ON_THE_COMMAND_LINE = _by_name(
    {
        "nothing is padded: give prompts as long as they are": """
            attention_mask pad_token_id padding padding_side""",
        "--mask-token-id ID is the token to fill": "mask_id mask_token",
        "--eos-token-id ID is an end token; repeat it for several": """
            eos_token eos_token_ids stop_token_ids""",
        "--samples N decodes every prompt N times": """
            best_of n num_return_sequences num_samples""",
        "--prompt TEXT, --prompt-file FILE or --tokens IDS is what to fill or continue": """
            input_ids inputs messages prompt prompts text""",
        "--tokens IDS does without one": "tokenizer",
        "give its values as options of their own": "generation_config sampling_params",
        "--json has everything, --trace FILE keeps every step": """
            output_attentions output_hidden_states output_history output_logits output_scores
            return_dict return_dict_in_generate skip_special_tokens""",
        "a terminal shows every step as it is taken": "stopping_criteria stream streamer verbose",
        "it is --device": "device_map",
        "it is --dtype": "torch_dtype",
    }
)
_COMMANDS = _by_name(
    {
        "generate": "complete decode fill infill run sample",
        "eval": "evaluate evaluation test",
        "bench": "benchmark pareto",
        "info": "describe inspect show",
        "trace": "draw plot view",
        "--help": "help",
        "--version": "version",
    }
)


def distance(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours that make `other` of `one`."""
    before: list[int] = []
    last, row = before, list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = last, row, [i]
        for j, b in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
    return row[-1]


def closest(name: str, known: Iterable[str]) -> str | None:
    """The name of `known` that is written nearly so, None if none is: case, hyphens and underscores
    do not count, and of four characters one may differ."""
    plain = {other: _plain(other) for other in known}
    given = _plain(name)[:64]  # longer ones are no slip of the pen
    found = min(plain, key=lambda other: distance(given, plain[other]), default=None)
    if found is None or distance(given, plain[found]) > (len(given) + 1) // 4:
        return None
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def unknown_argument(name: str, known: Iterable[str]) -> str:
    """What to say of an argument `name` of `tabes.generate`, which has the arguments `known`."""
    message, known = f"generate has no argument {name!r}", list(known)
    advice = _FOREIGN.get(name.lower())
    if advice is not None:
        return f"{message}: {_written(advice, str)}"
    near = closest(name, known)
    if near is not None:
        return f"{message}: did you mean {near!r}?"
    return f"{message}; it takes {', '.join(known)}"


def unknown_option(option: str, known: Iterable[str]) -> str:
    """What to say of `option`, such as ``"--temprature"``, to a command that has `known`."""
    message, name = f"there is no option {option}", option.lstrip("-").replace("-", "_").lower()
    options = {other.lstrip("-"): other for other in known if other.startswith("--")}
    advice = _ON_THE_COMMAND_LINE.get(name) or _FOREIGN.get(name)
    if advice is not None:
        written = _written(advice, _option)
        named = re.findall(r"--[a-z-]+", written) or ["--policy"]  # else it is about decoding
        if set(named) <= set(options.values()):
            return f"{message}: {written}"
    near = closest(option.lstrip("-"), options)
    return message if near is None else f"{message}: did you mean {options[near]}?"


def unknown_command(name: str, known: Iterable[str]) -> str:
    """What to say of a command `name`, where the commands are `known`."""
    known = list(known)
    near = _COMMANDS.get(name.lower()) or closest(name, known)
    if near is not None:
        return f"there is no command {name!r}: did you mean {near}?"
    return f"there is no command {name!r}; there are {', '.join(known)}"


def _option(argument: str) -> str:
    return "--forbid" if argument == "forbidden" else "--" + argument.replace("_", "-")


def _written(advice: str, how: Callable[[str], str]) -> str:
    return re.sub(r"{(\w+)}", lambda found: how(found[1]), advice)
