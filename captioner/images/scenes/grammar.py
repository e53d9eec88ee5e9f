"""Captions of scenes from a weighted grammar, and a check that a caption mentions both kinds of objects.

In every choice one wording is much more likely than the others. A captioner that recognises everything and always uses
the most likely wording therefore agrees with the references, although they differ from one another.
"""

from __future__ import annotations

import random

from captioner.images.scenes.world import KINDS, Group, Kind, Scene, stream

_KIND = {kind.name: kind for kind in KINDS}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "near": "near"}

# Wordings with their weights, the most likely first.
_PLACES = {
    "grass": (("on the grass", 12), ("in a field", 2), ("in a green field", 2)),
    "beach": (("on the beach", 12), ("on a sandy beach", 2), ("by the sea", 2)),
    "road": (("on the road", 12), ("on the street", 2), ("on a city street", 2)),
    "snow": (("in the snow", 12), ("on the snow", 2), ("on a snowy day", 2)),
    "night": (("at night", 12), ("in the dark", 2), ("under the stars", 2)),
}
_RELATIONS = {
    "left": (("to the left of", 12), ("left of", 2), ("on the left of", 2)),
    "right": (("to the right of", 12), ("right of", 2), ("on the right of", 2)),
    "above": (("above", 12), ("over", 3)),
    "below": (("below", 12), ("under", 3)),
    "near": (("near", 12), ("next to", 3), ("close to", 2)),
}
_COUNTS = {
    1: (("{one}", 1),),
    2: (("two {many}", 12), ("a pair of {many}", 1)),
    3: (("three {many}", 12), ("a group of three {many}", 1)),
}
# a, b: the first and second group; is_a: the verb of a; rel: the relation of a to b; ler: of b to a.
_FRAMES = (
    ("{a} {rel} {b} {place}", 10),
    ("{a} {is_a} {rel} {b} {place}", 3),
    ("there {is_a} {a} {rel} {b} {place}", 2),
    ("a picture of {a} {rel} {b} {place}", 2),
    ("{a} and {b} {place}", 2),
    ("{b} {ler} {a} {place}", 2),
    ("{place} there {is_a} {a} {rel} {b}", 1),
    ("you can see {a} {rel} {b} {place}", 1),
)


def captions(scene: Scene) -> list[str]:
    """Five captions of a scene with different sentence forms; lower case, ending with " .".

    Deterministic: the same scene has the same captions.
    """
    rng = stream("words", scene.seed, scene.index)
    frames = list(_FRAMES)
    texts = []
    for _ in range(5):
        frame = frames.pop(_weighted_index(rng, [weight for _, weight in frames]))
        texts.append(_say(scene, frame[0], rng))
    return texts


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """One caption, sampled from the grammar with ``rng``, or without it the most likely wording."""
    return _say(scene, _choose(_FRAMES, rng), rng)


def mentions_both(caption: str, scene: Scene) -> bool:
    """Whether a caption mentions both kinds of a scene by any of their words, singular or plural."""
    said = set(caption.lower().replace(".", " ").replace(",", " ").split())
    return all(
        any(word in said for pair in _KIND[group.kind].words for word in pair) for group in (scene.first, scene.second)
    )


def vocabulary() -> set[str]:
    """All words that occur in captions, without the full stop."""
    texts = [frame for frame, _ in _FRAMES]
    for table in (_PLACES, _RELATIONS, _COUNTS):
        texts += [text for choices in table.values() for text, _ in choices]
    words = {word for text in texts for word in text.split() if not word.startswith("{")}
    words |= {word for kind in KINDS for pair in kind.words for word in pair}
    return words | {"is", "are", "a", "an"}


def _say(scene: Scene, frame: str, rng: random.Random | None) -> str:
    text = frame.format(
        a=_noun(scene.first, rng),
        b=_noun(scene.second, rng),
        is_a="is" if scene.first.count == 1 else "are",
        rel=_choose(_RELATIONS[scene.relation], rng),
        ler=_choose(_RELATIONS[_OPPOSITE[scene.relation]], rng),
        place=_choose(_PLACES[scene.background], rng),
    )
    return text + " ."


def _noun(group: Group, rng: random.Random | None) -> str:
    kind: Kind = _KIND[group.kind]
    one, many = _choose([(pair, 1 if i else 5) for i, pair in enumerate(kind.words)], rng)
    article = "an" if one[0] in "aeiou" else "a"
    return _choose(_COUNTS[group.count], rng).format(one=f"{article} {one}", many=many)


def _choose(choices, rng: random.Random | None):
    """One of the values of (value, weight) pairs: sampled by weight, or the first, which is the most likely."""
    return choices[0 if rng is None else _weighted_index(rng, [weight for _, weight in choices])][0]


def _weighted_index(rng: random.Random, weights: list[int]) -> int:
    """A random index, sampled by weight."""
    left = rng.random() * sum(weights)
    for i, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return i
    return len(weights) - 1
