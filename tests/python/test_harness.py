"""The model of lm-evaluation-harness: through its evaluator, offline, and call by call."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tabes
import torch
from scripted import scripted_model
from tabes.evaluation.likelihood import Target, is_greedy, log_likelihood
from tabes.harness import TabesLM, main

pytestmark = pytest.mark.usefixtures("one_thread")


class Request:
    """What the harness hands over, as far as the model looks at it."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def ask(model: TabesLM, *requests: tuple[Any, ...]) -> list[Any]:
    return model.generate_until([Request(*request) for request in requests], disable_tqdm=True)


EVALUATE = """
import json, sys
import lm_eval
import tabes.harness
from lm_eval.tasks import TaskManager

folder, model_args = sys.argv[1:]

def task(name, **rest):
    return {
        "task": name, "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": folder + "/data.jsonl"},
                           "cache_dir": folder + "/cache"},
        "target_delimiter": "", "doc_to_text": "{{start}}", "doc_to_target": "{{rest}}", **rest,
    }

results = lm_eval.simple_evaluate(
    model="tabes",
    model_args=model_args,
    batch_size=2,
    bootstrap_iters=0,
    task_manager=TaskManager(include_defaults=False),  # indexing its thousands takes seconds
    tasks=[
        task("continue", output_type="generate_until",
             generation_kwargs={"until": ["O", "2"], "max_gen_toks": 12},
             metric_list=[{"metric": "exact_match"}]),
        task("choose", output_type="multiple_choice", doc_to_choice="{{choices}}",
             doc_to_target="{{label}}", metric_list=[{"metric": "acc"}]),
    ],
)
samples = results["samples"]
print(json.dumps({
    "results": results["results"],
    "config": {k: v for k, v in results["config"].items() if k.startswith(("model", "tabes"))},
    "replies": [s["resps"][0][0] for s in samples["continue"]],
    "targets": [s["target"] for s in samples["continue"]],
    "likelihoods": [[r[0][0] for r in s["resps"]] for s in samples["choose"]],
}, default=str))
"""


def test_simple_evaluate_with_the_bundled_model(tmp_path: Path) -> None:
    """In a process of its own, where the network is out of bounds and warnings are its affair."""
    rows = [
        {"start": "COc1ccc(", "rest": "C(=O)", "choices": ["C)cc1", "FFFF"], "label": 0},
        {"start": "CC(=O)N", "rest": "c1ccccc1", "choices": ["=#=#", "c1ccccc1"], "label": 1},
        {"start": "Cc1ccc", "rest": "(C)", "choices": ["(C)cc1", "((((("], "label": 0},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    policy = "boe(alpha=0.25;0.5; n_candidates=3x)"
    arguments = f"pretrained={tabes.demo_checkpoint()},policy={policy},mc_num=16"
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(tmp_path), arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "home"),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["results"]["choose"]["acc,none"] == 1.0
    assert len(found["replies"]) == 3
    assert all(reply and not set(reply) & {"O", "2"} for reply in found["replies"])
    matches = [a == b for a, b in zip(found["replies"], found["targets"], strict=True)]
    assert found["results"]["continue"]["exact_match,none"] == pytest.approx(sum(matches) / 3)
    assert all(value < 0 for row in found["likelihoods"] for value in row)
    settings, cost = found["config"]["tabes_settings"], found["config"]["tabes_cost"]
    assert settings["policy"] == "boe(n_candidates=3x, alpha=0.25;0.5)"
    assert settings["policy_settings"]["alpha"] == [0.25, 0.5]
    assert (
        found["config"]["model_num_parameters"]
        == tabes.load(tabes.demo_checkpoint()).info.parameters
    )
    assert cost["forward_rows"] > 0
    assert cost["forward_equivalents"] > 1


def test_stop_strings_and_lengths() -> None:
    lm = TabesLM(scripted_model({"A": "one two three\nfour", "B": "xyz"}, marker=":"), batch_size=3)
    assert ask(
        lm,
        ("A:", {"until": ["\n"], "max_gen_toks": 20}),
        ("B:", {"until": "z", "max_gen_toks": 20}),
        ("A:", {"until": [], "max_gen_toks": 7}),
        ("A:", {"until": ["four", " three"], "max_new_tokens": 20}),
        ("B:", {}),
    ) == ["one two three", "xy", "one two", "one two", "xyz"]
    # 20 and 7 masks of 256 in 128 steps are 10 and 4 steps; whoever sets no length gets all 256.
    rows = 10 * 3 * 22 + 4 * 9 + 128 * 258
    assert lm.cost.forward_rows == rows
    assert lm.cost.canvas_tokens == 3 * 22 + 9 + 258


