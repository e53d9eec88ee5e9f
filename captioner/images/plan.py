"""The plan of a download, made before any image is read: records, splits, merged ids and fingerprint facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import PIL

from captioner.errors import CaptionerError
from captioner.images.datasets.coco import read_coco
from captioner.images.datasets.custom import read_custom
from captioner.images.datasets.flickr import read_flickr
from captioner.images.datasets.scenes import read_scenes
from captioner.images.decode import reads_avif, reads_heic
from captioner.images.manifests import Archive, Manifest, dataset_names, read_manifest
from captioner.images.records import Absent, Listing, digest, valid_unicode
from captioner.images.splits import SplitRecords, assign_splits, drop_shared_photos, karpathy_split, limit_images
from captioner.interrupts import StopSignal
from captioner.parameters import DownloadParameters, RuntimeParameters

ID_STEP = 1_000_000  # in a merge, the ids of each further data set start at the next multiple


@dataclass(frozen=True)
class Plan:
    """Everything that determines the output files.

    Attributes:
        images: (record, split) by ascending id; ids and names as stored.
        skipped: (image, reason) of images that are already known to be skipped.
        facts: the inputs of the fingerprint; no path.
        info: the ``info`` of captions.json.
    """

    images: SplitRecords
    skipped: list[tuple[str, str]]
    facts: dict[str, Any]
    info: dict[str, Any]


def make_plan(
    parameters: DownloadParameters, runtime: RuntimeParameters, dataset: str, sources: Path, stop: StopSignal
) -> Plan:
    """Read every data set of ``dataset`` (``a+b``), assign splits, merge and limit them.

    In a merge, the ids of each further data set are shifted to start at the next multiple of 1,000,000, and file names
    are prefixed with the data set's name.

    Raises:
        CaptionerError: an error of a reader, or more than ``download.max_missing`` of the listed images have no caption
            or are missing.
    """
    names = dataset_names(dataset)
    manifests, listings, sets = [], [], []
    for name in names:
        manifest = read_manifest(name, sources)
        root = _root(parameters.root, name, len(names) > 1)
        listing = _with_valid_unicode(_read(parameters, runtime, manifest, root, stop))
        check_missing(
            listing.uncaptioned,
            len(listing.records) + listing.uncaptioned,
            "have no caption",
            listing.table,
            parameters.max_missing,
        )
        karpathy = karpathy_split(parameters.split, manifest, root, lambda archive: _fetch(archive, runtime, stop))
        sets.append(
            assign_splits(
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
        sets, shared = drop_shared_photos(list(zip(names, sets)))
        skipped += shared
        sets = _merged(names, sets)
    images = [pair for pairs in limit_images(sets, parameters.limit) for pair in pairs]
    tables = ", ".join(listing.table for listing in listings)
    if not any(split == "train" for _, split in images):
        raise CaptionerError(
            f"{tables}: no image with captions is in the training split; check the splits, or choose others "
            "(download.split)"
        )
    absent = [(record.file_name, record.source.reason) for record, _ in images if isinstance(record.source, Absent)]
    if absent:
        check_missing(
            len(absent),
            len(images),
            "are not there",
            tables,
            parameters.max_missing,
            ": ".join(absent[0]),
        )
    facts = {
        "dataset": dataset,
        "version": parameters.version,
        "image_size": parameters.image_size,
        "jpeg_quality": parameters.jpeg_quality,
        "pillow": PIL.__version__,
        "avif": reads_avif(),
        "heic": reads_heic(),
        "images": digest(images),
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
    """CaptionerError with counts, an example and a remedy if more than the fraction ``most`` of ``total`` images is
    missing."""
    if missing <= most * total:
        return
    if missing == total:
        remedy = "check the names in the table and download.root, or the network"
    else:
        fraction = min(1.0, -(-missing * 1000 // total) / 1000)
        remedy = f"add them, or, if they are meant to be missing, raise the limit: -S download.max_missing={fraction:g}"
    first = f" (the first: {example})" if example else ""
    raise CaptionerError(
        f"{table}: {missing:,} of {total:,} listed images {what}{first}, more than download.max_missing={most:g}; "
        f"{remedy}"
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


def _with_valid_unicode(listing: Listing) -> Listing:
    """The listing with captions and names that can be written as UTF-8; says how many were changed."""
    records = [
        replace(
            record,
            file_name=valid_unicode(record.file_name),
            captions=tuple(map(valid_unicode, record.captions)),
        )
        for record in listing.records
    ]
    changed = [
        new.file_name
        for old, new in zip(listing.records, records)
        for before, after in zip((old.file_name, *old.captions), (new.file_name, *new.captions))
        if before != after
    ]
    if changed:
        click.echo(
            f"{listing.table}: {len(changed):,} captions or names have characters that are no valid Unicode (unpaired "
            f"surrogates); replaced by U+FFFD (the first: image {changed[0]}); correct the table if they matter",
            err=True,
        )
    return replace(listing, records=records)


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


def _merged(names: list[str], sets: list[SplitRecords]) -> list[SplitRecords]:
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
