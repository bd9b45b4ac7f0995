"""``python -m tabes``: the same as the command ``tabes``."""

from __future__ import annotations

import sys

from tabes.cli import main

if __name__ == "__main__":
    sys.exit(main())