@pytest.mark.parametrize(
    ("reply", "until", "wanted"),
    [
        ("<user>AAAA", ["<user>"], ""),
        ("AB<user>CD", ["<user>"], "AB"),
        ("AB<user>CD", [], "ABCD"),
        ("AB<user>CD", ["", "<user>"], "AB"),
        ("AB<user>CD", ["B<user>C"], "A"),
        ("AB<user>CD", ["BC"], "A"),  # as it is read without special tokens
        ("AB<user>CD", ["D", "<user>C", "B<user>", "CD"], "A"),
        ("AB<user>CD", ["D", "<user>"], "AB"),
        ("AB<user>CD", ["CD", "D"], "AB"),
        ("AB<user>CD", ["use", "<", ">", "r>C", "B<"], "ABCD"),  # parts of one symbol
        ("A<B<user>C>", ["<"], "A"),
        ("A<user>B<user>C", ["B<user>"], "A"),
        ("A<user>B<user>C", ["<user>C"], "AB"),
        ("A<user><reply>B", ["<user><reply>"], "A"),
        ("A<reply><user>B", ["<user><reply>"], "AB"),
        ("<user>A<user>", ["A<user>"], ""),
        ("A\u00e9<user>\u00fcB", ["\u00e9<user>\u00fc"], "A"),
        ("A\u00e9<user>\u00fcB", ["\u00fc"], "A\u00e9"),
        ("AB", ["<eos>"], "AB"),  # the model's end token, behind the reply
        ("AB", ["B<eos>"], "A"),
        ("AB", ["AB<eos>", "B"], ""),
        ("AB<eos>CD", ["C"], "AB"),
        ("aaa", ["aa"], ""),
        ("baaab", ["aab", "aaa"], "b"),
    ],
)
@pytest.mark.case("F01")
def test_stop_strings_may_be_special_tokens(reply: str, until: list[str], wanted: str) -> None:
    lm = TabesLM(scripted_model({"Q": reply}, marker=":"))
    assert ask(lm, ("Q:", {"until": until, "max_gen_toks": 20})) == [wanted]


def test_steps_given_without_a_length_are_meant_as_they_are() -> None:
    model = scripted_model({"A": "one two three"}, marker=":")
    for options, steps in (({"steps": 5}, 5), ({"steps": 5, "gen_length": 40}, 3)):
        lm = TabesLM(model, **options)
        ask(lm, ("A:", {"max_gen_toks": 20}))
        assert lm.cost.forward_equivalents == steps


def test_a_length_given_here_is_the_most() -> None:
    model = scripted_model({"A": "one two three"}, marker=":")
    for options in ({"gen_length": 7}, {"max_new_tokens": 7}):
        lm = TabesLM(model, steps=7, **options)
        assert ask(lm, ("A:", {"max_gen_toks": 20}), ("A:", {"max_gen_toks": 3})) == [
            "one two",
            "one",
        ]
    lm = TabesLM(model, preset="paper")
    assert ask(lm, ("A:", {"max_gen_toks": 300})) == ["one two three"]
    assert lm.cost.canvas_tokens == 256 + 2


@pytest.mark.case("R08")
def test_frozen_steps(demo_model: tabes.Model) -> None:
    options = {"steps": 8, "policy": "spread", "gen_length": 20}
    costs = {}
    for every in (1, 4):
        lm = TabesLM(demo_model, refresh_every=every, **options)
        (text,) = ask(lm, ("COc1ccc", {"max_gen_toks": 20}))
        assert lm.get_model_info()["tabes_settings"]["refresh_every"] == every
        costs[every] = lm.cost.forward_rows
        wanted = tabes.generate(
            demo_model, "COc1ccc", gen_length=20, steps=8, block_length=32, policy="spread",
            refresh_every=every,
        )  # fmt: skip
        assert wanted.texts == ["COc1ccc" + text]
        assert costs[every] == wanted.forward_rows
    assert costs[4] < costs[1]


def test_sampling_depends_on_the_prompt_only(demo_model: tabes.Model) -> None:
    drawn = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}
    requests = [("CC", drawn), ("CCO", drawn), ("CC", drawn), ("c1ccc", drawn)]
    one = ask(TabesLM(demo_model, steps=256), *requests)
    assert one == ask(TabesLM(demo_model, steps=256, batch_size=4), *requests)
    order = [2, 3, 1]
    assert ask(TabesLM(demo_model, steps=256), *[requests[i] for i in order]) == [
        one[0],
        one[3],
        one[1],
    ]
    assert one[0] != one[2]  # the same question asked twice is drawn twice
    assert one != ask(TabesLM(demo_model, steps=256, seed=1), *requests)
    greedy = [("CC", {**drawn, "do_sample": False})] * 2
    first, second = ask(TabesLM(demo_model, steps=256), *greedy)
    assert first == second
    # What is set here comes before what the task sets.
    cold = TabesLM(demo_model, steps=256, temperature=0)
    assert ask(cold, requests[0]) == [first]


