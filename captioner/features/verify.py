"""Whether a features file is whole and sound."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from captioner.errors import CaptionerError
from captioner.features.checksums import crc32
from captioner.features.layout import Layout
from captioner.fingerprint import fingerprint

_PIECE_BYTES = 64 << 20


def verify_features(path: str | Path) -> list[str]:
    """Everything that is wrong with a features file, one sentence each; an empty list for a sound file.

    All of the file is read, in pieces: its shape against what its attributes say, its size, the marks of finished rows,
    that every feature is finite and has its checksum, and that its fingerprint is the one of its facts.
    """
    try:
        layout = Layout(path)
    except CaptionerError as error:
        return [error.message]
    faults = []
    facts, attributes = layout.facts, layout.attributes
    count, views, positions, channels = layout.shape
    if fingerprint(facts) != attributes.get("fingerprint"):
        stated = str(attributes.get("fingerprint"))[:12]
        faults.append(
            f"{path}: fingerprint {stated} does not belong to its facts ({fingerprint(facts)[:12]}); "
            "one of them was changed"
        )
    stated_by_attributes = {
        "grid": np.asarray(attributes.get("grid")).tolist(),
        "images": attributes.get("images_fingerprint"),
    }
    stated_by_attributes |= {
        key: attributes.get(key) for key in ("encoder", "layer", "weights_name", "weights_sha256", "views")
    }
    faults += [
        f"{path}: attribute {key} is {value!r}, its facts say {facts[key]!r}"
        for key, value in stated_by_attributes.items()
        if value != facts[key]
    ]
    if facts["views"] != views or facts["grid"][0] * facts["grid"][1] != positions:
        faults.append(
            f"{path}: features have the shape {layout.shape}, "
            f"its facts say {facts['views']} views of a {facts['grid'][0]}x{facts['grid'][1]} grid"
        )
    if len(np.unique(layout.image_ids)) != count:
        faults.append(f"{path}: {count - len(np.unique(layout.image_ids)):,} image ids come more than once")
    if layout.size < layout.expected_size:
        faults.append(f"{path}: truncated, {layout.size:,} of {layout.expected_size:,} bytes")
    if not layout.done.all():
        faults.append(
            f"{path}: {int((~layout.done).sum()):,} of {count:,} rows were never written; run the extract stage again"
        )
    faults += _damaged_rows(layout)
    return faults


def _damaged_rows(layout: Layout) -> list[str]:
    """Names the first rows that are there and hold NaN or infinity, or other bytes than were written."""
    bad: list[int] = []
    changed: list[int] = []
    step = max(1, _PIECE_BYTES // layout.row_size)
    with open(layout.path, "rb", buffering=0) as file:
        for first in range(0, layout.shape[0], step):
            last = min(first + step, layout.shape[0])
            data = os.pread(file.fileno(), (last - first) * layout.row_size, layout.offset + first * layout.row_size)
            whole = len(data) // layout.row_size  # fewer where the file ends early, which is reported already
            rows = np.frombuffer(data, dtype=np.uint16, count=whole * layout.row_size // 2).reshape(whole, -1)
            not_finite = ((rows & 0x7FFF) >= 0x7C00).any(axis=1)
            there = layout.done[first : first + whole]
            bad += (first + np.flatnonzero(not_finite & there)).tolist()
            if layout.checksums is not None:
                sums = crc32(rows.reshape(whole * layout.shape[1], -1)).reshape(whole, -1)
                differs = (sums != layout.checksums[first : first + whole]).any(axis=1)
                changed += (first + np.flatnonzero(differs & there)).tolist()
    return [
        f"{layout.path}: {len(found):,} images have {fault} ({_first_images(layout, found)})"
        for found, fault in ((bad, "non-finite features"), (changed, "damaged features: their checksums differ"))
        if found
    ]


def _first_images(layout: Layout, rows: list[int]) -> str:
    return ", ".join(str(layout.image_ids[row]) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
