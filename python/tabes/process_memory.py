"""How much memory this process takes, as far as the kernel tells."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")


def memory(field: str) -> float | None:
    """MiB from the kernel's status of this process ("VmHWM": the peak, "VmRSS"), None if unknown.

    ru_maxrss would not do: a child inherits its parent's, and nothing sets it back."""
    try:
        return int(_STATUS.read_text().split(f"{field}:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return None


class AddedMemory:
    """What this process takes at its worst from now on, in all and beyond what it holds now.

    What ran before does not matter: what it freed goes back to the system first, since working in
    it again would look like no memory at all, and the peak starts afresh."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        self._start = memory("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._start = None

    def peak(self) -> float | None:
        """The most that was held since the start, in MiB; None where it cannot be known."""
        return None if self._start is None else memory("VmHWM")

    def mib(self) -> float | None:
        """The same beyond what was held at the start."""
        peak = self.peak()
        return None if peak is None or self._start is None else max(0.0, peak - self._start)
