"""What is said of names that are none of ours."""

from __future__ import annotations

import pytest
import tabes
from tabes import suggest
from tabes.cli import main

ARGUMENTS = ("steps", "gen_length", "temperature", "top_p", "top_k", "cfg_scale", "seed", "policy")


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "ab", 2),
        ("steps", "stpes", 1),
        ("temperature", "temprature", 1),
        ("kitten", "sitting", 3),
        ("ca", "abc", 3),  # of the restricted kind: nothing is edited twice
        ("abcd", "badc", 2),
    ],
)
def test_distance(one: str, other: str, apart: int) -> None:
    assert suggest.distance(one, other) == suggest.distance(other, one) == apart


@pytest.mark.case("N10")
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("stepz", "steps"),
        ("stpes", "steps"),
        ("step", "steps"),
        ("Steps", "steps"),
        ("temprature", "temperature"),
        ("tempereture", "temperature"),
        ("genLength", "gen_length"),
        ("gen-length", "gen_length"),
        ("gen_lenght", "gen_length"),
        ("topp", "top_p"),
        ("sed", "seed"),
        # Too far from all of them, though nearer to one than to the others.
        ("stop", None),
        ("stream", None),
        ("do_sample", None),
        ("mask_token", None),
        ("remask", None),
        ("length", None),
        ("temp", None),
        ("n", None),
        ("", None),
        ("x" * 100_000, None),
    ],
)
def test_only_close_names_are_suggested(name: str, wanted: str | None) -> None:
    assert suggest.closest(name, ARGUMENTS) == wanted


@pytest.mark.case("N10", "U6")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("do_sample", "tokens are drawn where temperature is above 0"),
        ("stop", "texts are cut at the model's end tokens, not at strings"),
        ("stream", "callback sees every step"),
        ("streamer", "callback sees every step"),
        ("mask_token", "tabes.load(..., mask_token_id=...)"),
        ("enable_thinking", "the chat template is given messages only"),
        ("eos_token_id", "tabes.load(..., eos_token_ids=[...])"),
        ("pad_token_id", "pass sequences of different lengths as a list"),
        ("num_beams", "there is no beam search"),
        ("repetition_penalty", "forbidden names token ids"),
        ("max_length", "gen_length is the number of new tokens"),
        ("return_dict_in_generate", "the output always holds all tokens"),
        ("output_scores", "the output always holds all tokens"),
        ("threshold", "policy as in 'threshold(tau=0.9)'"),
        ("alg_temp", "positions are not drawn at a temperature"),
        ("num_transfer_tokens", "steps divides the masks evenly"),
        ("generation_config", "give its values as arguments of their own"),
        ("num_return_sequences", "repeat the prompt"),
        ("use_cache", "refresh_every says"),
        ("alpha", "policy as in 'boe(alpha=0.25, 0.5)'"),
        ("gibberish", "it takes steps, gen_length,"),
        ("stepz", "did you mean 'steps'?"),
    ],
)
def test_arguments(demo_model: tabes.Model, name: str, says: str) -> None:
    with pytest.raises(tabes.InputError, match=r"^generate has no argument") as raised:
        tabes.generate(demo_model, "C[MASK]", **{name: 1})
    assert says in str(raised.value)
    assert "did you mean" in str(raised.value) or "did you mean" not in says


def test_what_is_advised_is_there(demo_model: tabes.Model) -> None:
    """Policies that the advice names can be made, and arguments that it names are taken."""
    for advice in (*suggest._FOREIGN.values(), *suggest._ON_THE_COMMAND_LINE.values()):
        for argument in suggest.re.findall(r"{(\w+)}", advice):
            values = {"callback": print, "policy": "random", "temperature": 0.0, "forbidden": [5]}
            values |= {
                "top_p": 1.0,
                "cfg_scale": 0.0,
                "logits_eos_inf": False,
                "attention_mask": None,
            }
            value = values.get(argument, 1)
            if argument != "callback":
                tabes.generate(demo_model, [1, 7, 3, 2], **{argument: value})
        for policy in suggest.re.findall(r"{policy} as in '(.*)'", advice):
            tabes.make_policy(policy)


@pytest.mark.case("N10")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("genrate moses", "there is no command 'genrate': did you mean generate?"),
        ("decode", "there is no command 'decode': did you mean generate?"),
        ("help", "did you mean --help?"),
        ("serve", "there is no command 'serve'; there are generate, trace, info"),
        ("--versoin", "there is no option --versoin: did you mean --version?"),
        ("", "give a COMMAND"),
        ("generate --temprature 0.5", "did you mean --temperature? (see tabes generate --help)"),
        ("generate moses --temprature=0.5", "no option --temprature: did you mean --temperature?"),
        ("generate moses -prompt C", "no option -prompt: did you mean --prompt? (see tabes gen"),
        ("generate moses -steps=3", "there is no option -steps: did you mean --steps?"),
        ("generate --do-sample", "tokens are drawn where --temperature is above 0"),
        ("generate --do_sample", "tokens are drawn where --temperature is above 0"),
        ("generate --num-return-sequences 4", "--samples N decodes every prompt N times"),
        ("generate --bad-words-ids 4", "--forbid names token ids"),
        ("generate --torch-dtype x", "it is --dtype"),
        ("info --torch-dtype x", "it is --dtype"),
        ("generate --tau 0.5", "--policy as in 'threshold(tau=0.9)'"),
        ("generate --set tau=0.5", "--policy as in 'threshold(tau=0.9)'"),
        ("generate --gibberish", "there is no option --gibberish (see"),
        ("trace f --do-sample", "there is no option --do-sample (see"),
        ("trace f g", "what is 'g' for?"),
        ("bench pareto --examplse 3", "did you mean --examples?"),  # not that --out is missing
        ("bench paretto", "paretto"),
    ],
)
def test_the_command_line(capsys: pytest.CaptureFixture[str], arguments: str, says: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    shown = capsys.readouterr()
    assert (stop.value.code, shown.out) == (2, "")
    assert shown.err.startswith("tabes: error: ")
    assert shown.err.count("\n") == 1
    assert says in shown.err


def test_values_that_look_like_options_are_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "moses", "--prompt", "--no option [MASK]", "--no-canvas"]) == 2
    assert "there is no option" not in capsys.readouterr().err  # but a text of no molecule
