"""A headless Chromium, for the benchmark of the report page and the page's tests."""

from __future__ import annotations

import os
import shutil
from typing import Any

MISSING = "no chromium on the PATH: apt-get install chromium"


def find_chromium() -> str | None:
    """The program on the PATH."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def launch(playwright: Any, program: str) -> Any:
    """Playwright's browser. In a container, as root, Chromium's own sandbox does not start."""
    return playwright.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [])
