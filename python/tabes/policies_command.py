"""``tabes policies``: what --policy takes."""

from __future__ import annotations

import argparse

import tabes
from tabes.command_line import print_json


def configure(command: argparse.ArgumentParser) -> None:
    command.description = (
        "List the unmasking policies with their settings and defaults, as --policy takes them. "
        "What they do: help(tabes.make_policy), and help(tabes.BoE) for boe."
    )
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    policies = {name: tabes.make_policy(name) for name in tabes.policy_names()}
    if arguments.json:
        print_json({name: policy.settings() for name, policy in policies.items()})
    else:
        for name, policy in policies.items():
            # boe_paper is boe with other settings.
            print(name + policy.notation().removeprefix(policy.name()))
    return 0
