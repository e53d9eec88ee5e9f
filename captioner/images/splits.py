"""Training, validation and test splits, by image and never by caption.

The data set's own split or Karpathy's is used. If no image is for validation, a fraction of the training images is held
out. Samples are chosen by a hash of seed and image id, so they do not depend on the order of a table or on merging.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.images.captions import SPLITS, read_json
from captioner.images.containers import read_member
from captioner.images.manifests import Fetcher, Manifest
from captioner.images.records import ImageRecord, Listing

SplitRecords = list[tuple[ImageRecord, str]]
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_PRIORITY = {"train": 0, "val": 1, "test": 2}


class KarpathySplit:
    """The split of Karpathy and Fei-Fei (2015), ``dataset_*.json``, by COCO id and by file name."""

    def __init__(self, content: dict[str, Any], name: str) -> None:
        self.name = name
        self._by_id: dict[int, str] = {}
        self._by_name: dict[str, str] = {}
        images = content.get("images")
        if not isinstance(images, list) or not images:
            raise CaptionerError(
                f"{name}: not a Karpathy split (no list 'images'); give dataset_coco.json, dataset_flickr8k.json or "
                "dataset_flickr30k.json"
            )
        for image in images:
            split = image.get("split") if isinstance(image, dict) else None
            if (
                not isinstance(split, str)
                or split not in _KARPATHY_SPLITS
                or not isinstance(image.get("filename"), str)
            ):
                raise CaptionerError(
                    f"{name}: an image has split {split!r} and filename "
                    f"{image.get('filename') if isinstance(image, dict) else None!r}; "
                    "give an unchanged dataset_*.json"
                )
            if isinstance(image.get("cocoid"), int):
                self._by_id[image["cocoid"]] = _KARPATHY_SPLITS[split]
            self._by_name[image["filename"]] = _KARPATHY_SPLITS[split]

    def of(self, record: ImageRecord, coco: bool) -> str | None:
        """The split of an image, None if the file does not list it; ``coco``: its id is a COCO id."""
        if coco and self._by_id:
            return self._by_id.get(record.image_id)
        return self._by_name.get(record.file_name) or self._by_name.get(record.file_name.rsplit("/", 1)[-1])


def karpathy_split(split: str, manifest: Manifest, root: Path | None, fetch: Fetcher) -> KarpathySplit | None:
    """The Karpathy split that ``download.split`` selects for one data set; None for ``own``.

    ``karpathy`` is searched for in ``root``, else downloaded; any other ``split`` is the path of a dataset_*.json, of
    its zip, or of a folder with either.

    Raises:
        CaptionerError: there is no such file, or it is not a Karpathy split of this data set.
    """
    if split == "own":
        return None
    official = manifest.karpathy
    member = (official.member or official.name) if official is not None else ""
    if split == "karpathy":
        if official is None:
            raise CaptionerError(
                f"params.yaml: download.split=karpathy: {manifest.name} has none; use download.split=own or give the "
                "path of a"
                " dataset_*.json"
            )
        candidates = [root / member, root / "annotations" / member, root / official.name] if root is not None else []
        path = next((path for path in candidates if path.is_file()), None) or fetch(official)
    else:
        path = Path(split).expanduser()
        if path.is_dir() and official is not None:
            path = next(
                (path / name for name in (member, official.name) if (path / name).is_file()),
                path / member,
            )
        if not path.is_file():
            raise CaptionerError(
                f"params.yaml: download.split={split}: no such file; give own, karpathy, or the path of a "
                "dataset_*.json"
            )
    if path.suffix.lower() != ".zip":
        return KarpathySplit(read_json(path), str(path))
    data = read_member(path, member) if official is not None else None
    if data is None:
        raise CaptionerError(f"{path}: it contains no split of {manifest.name}; give the path of a dataset_*.json")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{path}: {member} is not valid JSON ({error}); download the archive again") from error
    return KarpathySplit(content if isinstance(content, dict) else {}, f"{path}:{member}")


def assign_splits(
    listing: Listing, karpathy: KarpathySplit | None, coco: bool, seed: int, val_share: float, test_share: float
) -> SplitRecords:
    """The records of one data set with their splits; images not in the Karpathy split go to ``listing.skipped``.

    Args:
        seed: of the random samples.
        val_share: fraction of the training images held out for validation if no image is for validation.
        test_share: fraction of the test images that is kept.
    """
    pairs: list[tuple[ImageRecord, str]] = []
    for record in listing.records:
        split = record.split if karpathy is None else karpathy.of(record, coco)
        if karpathy is not None and split is None:
            listing.skipped.append((record.file_name, "not in the Karpathy split"))
            continue
        pairs.append((record, split or "train"))
    if karpathy is not None and not pairs:
        raise CaptionerError(
            f"{karpathy.name}: it lists none of the {len(listing.records):,} images of {listing.table}; give the "
            "file of this data set"
        )
    if not any(split == "val" for _, split in pairs):
        held_out = sample_ids([record.image_id for record, split in pairs if split == "train"], val_share, seed, "val")
        pairs = [
            (record, "val" if record.image_id in held_out and split == "train" else split) for record, split in pairs
        ]
    if test_share < 1:
        kept = sample_ids([record.image_id for record, split in pairs if split == "test"], test_share, seed, "test")
        pairs = [(record, split) for record, split in pairs if split != "test" or record.image_id in kept]
    return pairs


def sample_ids(image_ids: Sequence[int], fraction: float, seed: int, purpose: str) -> set[int]:
    """round(fraction * N) of the N ids, chosen by hash; at least one if ``fraction`` > 0 and N > 1."""
    count = round(fraction * len(image_ids))
    if fraction > 0 and len(image_ids) > 1:
        count = max(count, 1)
    ranked = sorted(image_ids, key=lambda number: hashlib.sha256(f"{purpose} {seed} {number}".encode()).digest())
    return set(ranked[:count])


def drop_shared_photos(sets: Sequence[tuple[str, SplitRecords]]) -> tuple[list[SplitRecords], list[tuple[str, str]]]:
    """Keep every photograph of several data sets in one of them: where it is for test, else val, else the first.

    Flickr8k, Flickr30k and COCO took photographs from the same site; without this step the model would train on test
    images.

    Returns:
        The data sets, and (image, reason) of what was dropped.
    """
    keepers: dict[str, tuple[int, int]] = {}  # photo -> (priority, -position of its data set)
    for position, (_, pairs) in enumerate(sets):
        for record, split in pairs:
            keepers[record.photo] = max(keepers.get(record.photo, (-1, 0)), (_PRIORITY[split], -position))
    kept: list[SplitRecords] = []
    skipped = []
    for position, (name, pairs) in enumerate(sets):
        kept.append([])
        for record, split in pairs:
            keeper = -keepers[record.photo][1]
            if keeper == position:
                kept[-1].append((record, split))
            else:
                skipped.append((f"{name}/{record.file_name}", f"the same photograph is in {sets[keeper][0]}"))
    return kept, skipped


def limit_images(sets: Sequence[SplitRecords], limit: int) -> list[SplitRecords]:
    """The first ``limit`` images of each split, from several data sets in turn; 0: all."""
    if limit == 0:
        return list(sets)
    turns = []
    for position, pairs in enumerate(sets):
        seen = dict.fromkeys(SPLITS, 0)
        for index, (_, split) in enumerate(pairs):
            turns.append((seen[split], position, index, split))
            seen[split] += 1
    left, chosen = dict.fromkeys(SPLITS, limit), set()
    for _, position, index, split in sorted(turns):
        if left[split] > 0:
            left[split] -= 1
            chosen.add((position, index))
    return [
        [pair for index, pair in enumerate(pairs) if (position, index) in chosen] for position, pairs in enumerate(sets)
    ]
