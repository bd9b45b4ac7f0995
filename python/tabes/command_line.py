"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint is loaded: the arguments of `tabes.load`."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or a CUDA device")
    parser.add_argument(
        "--dtype", default="float32", help="float32 (default), bfloat16, float16, float64"
    )
    parser.add_argument("--mask-token-id", type=int, metavar="ID")
