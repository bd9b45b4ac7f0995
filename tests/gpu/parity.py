"""Every CUDA operator, the whole model and whole decodes against the CPU.

    python tests/gpu/parity.py [--small] [--device cuda] [--json FILE]

The truth is the CPU in float64 on the same inputs. A 16-bit result may be twice as far from it as
the same formula in plain PyTorch with that dtype on the same device, a gradient three times;
float32 is held to a fixed bound. Results are written into memory that was filled with NaN before.
`--small` leaves out models, decodes, most sizes and repetitions (for compute-sanitizer);
`--device cpu` checks this script itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from parity_attention import attention
from parity_decodes import decodes
from parity_models import models
from parity_report import Report
from parity_rows import draws, logits, rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    report = Report(args.device, repeats=not args.small)
    report.check_poison()
    dtypes = [torch.float32, torch.bfloat16]
    if args.device == "cuda":
        dtypes.append(torch.float16)
    else:
        report.leave_out("float16", "it has no kernels on the CPU")
    for dtype in dtypes:
        rows(report, dtype)
        logits(report, dtype, args.small)
        draws(report, dtype)
        attention(report, dtype, args.small)
    if not args.small:
        models(report, dtypes)
        decodes(report, dtypes)
    failed = [line.name for line in report.lines if not line.ok]
    if args.json:
        lines = [asdict(line) | {"ok": line.ok} for line in report.lines]
        args.json.write_text(json.dumps(lines, indent=1) + "\n")
    print(f"parity: {len(report.lines) - len(failed)} of {len(report.lines)} within limits")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
