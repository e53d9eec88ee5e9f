"""How many cores there are. It imports no torch."""

from __future__ import annotations

import os


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
