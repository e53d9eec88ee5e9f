"""The colours of an attention map over its image, in the page and in the PNGs alike."""

from __future__ import annotations

from typing import Any

import numpy as np

# The colour map plasma (Smith and van der Walt 2015, CC0) at nine even steps: perceptually uniform, and from blue to
# yellow for a reader who cannot tell red from green. Between the steps it is linear, within 6 of 255 of the original.
PLASMA = (
    (13, 8, 135),
    (76, 2, 161),
    (126, 3, 168),
    (169, 35, 150),
    (203, 71, 120),
    (230, 108, 92),
    (248, 148, 65),
    (253, 195, 40),
    (240, 249, 33),
)
OPACITY = 0.65  # the image stays visible under the strongest attention
OPAQUE_FROM = 0.35  # weaker attention is more transparent, so that none leaves the image as it is


def heat_map(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour and opacity of an attention map.

    Args:
        strength: (...) float in 0..1.

    Returns:
        (..., 3) float32 RGB in 0..255 and (..., 1) float32 opacity in 0..OPACITY.
    """
    values = np.asarray(strength, dtype=np.float32)
    steps = np.linspace(0, 1, len(PLASMA))
    colour = np.stack([np.interp(values, steps, channel) for channel in np.array(PLASMA).T], axis=-1)
    opacity = OPACITY * np.minimum(values / OPAQUE_FROM, 1.0)
    return colour.astype(np.float32), opacity[..., None]


def heat_settings() -> dict[str, Any]:
    """The same for the page's script, ready for JSON."""
    return {"colours": [list(colour) for colour in PLASMA], "opacity": OPACITY, "opaque_from": OPAQUE_FROM}
