"""The content of a scene: two kinds of objects, with counts and positions, on a background.

This module neither draws nor writes captions, so it does not need the glyph font.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SIDE = 256  # pixels; every scene is a square

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        name: the most frequent word in captions; unique.
        words: (singular, plural) pairs, the usual one first.
        glyph: the OpenMoji character.
        width, height: proportions of the glyph's bounding box, in any unit.
    """

    name: str
    words: tuple[tuple[str, str], ...]
    glyph: str
    width: int
    height: int


def _kind(glyph: str, width: int, height: int, *words: str) -> Kind:
    pairs = tuple((one, many) for one, many in (word.split("/") for word in words))
    return Kind(pairs[0][0], pairs, glyph, width, height)


# Of two kinds in a scene, captions mention the earlier one in this list first.
# A model can learn this order from the image; a random order could not be learned.
KINDS: tuple[Kind, ...] = (
    _kind("\U0001f468", 138, 172, "man/men"),
    _kind("\U0001f469", 139, 176, "woman/women", "lady/ladies"),
    _kind("\U0001f476", 138, 181, "baby/babies"),
    _kind("\U0001f921", 172, 168, "clown/clowns"),
    _kind("\U0001f436", 202, 176, "dog/dogs"),
    _kind("\U0001f431", 182, 196, "cat/cats"),
    _kind("\U0001f40e", 217, 182, "horse/horses"),
    _kind("\U0001f404", 212, 133, "cow/cows"),
    _kind("\U0001f411", 223, 165, "sheep/sheep"),
    _kind("\U0001f416", 210, 131, "pig/pigs"),
    _kind("\U0001f418", 215, 151, "elephant/elephants"),
    _kind("\U0001f43b", 207, 181, "bear/bears"),
    _kind("\U0001f407", 192, 165, "rabbit/rabbits", "bunny/bunnies"),
    _kind("\U0001f986", 175, 200, "duck/ducks"),
    _kind("\U0001f427", 161, 206, "penguin/penguins"),
    _kind("\U0001f422", 216, 142, "turtle/turtles"),
    _kind("\U0001f992", 163, 205, "giraffe/giraffes"),
    _kind("\U0001f412", 204, 187, "monkey/monkeys"),
    _kind("\U0001f697", 215, 95, "car/cars"),
    _kind("\U0001f690", 218, 100, "van/vans"),
    _kind("\U0001f6b2", 188, 125, "bicycle/bicycles", "bike/bikes"),
    _kind("\U0001f682", 227, 148, "train/trains"),
    _kind("\U0001f69c", 189, 135, "tractor/tractors"),
    _kind("\U0001f3cd", 221, 122, "motorcycle/motorcycles", "motorbike/motorbikes"),
    _kind("\U0001f6f6", 218, 136, "boat/boats"),
    _kind("\u2708", 179, 180, "plane/planes", "airplane/airplanes"),
    _kind("\U0001f3e0", 124, 148, "house/houses"),
    _kind("\U0001f333", 192, 200, "tree/trees"),
    _kind("\u2602", 224, 227, "umbrella/umbrellas"),
    _kind("\u26bd", 206, 206, "ball/balls"),
    _kind("\U0001fa91", 134, 208, "chair/chairs"),
    _kind("\U0001f3b8", 175, 161, "guitar/guitars"),
)

BACKGROUNDS = ("grass", "beach", "road", "snow", "night")
RELATIONS = ("left", "right", "above", "below", "near")
MAX_COUNT = 3  # objects of one kind


@dataclass(frozen=True)
class Group:
    """All objects of one kind in a scene: the kind's name and one box per object, in pixels."""

    kind: str
    boxes: tuple[Box, ...]

    @property
    def count(self) -> int:
        """Number of objects, 1 to 3."""
        return len(self.boxes)


@dataclass(frozen=True)
class Scene:
    """A scene: ``first`` stands ``relation`` (left, right, above, below of, or near) ``second`` on ``background``."""

    seed: int
    index: int
    background: str
    relation: str
    first: Group
    second: Group


def stream(purpose: str, seed: int, index: int) -> random.Random:
    """A random generator for one purpose in one scene, so that captions and drawing are independent.

    Use only ``random()``: for other methods Python does not guarantee the same sequence in every version.
    """
    return random.Random(f"scenes {purpose} {seed} {index}")


def below(rng: random.Random, n: int) -> int:
    """A uniform integer of 0 .. n-1."""
    return int(rng.random() * n)


def between(rng: random.Random, low: float, high: float) -> float:
    """A uniform number of [low, high)."""
    return low + (high - low) * rng.random()


def describe(seed: int, index: int) -> Scene:
    """The scene number ``index`` of the data set ``seed``; the same two numbers give the same scene everywhere.

    Args:
        seed: which data set; any integer.
        index: number of the scene, 0 or more.

    Raises:
        ValueError: ``index`` is negative.
    """
    if index < 0:
        raise ValueError(f"scene index {index} is negative; count scenes from 0")
    rng = stream("world", seed, index)
    a = below(rng, len(KINDS))
    b = below(rng, len(KINDS) - 1)
    b += b >= a
    kinds = (KINDS[min(a, b)], KINDS[max(a, b)])
    counts = (1 + below(rng, MAX_COUNT), 1 + below(rng, MAX_COUNT))
    background = BACKGROUNDS[below(rng, len(BACKGROUNDS))]
    relation = RELATIONS[below(rng, len(RELATIONS))]
    first, second = _place(rng, relation, kinds, counts)
    return Scene(seed, index, background, relation, Group(kinds[0].name, first), Group(kinds[1].name, second))


