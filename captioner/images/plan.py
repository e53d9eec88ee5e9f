"""What a download will store, decided before any image is touched: records, splits, merged ids, and the facts that
name it all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL

from captioner.errors import CaptionerError
from captioner.images.datasets.coco import read_coco
from captioner.images.datasets.custom import read_custom
from captioner.images.datasets.flickr import read_flickr
from captioner.images.datasets.scenes import read_scenes
from captioner.images.manifests import Archive, Manifest, dataset_names, read_manifest
from captioner.images.records import Absent, Listing, digest
from captioner.images.splits import Divided, divide, karpathy_split, limited, without_shared_photos
from captioner.interrupts import StopSignal
from captioner.parameters.schema import DownloadParameters, RuntimeParameters

ID_STEP = 1_000_000  # ids of a further data set of a merge start at the next multiple of this


@dataclass(frozen=True)
class Plan:
    """Everything that determines the outs.

    Attributes:
        images: (record, split) by ascending id, ids and names as they will be stored.
        skipped: (image, reason) known to be left out already.
        facts: what identifies the result; no path.
        info: what captions.json says about the data set.
    """

    images: Divided
    skipped: list[tuple[str, str]]
    facts: dict[str, Any]
    info: dict[str, Any]


def make_plan(
    parameters: DownloadParameters, runtime: RuntimeParameters, dataset: str, sources: Path, stop: StopSignal
) -> Plan:
    """Read every data set of ``dataset`` (``a+b``), divide, merge and limit them.

    In a merge, ids of each further data set are shifted to start at the next multiple of 1,000,000 above those before,
    and file names begin with their data set's name.

    Raises:
        CaptionerError: see the readers; or more than ``download.max_missing`` of the listed images have no caption or
            are absent.
    """
    names = dataset_names(dataset)
    manifests, listings, sets = [], [], []
    for name in names:
        manifest = read_manifest(name, sources)
        root = _root(parameters.root, name, len(names) > 1)
        listing = _read(parameters, runtime, manifest, root, stop)
        check_missing(
            listing.uncaptioned,
            len(listing.records) + listing.uncaptioned,
            "have no caption",
            listing.table,
            parameters.max_missing,
        )
        karpathy = karpathy_split(parameters.split, manifest, root, lambda archive: _fetch(archive, runtime, stop))
        sets.append(
            divide(
                listing,
                karpathy,
                manifest.layout == "coco",
                parameters.seed,
                parameters.val_share,
                parameters.test_share,
            )
        )
        manifests.append(manifest)
        listings.append(listing)
    skipped = [
        (f"{name}/{what}" if len(names) > 1 else what, why)
        for name, listing in zip(names, listings)
        for what, why in listing.skipped
    ]
    if len(names) > 1:
        sets, shared = without_shared_photos(list(zip(names, sets)))
        skipped += shared
        sets = _merged(names, sets)
    images = [pair for pairs in limited(sets, parameters.limit) for pair in pairs]
    tables = ", ".join(listing.table for listing in listings)
    if not any(split == "train" for _, split in images):
        raise CaptionerError(
            f"{tables}: no image with captions is in the training split; check the splits, or divide another way (download.split)"
        )
    absent = [record for record, _ in images if isinstance(record.source, Absent)]
    if absent:
        check_missing(
            len(absent),
            len(images),
            "are not there",
            tables,
            parameters.max_missing,
            f"{absent[0].file_name}: {absent[0].source.reason}",
        )
    facts = {
        "dataset": dataset,
        "version": parameters.version,
        "image_size": parameters.image_size,
        "jpeg_quality": parameters.jpeg_quality,
        "pillow": PIL.__version__,
        "pictures": digest(images),
        "skipped": hashlib.sha256(repr(skipped).encode("utf-8", "backslashreplace")).hexdigest(),
    }
    info = {
        "description": "; ".join(manifest.description for manifest in manifests),
        "dataset": dataset,
        "licence": "; ".join(f"{manifest.name}: {manifest.licence}" for manifest in manifests if manifest.licence),
        "url": " ".join(manifest.homepage for manifest in manifests if manifest.homepage),
    }
    return Plan(images, skipped, facts, info)


def check_missing(missing: int, total: int, what: str, table: str, most: float, example: str = "") -> None:
    """CaptionerError with numbers, an example and the remedy where more than the share ``most`` of ``total`` images
    is missing."""
    if missing <= most * total:
        return
    if missing == total:
        remedy = "check the names in the table and download.root, or the network"
    else:
        share = min(1.0, -(-missing * 1000 // total) / 1000)
        remedy = f"complete them, or where they are meant to be incomplete, go on without these: -S download.max_missing={share:g}"
    first = f" (the first: {example})" if example else ""
    raise CaptionerError(
        f"{table}: {missing:,} of {total:,} listed images {what}{first}, more than download.max_missing={most:g}; {remedy}"
    )


def _root(root: str | None, name: str, merged: bool) -> Path | None:
    if root is None:
        return None
    folder = Path(root).expanduser()
    return folder / name if merged and (folder / name).is_dir() else folder


def _read(
    parameters: DownloadParameters, runtime: RuntimeParameters, manifest: Manifest, root: Path | None, stop: StopSignal
) -> Listing:
    if manifest.layout == "scenes":
        return read_scenes(manifest, parameters.seed, parameters.scenes)
    if manifest.layout == "custom":
        return read_custom(Path(parameters.captions).expanduser(), root)
    if manifest.layout == "flickr":
        return read_flickr(manifest, root)
    return read_coco(manifest, root, parameters.from_ == "urls", lambda archive: _fetch(archive, runtime, stop))


def _fetch(archive: Archive, runtime: RuntimeParameters, stop: StopSignal) -> Path:
    from captioner.images.fetch import fetch

    target = Path(runtime.download_cache).expanduser() / archive.name
    return fetch(
        archive.url,
        target,
        size=archive.size,
        md5=archive.md5,
        sha256=archive.sha256,
        retries=runtime.retries,
        timeout=runtime.timeout,
        label=archive.name,
        stop=stop,
    )


def _merged(names: list[str], sets: list[Divided]) -> list[Divided]:
    merged, shift = [], 0
    for name, pairs in zip(names, sets):
        merged.append(
            [
                (replace(record, image_id=record.image_id + shift, file_name=f"{name}/{record.file_name}"), split)
                for record, split in pairs
            ]
        )
        if merged[-1]:
            shift = (merged[-1][-1][0].image_id // ID_STEP + 1) * ID_STEP
    return merged
