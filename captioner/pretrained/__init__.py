"""Models that come with the program."""

from __future__ import annotations

from pathlib import Path

FLICKR8K = Path(__file__).parent / "flickr8k"
"""A model of photos, which captions when no other is named. ``MODEL_CARD.md`` there has its data, licence, scores and
limits."""