# Arrangements of n objects: objects in each row, from the top; columns for a tall half, one row for a wide one.
_Layouts = dict[int, tuple[tuple[int, ...], ...]]
_TALL: _Layouts = {1: ((1,),), 2: ((1, 1), (1, 1), (2,)), 3: ((1, 1, 1), (2, 1), (1, 2))}
_WIDE: _Layouts = {1: ((1,),), 2: ((2,),), 3: ((3,),)}
_CLUSTER: _Layouts = {2: ((2,),), 3: ((2, 1), (1, 2), (3,)), 4: ((2, 2),), 5: ((3, 2), (2, 3)), 6: ((3, 3),)}
_LARGEST, _MARGIN = 92.0, 3.0  # pixels


def _place(rng: random.Random, relation: str, kinds: tuple[Kind, Kind], counts: tuple[int, int]):
    if relation == "near":
        return _cluster(rng, kinds, counts)
    end = SIDE - _MARGIN
    if relation in ("left", "right"):
        # The gap between the halves is wider than any gap between near objects.
        halves = ((_MARGIN, 10.0, 112.0, end), (SIDE - 112.0, 10.0, end, end))
        layouts = _TALL
    else:
        shift = between(rng, -6, 6)
        halves = ((8.0, _MARGIN, SIDE - 8.0, 116.0 + shift), (8.0, 140.0 + shift, SIDE - 8.0, end))
        layouts = _WIDE
    if relation in ("right", "below"):
        halves = halves[::-1]
    groups = []
    for kind, count, (left, top, right, bottom) in zip(kinds, counts, halves):
        rows = layouts[count][below(rng, len(layouts[count]))]
        if layouts is _WIDE:
            # Limiting the width of a row keeps the groups above one another.
            width = min(right - left, count * 100.0)
            left = (SIDE - width) / 2 + between(rng, -16, 16) * (width < 220)
            right = left + width
        cells = _cells(rows, left, top, right, bottom)
        scale = between(rng, 0.86, 1.0)
        groups.append(tuple(_fit(rng, kind, cell, scale) for cell in cells))
    return groups


def _cluster(rng: random.Random, kinds: tuple[Kind, Kind], counts: tuple[int, int]):
    total = sum(counts)
    rows = _CLUSTER[total][below(rng, len(_CLUSTER[total]))]
    pitch = between(rng, 70, 78)
    width, height = pitch * max(rows), pitch * len(rows)
    left = between(rng, _MARGIN, SIDE - _MARGIN - width)
    top = between(rng, 30.0, SIDE - _MARGIN - height)
    cells = _cells(rows, left, top, left + width, top + height)
    if total == 2:
        # Two objects are placed diagonally: on one level they would be left and right of one another.
        slant = pitch * (0.42 if rng.random() < 0.5 else -0.42)
        drop = min(max(abs(slant) - top, 0.0), 30.0)
        cells = [_moved(cell, drop + (slant if i else 0.0)) for i, cell in enumerate(cells)]
    scale = between(rng, 0.9, 1.0)
    while True:
        owners = [0] * counts[0] + [1] * counts[1]
        for i in range(total - 1, 0, -1):
            j = below(rng, i + 1)
            owners[i], owners[j] = owners[j], owners[i]
        mine = [[cell for cell, owner in zip(cells, owners) if owner == g] for g in (0, 1)]
        if total == 2 or not _apart(*mine):
            break
    return [tuple(_fit(rng, kind, cell, scale) for cell in part) for kind, part in zip(kinds, mine)]


def _apart(a: list, b: list) -> bool:
    """Whether one group of cells is entirely to one side of the other."""
    return any(
        max(cell[axis + 2] for cell in p) <= min(cell[axis] for cell in q) + 1e-6
        for axis in (0, 1)
        for p, q in ((a, b), (b, a))
    )


def _moved(cell: tuple, down: float) -> tuple:
    """``cell`` shifted down by so many pixels, limited to the image."""
    left, top, right, bottom = cell
    down = min(max(down, _MARGIN - top), SIDE - _MARGIN - bottom)
    return left, top + down, right, bottom + down


def _cells(rows: tuple[int, ...], left: float, top: float, right: float, bottom: float) -> list[tuple]:
    """Disjoint cells, row by row; a short row is centred."""
    width, height = (right - left) / max(rows), (bottom - top) / len(rows)
    cells = []
    for r, n in enumerate(rows):
        start = left + (right - left - n * width) / 2
        cells += [
            (start + c * width, top + r * height, start + (c + 1) * width, top + (r + 1) * height) for c in range(n)
        ]
    return cells


def _fit(rng: random.Random, kind: Kind, cell: tuple, scale: float) -> Box:
    """The box of an object inside its cell, with the glyph's proportions and slightly off the centre."""
    left, top, right, bottom = cell
    side = min(right - left, bottom - top, _LARGEST) * scale
    longest = max(kind.width, kind.height)
    width, height = round(side * kind.width / longest), round(side * kind.height / longest)
    # Only a part of the slack is used, so that the objects of a group stay together.
    x = left + (right - left - width) * between(rng, 0.2, 0.8)
    y = top + (bottom - top - height) * between(rng, 0.2, 0.8)
    x, y = int(x), int(y)
    return x, y, x + width, y + height
