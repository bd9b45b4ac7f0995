"""tabes as a model of lm-evaluation-harness, under the name ``tabes``.

    python -m tabes.harness --model tabes --model_args pretrained=FOLDER,policy=boe --tasks gsm8k

takes the harness's own command line. Importing this module registers the model for use from Python
(``lm_eval.simple_evaluate(model="tabes", model_args=...)``). Needs ``pip install 'tabes[eval]'``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabes._core import Error, InputError
from tabes.arguments import flag, integer
from tabes.chat import Rendered
from tabes.evaluation.decoding import Cost, decode, scaled_steps
from tabes.evaluation.likelihood import Target, is_greedy, log_likelihood
from tabes.evaluation.settings import PRESETS, Settings, canonical_name
from tabes.evaluation.stops import cut_tokens
from tabes.evaluation.tasks import Canvas, tokenizer_of
from tabes.model import Model, load

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise InputError(
        f"{error.name} is not installed, which lm-evaluation-harness needs: "
        "pip install 'tabes[eval]'"
    ) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_log = logging.getLogger(__name__)
# Names under which tasks of the harness limit a reply, the first one given counts.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k")
_KNOWN = {*_LENGTHS, *_SAMPLING, "until", "do_sample"}


@register_model("tabes")
class TabesLM(LM):  # type: ignore[misc,unused-ignore]
    """A checkpoint that the harness can ask for texts and likelihoods.

    A reply is decoded on a canvas of masks, as many as the task's ``max_gen_toks`` or, without
    that, `gen_length`; where both are given, the smaller. The number of steps keeps its ratio to
    the length, unless `steps` is given without `gen_length`. The text is cut at the first of the
    task's stop strings. Sampling settings given here come before those of the task. Random draws
    depend on the prompt and the seed, not on batches or order. Prompts that are too long lose their
    beginning, with a warning.

    Attributes:
        settings: how it decodes.
        cost: what everything so far took, likelihoods included.
    """

    def __init__(
        self,
        pretrained: str | Path | Model,
        *,
        device: str | None = None,
        dtype: str = "float32",
        mask_token_id: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        preset: str | None = None,
        mc_num: int = 128,
        check_greedy: bool = True,
        **settings: Any,
    ) -> None:
        """Loads the checkpoint.

        Args:
            pretrained: its folder, or a model that is loaded already.
            device, dtype, mask_token_id: as in `tabes.load`.
            batch_size: sequences in a batch.
            max_batch_size: not used; the harness passes it.
            preset: where settings start from, see `tabes.evaluation.PRESETS`; without it from
                "paper", whose length then gives way to that of the task.
            mc_num: noised copies a likelihood is estimated from.
            check_greedy: whether likelihoods also say if greedy decoding gives the continuation,
                which takes a forward pass a token; otherwise the answer is always no.
            **settings: those of `tabes.evaluation.Settings`. The harness splits model_args at
                commas, so that semicolons separate a policy's settings:
                ``policy=boe(alpha=0.25;0.5;n_candidates=3x)``.

        Raises InputError for an unknown argument; what `tabes.load` raises.
        """
        super().__init__()
        if preset is not None and preset not in PRESETS:
            raise InputError(f"there is no preset {preset!r}: choose from {', '.join(PRESETS)}")
        for name, value in settings.items():
            if canonical_name(name) == "policy" and str(value).count("(") > str(value).count(")"):
                raise InputError(
                    f"{name}={value}: the harness splits model_args at commas: separate a policy's "
                    "settings by semicolons"
                )
        self.settings = Settings.of(settings, PRESETS[preset or "paper"])
        self._explicit = {canonical_name(name) for name in settings}
        if preset is not None:
            self._explicit.add("gen_length")
        # Steps that come without the length they are for are meant as they are.
        self._scales = "steps" not in self._explicit or "gen_length" in self._explicit
        self._batch_size = _whole(batch_size, "batch_size")
        self._mc_num = integer(mc_num, "mc_num", minimum=1)
        self._check_greedy = flag(check_greedy, "check_greedy")
        self.model = (
            pretrained
            if isinstance(pretrained, Model)
            else load(pretrained, device or "cpu", dtype, mask_token_id=mask_token_id)
        )
        self._text = tokenizer_of(self.model)
        self._rendered: dict[str, Rendered] = {}
        self._warned: set[str] = set()
        self.cost = Cost()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The replies to (context, gen_kwargs) requests, in their order."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        contexts = [str(request.args[0]) for request in requests]
        options = [dict(request.args[1]) for request in requests]
        for number, given in enumerate(options):
            groups.setdefault(self._how(given), []).append(number)
        keys = self._keys(contexts, options)
        replies = [""] * len(requests)
        ends = self.model.info.eos_token_ids
        with _bar(len(requests), "generate_until", disable_tqdm) as bar:
            for (length, *sampling), members in groups.items():
                settings = replace(self.settings, **dict(zip(_SAMPLING, sampling, strict=True)))
                steps = settings.steps
                if self._scales:
                    steps = scaled_steps(settings, length)
                for first in range(0, len(members), self._batch_size):
                    batch = members[first : first + self._batch_size]
                    canvases = [self._canvas(contexts[n], length) for n in batch]
                    found, cost = decode(
                        self.model, canvases, [keys[n] for n in batch], settings, steps=steps
                    )
                    self.cost.add(cost)
                    for n, reply in zip(batch, found, strict=True):
                        stops = _stops(options[n])
                        replies[n] = cut_tokens(self._text, reply.written, ends, stops)
                        self.cache_hook.add_partial("generate_until", requests[n].args, replies[n])
                    bar.update(len(batch))
        return replies

    def _how(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """Length and sampling of a request, from the settings and what its task asks for."""
        self._warn_once(
            {name for name in given if name not in _KNOWN},
            "the task sets %s, which this model does not know and leaves out",
        )
        length = self.settings.gen_length
        limit = next((given[name] for name in _LENGTHS if given.get(name) is not None), None)
        if limit is not None:
            limit = _whole(limit, "max_gen_toks")
            length = min(length, limit) if "gen_length" in self._explicit else limit
        sampled = bool(given.get("do_sample", (given.get("temperature") or 0) > 0))
        how = []
        for name in _SAMPLING:
            value = getattr(self.settings, name)
            if sampled and name not in self._explicit and given.get(name) is not None:
                value = given[name]
            how.append(value)
        return (length, *how)

    def _keys(self, contexts: Sequence[str], options: Sequence[Mapping[str, Any]]) -> list[int]:
        """A number for the draws of each request: of its contents, and of how often they came."""
        seen: Counter[str] = Counter()
        keys = []
        for context, given in zip(contexts, options, strict=True):
            described = json.dumps([context, given], sort_keys=True, default=str)
            digest = hashlib.sha256(f"{seen[described]} {described}".encode()).digest()
            keys.append(int.from_bytes(digest[:7], "little"))
            seen[described] += 1
        return keys

    def _canvas(self, context: str, length: int) -> Canvas:
        framed = context not in self._rendered  # a chat template writes its special tokens itself
        encode = self._text.encode_prompt if framed else self._text.encode_rendered
        prompt = encode(self._rendered.get(context, context), length)
        ids, dropped = self._fit(prompt.ids, prompt.start, framed, f"a reply of {length} tokens")
        return Canvas(ids, prompt.start - dropped)

    def _fit(self, ids: list[int], before: int, framed: bool, what: str) -> tuple[list[int], int]:
        """`ids` short enough for the model, and how many went of the `before` in front."""
        most = self.model.info.max_length
        excess = max(0, len(ids) - most)
        frame = self._text.encode_prompt("", 0).start if framed and excess else 0
        if excess > before - frame:
            raise InputError(f"{what} does not fit into the {most} tokens that the model takes")
        if excess:
            self._warn_once({"prompt"}, "a %s is too long for the model and loses its beginning")
        return ids[:frame] + ids[frame + excess :], excess

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """LLaDA's Monte Carlo bound of continuations in nats, and whether each is the greedy one.

        See `tabes.evaluation.likelihood`. It is a lower bound: perplexities made of it are not
        comparable with those of left-to-right models; choices among continuations are.
        """
        found = []
        with _bar(len(requests), "loglikelihood", disable_tqdm) as bar:
            for request in requests:
                target = self._target(str(request.args[0]), str(request.args[1]))
                value, greedy = 0.0, True
                if target.end > target.start:
                    value, cost = log_likelihood(
                        self.model, target, self._mc_num, self._batch_size, self.settings.seed
                    )
                    self.cost.add(cost)
                    greedy = False
                    if self._check_greedy:
                        greedy, cost = is_greedy(self.model, target)
                        self.cost.add(cost)
                found.append((value, greedy))
                self.cache_hook.add_partial("loglikelihood", request.args, (value, greedy))
                bar.update()
        return found

    def _target(self, context: str, continuation: str) -> Target:
        # Spaces between the two belong to the continuation, with whose word they are one token.
        body = context.rstrip()
        if body and context not in self._rendered:
            context, continuation = body, context[len(body) :] + continuation
        framed = context not in self._rendered
        encode = self._text.encode_prompt if framed else self._text.encode_rendered
        context = self._rendered.get(context, context)  # which knows what is text in it
        start, whole = encode(context, 0).start, encode(context + continuation, 0)
        ids, dropped = self._fit(whole.ids, start, framed, "a continuation")
        return Target(ids, start - dropped, whole.start - dropped)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refused.

        Raises InputError: the likelihood of a whole text is a bound here that depends on where it
        is cut into windows, and perplexities made of it would be compared with exact ones.
        """
        raise InputError(
            "perplexities of whole texts (loglikelihood_rolling) are not offered: of a masked "
            "diffusion model only a bound is known, not comparable with what other models report; "
            "leave out such tasks"
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt that the checkpoint's chat template makes of messages.

        Without a generation prompt the last message is the beginning of the reply.

        Raises InputError if there is no template or it fails.
        """
        started = ""
        if not add_generation_prompt and chat_history and chat_history[-1]["role"] == "assistant":
            *chat_history, last = chat_history
            started = last["content"]
        text = self._text.render_chat(chat_history) + started
        self._rendered[text] = text
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source for the harness's records, "" if none is used."""
        if isinstance(chat_template, str):
            raise InputError(
                f"there is no choice of chat templates ({chat_template!r}): the checkpoint has one"
            )
        return (self._text.chat_template or "") if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """What tells prompts of this checkpoint from others' in the harness's cache."""
        path = self.model.path
        return "tabes" if path is None else str(path.resolve()).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness's results say about the model: settings and exact cost included."""
        info = self.model.info
        return {
            "model_num_parameters": info.parameters,
            "model_dtype": info.dtype,
            "tabes_settings": self.settings.to_dict(),
            "tabes_cost": self.cost.to_dict(),
        }

    def _warn_once(self, names: set[str], message: str) -> None:
        new = sorted(names - self._warned)
        if new:
            self._warned |= names
            _log.warning(message, ", ".join(new))


def _whole(value: Any, name: str) -> int:
    """An integer of at least 1; the harness writes some as text, and "auto" is not offered."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return integer(value, name, minimum=1)


def _stops(given: Mapping[str, Any]) -> list[str]:
    until = given.get("until") or []
    return [until] if isinstance(until, str) else [str(stop) for stop in until]


def _bar(total: int, name: str, disable: bool) -> Any:
    # None: only on a terminal.
    return tqdm(total=total, desc=name, disable=True if disable else None)


def main() -> None:
    """The harness's own command line, which then knows the model."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except Error as error:
        sys.exit(f"tabes: error: {error}")


if __name__ == "__main__":
    main()