def test_chats(caplog: pytest.LogCaptureFixture) -> None:
    lm = TabesLM(scripted_model({"Hello": "Let me see: hi", "Bye": "bye"}))
    prompt = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert prompt == "<user>Hello<reply>"
    begun = lm.apply_chat_template(
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Let me see:"}],
        add_generation_prompt=False,
    )
    assert begun == "<user>Hello<reply>Let me see:"
    how = {"max_gen_toks": 20, "until": []}
    assert ask(lm, (prompt, how), (begun, how)) == ["Let me see: hi", " hi"]
    assert lm.chat_template(True).startswith("{% for")
    assert lm.chat_template(False) == ""
    assert lm.tokenizer_name == "tabes"
    with pytest.raises(tabes.InputError, match="no choice of chat templates"):
        lm.chat_template("rag")
    assert caplog.text == ""
    ask(lm, (prompt, {**how, "min_p": 0.1}), (prompt, {**how, "min_p": 0.1}))
    assert caplog.text.count("the task sets min_p") == 1


MASKS = ("[MASK]", "<mask>", "[MASK]" * 3, "a [MASK] <mask> b", "<mask")


@pytest.mark.parametrize("written", MASKS)
@pytest.mark.case("F02")
def test_masks_in_prompts_are_data(written: str) -> None:
    """Only the masks of the reply are filled, in whatever way the question comes."""
    question = f"What is {written} for?"
    plain = TabesLM(scripted_model({question: "text"}, marker=":"))
    chat = TabesLM(scripted_model({question: "text"}))
    user = {"role": "user", "content": question}
    shots = [user, {"role": "assistant", "content": f"It is {written}."}, user]
    prompts = [
        (plain, f"{question}:"),
        (plain, f"{question}: {written}\n\n{question}:"),  # a worked example
        (chat, chat.apply_chat_template([user])),
        (chat, chat.apply_chat_template(shots)),
        (chat, chat.apply_chat_template([user, {"role": "assistant", "content": "te"}], False)),
    ]
    for lm, prompt in prompts:
        mask = lm.model.info.mask_token_id
        canvas = lm._canvas(prompt, 8)
        assert [i for i, t in enumerate(canvas.tokens) if t == mask] == [
            canvas.start + i for i in range(8)
        ]
        assert written in lm.model.tokenizer.decode(canvas.tokens[: canvas.start])
        rest = "xt" if prompt.endswith("te") else "text"
        assert ask(lm, (prompt, {"max_gen_toks": 8, "until": []})) == [rest]
        target = lm._target(prompt, f" {written}")
        assert mask not in target.tokens
        ((value, _),) = lm.loglikelihood([Request(prompt, f" {written}")], disable_tqdm=True)
        assert math.isfinite(value)
    # A reply begun with such a text is data as well.
    begun = chat.apply_chat_template([user, {"role": "assistant", "content": written}], False)
    canvas = chat._canvas(begun, 8)
    assert canvas.tokens.count(chat.model.info.mask_token_id) == 8


def test_long_prompts_lose_their_beginning(
    demo_model: tabes.Model, caplog: pytest.LogCaptureFixture
) -> None:
    lm = TabesLM(demo_model)
    long = "C" * 260 + "c1ccccc1"
    canvas = lm._canvas(long, 12)
    wanted = demo_model.tokenizer.encode_prompt(long[-(256 - 14) :], 12)  # [BOS] and [EOS] stay
    assert (canvas.tokens, canvas.start) == (wanted.ids, wanted.start)
    assert "loses its beginning" in caplog.text
    with pytest.raises(tabes.InputError, match="a reply of 255 tokens does not fit into the 256"):
        ask(lm, ("C", {"max_gen_toks": 255}))


def exact_bound(model: tabes.Model, target: Target) -> float:
    """The bound by all sets of masked positions."""
    n, total = target.end - target.start, 0.0
    for size in range(1, n + 1):
        sets = list(itertools.combinations(range(target.start, target.end), size))
        for masked in sets:
            tokens = torch.tensor(target.tokens)
            tokens[list(masked)] = model.info.mask_token_id
            logits = model.logits(tokens)
            assert isinstance(logits, torch.Tensor)
            logp = torch.log_softmax(logits[0].double(), -1)
            summed = sum(float(logp[i, target.tokens[i]]) for i in masked)
            total += summed * n / size / len(sets) / n
    return total


