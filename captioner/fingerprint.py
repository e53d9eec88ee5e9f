"""Fingerprints: hashes of everything that determines a result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(facts: Any) -> str:
    """Canonical JSON of ``facts``: sorted keys, no spaces; NaN raises ValueError."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def fingerprint(facts: dict[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of ``facts``, which must not contain a path, a time or a device."""
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in chunks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
