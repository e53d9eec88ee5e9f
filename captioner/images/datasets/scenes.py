"""The bundled data set of generated scenes: ids are scene numbers; training comes first, test last."""

from __future__ import annotations

from captioner.images.manifests import Manifest
from captioner.images.records import ImageRecord, Listing, SceneSource


def read_scenes(manifest: Manifest, seed: int, count: int) -> Listing:
    """``count`` scenes, split in the manifest's proportions (5,000 : 500 : 500), at least one per split."""
    from captioner.images.scenes import captions, describe

    total = sum(manifest.shares.values())
    val, test = (max(1, round(count * manifest.shares[split] / total)) for split in ("val", "test"))
    train = count - val - test
    records = []
    for index in range(count):
        split = "train" if index < train else "val" if index < train + val else "test"
        texts = tuple(captions(describe(seed, index)))
        records.append(
            ImageRecord(
                index, f"scene-{index:06d}.jpg", texts, split, SceneSource(seed, index), f"scene {seed} {index}"
            )
        )
    return Listing(records, table="scenes")