def test_likelihoods(demo_model: tabes.Model) -> None:
    tokens = demo_model.tokenizer.encode("COc1ccccc1")
    target = Target(tokens, 4, 8)
    wanted = exact_bound(demo_model, target)
    estimates = [log_likelihood(demo_model, target, 64, 8, seed)[0] for seed in range(8)]
    mean = sum(estimates) / 8
    spread = (sum((e - mean) ** 2 for e in estimates) / 7) ** 0.5
    assert abs(mean - wanted) < 4 * spread / 8**0.5
    assert len(set(estimates)) > 1
    # The batch size changes nothing but rounding, and no copy is run twice.
    value, cost = log_likelihood(demo_model, target, 64, 64, 0)
    assert value == pytest.approx(estimates[0], rel=1e-5)
    assert cost.forward_rows <= 15 * len(tokens)  # 15 sets of four positions
    one, cost = log_likelihood(demo_model, Target(tokens, 5, 6), 128, 4, 0)
    assert one == pytest.approx(exact_bound(demo_model, Target(tokens, 5, 6)), rel=1e-5)
    assert cost.forward_rows == cost.canvas_tokens == len(tokens)


def test_greedy_continuations(demo_model: tabes.Model) -> None:
    tokens = demo_model.tokenizer.encode("COc1ccc(C(=O)O)cc1")
    assert is_greedy(demo_model, Target(tokens, 4, 7))[0]
    changed = [*tokens[:5], tokens[1], *tokens[6:]]
    assert changed != tokens
    greedy, cost = is_greedy(demo_model, Target(changed, 4, 7))
    assert not greedy
    assert cost.forward_equivalents == 3


def test_loglikelihood_of_requests(demo_model: tabes.Model) -> None:
    lm = TabesLM(demo_model, mc_num=8, batch_size=4)
    requests = [Request("CCc1cc", "ccc1"), Request("CCc1cc", "FFF"), Request("", "CCO")]
    likely, unlikely, whole = lm.loglikelihood([*requests], disable_tqdm=True)
    assert likely[0] > unlikely[0]
    assert not unlikely[1]
    assert math.isfinite(whole[0])
    assert lm.loglikelihood([Request("CC", "")], disable_tqdm=True) == [(0.0, True)]
    target = lm._target("CCc1cc", "ccc1")
    assert target.tokens == demo_model.tokenizer.encode("CCc1ccccc1")
    assert (target.start, target.end) == (7, 11)
    unchecked = TabesLM(demo_model, mc_num=8, check_greedy=False)
    assert unchecked.loglikelihood(requests[:1], disable_tqdm=True)[0][1] is False
    with pytest.raises(tabes.InputError, match="only a bound is known"):
        lm.loglikelihood_rolling([Request("CCO")])


def test_spaces_between_context_and_continuation() -> None:
    lm = TabesLM(scripted_model({}, marker=":"))
    for context, continuation in (("Q: ", "a"), ("Q:", " a")):
        target = lm._target(context, continuation)
        assert (len(target.tokens), target.start, target.end) == (4, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stepz": 3}, "no setting 'stepz'.*'steps'"),
        ({"preset": "fast"}, "no preset 'fast': choose from paper"),
        ({"batch_size": "auto"}, "batch_size='auto'"),
        ({"mc_num": 0}, "mc_num=0"),
        ({"check_greedy": "no"}, "check_greedy='no'"),
        ({"policy": "boe(alpha=x)"}, "alpha"),
        ({"policy": "boe", "alpha": 0.5}, r"behind its name: boe\(alpha=0.5\)"),
        ({"alg": "boe(alpha=0.25", "n_candidates": "3x)"}, "separate .* by semicolons"),
        ({"forbidden": [1.5]}, r"forbidden\[0\]=1.5"),
        ({"allow_special": "yes"}, "allow_special='yes'"),
    ],
)
def test_wrong_arguments(demo_model: tabes.Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(tabes.InputError, match=message):
        TabesLM(demo_model, **arguments)


def test_without_the_harness() -> None:
    """tabes does not need it, tabes.harness says what to install."""
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "import tabes, tabes.evaluation, tabes.cli\n"
        "try:\n    import tabes.harness\n"
        "except tabes.InputError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("lm_eval"), done.stderr
    assert "pip install 'tabes[eval]'" in done.stdout


def test_errors_on_the_harness_own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise tabes.InputError("what and why")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", fails)
    with pytest.raises(SystemExit, match=r"^tabes: error: what and why$"):
        main()
