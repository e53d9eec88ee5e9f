"""The download stage: images and captions of one or more data sets into images.h5, captions.json and skipped.csv.

First, a plan lists the images, their splits and sources. Then several processes read, resize and store the images in
blocks in a sidecar; a run after an interruption writes only the missing blocks. Finally the blocks are joined into one
file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from captioner.errors import CaptionerError
from captioner.images import blocks
from captioner.images.captions import ONE_IMAGE, SPLITS, CaptionSet, write_captions
from captioner.images.plan import Plan, check_missing, make_plan
from captioner.images.records import Absent, FetchedSource, FileSource, Source, UrlSource, ZipSource
from captioner.images.store import ImageStore, create_images
from captioner.interrupts import StopSignal
from captioner.parameters import DownloadParameters, RuntimeParameters
from captioner.progress import Progress
from captioner.sidecar import Sidecar, write_atomically

_CHUNK = 1 << 22
_JPEG_BYTES_PER_PIXEL = 0.6  # a high estimate of the mean at quality 90


def download(
    parameters: DownloadParameters, runtime: RuntimeParameters, dataset: str, folder: Path, sources: Path
) -> None:
    """Write images.h5, captions.json and skipped.csv to ``folder``.

    Args:
        parameters, runtime: see their classes.
        dataset: a data set's name, or several joined with ``+``.
        folder: output folder; unfinished work is kept in ``folder/images.h5.partial``.
        sources: the folder of manifests.

    Raises:
        CaptionerError: bad parameters or data, too many missing images, or a disk that is too small or cannot be
            written.
        Interrupted: a signal arrived; the same call resumes.
    """
    folder = Path(folder)
    with StopSignal("download") as stop:
        plan = make_plan(parameters, runtime, dataset, Path(sources), stop)
        stop.raise_if_requested()
        with Sidecar(folder / "images.h5", {**plan.facts, "block": blocks.BLOCK}) as sidecar:
            _make_blocks(plan, parameters, runtime, sidecar, stop, f"download {dataset}")
            try:
                _assemble(plan, parameters, sidecar, folder)
            except OSError as error:
                raise CaptionerError(
                    f"{folder}: cannot be written ({error.strerror or error}); free the disk or fix its permissions "
                    "and run again"
                ) from error
            sidecar.finish()


def _make_blocks(
    plan: Plan,
    parameters: DownloadParameters,
    runtime: RuntimeParameters,
    sidecar: Sidecar,
    stop: StopSignal,
    label: str,
) -> None:
    starts = range(0, len(plan.images), blocks.BLOCK)
    todo = {}
    for number, start in enumerate(starts):
        sources = [record.source for record, _ in plan.images[start : start + blocks.BLOCK]]
        if blocks.read_block(sidecar.folder, number, len(sources)) is None:
            todo[number] = sources
    left = sum(map(len, todo.values()))
    _check_disk(sidecar.folder, plan, parameters, left)
    maker = blocks.BlockMaker(sidecar.folder, parameters.image_size, parameters.jpeg_quality)
    workers = min(runtime.workers or min(len(os.sched_getaffinity(0)), 16), len(todo))
    with Progress(label, len(plan.images), "images", len(plan.images) - left) as progress:
        blocks.make_blocks(maker, _fetched(todo, len(plan.images), parameters, runtime, stop), workers, stop, progress)


def _fetched(
    todo: dict[int, list[Source]],
    total: int,
    parameters: DownloadParameters,
    runtime: RuntimeParameters,
    stop: StopSignal,
) -> Iterator[tuple[int, list[Source]]]:
    """Yields the blocks to write; blocks with images on the network follow as their images arrive, in any order."""
    wanted = [
        (number, position, source.url)
        for number, sources in todo.items()
        for position, source in enumerate(sources)
        if isinstance(source, UrlSource)
    ]
    waiting = Counter(number for number, _, _ in wanted)
    for number, sources in todo.items():
        if number not in waiting:
            yield number, sources
    if not wanted:
        return
    from captioner.images.fetch import FetchFailure, fetch_many

    failures = 0
    arriving = fetch_many(
        [url for _, _, url in wanted], connections=runtime.connections, retries=runtime.retries, timeout=runtime.timeout
    )
    with contextlib.closing(arriving) as arrivals:  # type: ignore[type-var]  # a generator, annotated as Iterator
        for index, result in arrivals:
            number, position, url = wanted[index]
            if isinstance(result, FetchFailure):
                todo[number][position] = Absent(f"not fetched: {result.reason}")
                failures += 1
                # checked here too: without a network the run fails after the first hundreds of images, not after a day
                check_missing(
                    failures,
                    total,
                    "could not be fetched",
                    "download.from=urls",
                    parameters.max_missing,
                    f"{url}: {result.reason}",
                )
            else:
                todo[number][position] = FetchedSource(result)
            waiting[number] -= 1
            if waiting[number] == 0:
                yield number, todo.pop(number)
            if stop.requested:
                return


def _check_disk(folder: Path, plan: Plan, parameters: DownloadParameters, left: int) -> None:
    """CaptionerError if the disk is probably too small for the remaining blocks and the images file."""
    encoded = int(parameters.image_size**2 * 4 / 3 * _JPEG_BYTES_PER_PIXEL)
    stored = [
        min(record.source.size, encoded) if isinstance(record.source, (FileSource, ZipSource)) else encoded
        for record, _ in plan.images
    ]
    total = sum(stored)
    need = total + total * left // max(len(stored), 1)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise CaptionerError(
            f"{folder.parent}: {free / 1e6:,.0f} MB free, about {need / 1e6:,.0f} MB needed while images are stored; "
            "free the disk, or use fewer (download.limit) or smaller (download.image_size) images"
        )


def _assemble(plan: Plan, parameters: DownloadParameters, sidecar: Sidecar, folder: Path) -> None:
    kept, facts, bad, refetch = [], [], [], set()
    numbers = range(-(-len(plan.images) // blocks.BLOCK))
    for number in numbers:
        part = plan.images[number * blocks.BLOCK : (number + 1) * blocks.BLOCK]
        images = blocks.read_block(sidecar.folder, number, len(part))
        if images is None:
            raise CaptionerError(f"{blocks.bin_path(sidecar.folder, number)}: was changed during the run; run again")
        for (record, split), stored in zip(part, images):
            if isinstance(stored, str):
                bad.append((record.file_name, stored))
                if isinstance(record.source, UrlSource):
                    refetch.add(number)
            else:
                kept.append((record, split))
                facts.append(stored)
    skipped = plan.skipped + bad
    try:
        check_missing(
            len(bad),
            len(plan.images),
            "are missing or unreadable",
            plan.info["dataset"],
            parameters.max_missing,
            ": ".join(bad[0]) if bad else "",
        )
    except CaptionerError:
        for number in refetch:  # so that the next run downloads them again
            blocks.discard_block(sidecar.folder, number)
        raise
    lengths, sizes = (
        np.array([row[0] for row in facts], dtype=np.int64),
        np.array([row[1:] for row in facts], dtype=np.int32),
    )
    draft = sidecar.path("images.h5")
    ids = np.array([record.image_id for record, _ in kept], dtype=np.int64)
    chunks = _chunks(sidecar.folder, numbers)
    fingerprint = create_images(draft, ids, sizes, lengths, chunks, parameters.image_size, parameters.jpeg_quality)
    store = ImageStore.open(draft)
    if store.fingerprint != fingerprint or store.content_fingerprint() != fingerprint:
        raise CaptionerError(f"{draft}: the bytes read back differ from those written; check the disk")
    _write_captions(sidecar.path("captions.json"), kept, sizes, plan.info)
    write_atomically(sidecar.path("skipped.csv"), _skipped(skipped))
    for name in ("skipped.csv", "captions.json", "images.h5"):  # images.h5 last: once it exists, everything does
        sidecar.publish(name, folder / name)
    _report(plan.info["dataset"], kept, len(skipped), folder)


def _chunks(folder: Path, numbers: range) -> Iterator[bytes]:
    for number in numbers:
        with open(blocks.bin_path(folder, number), "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk


def _write_captions(path: Path, kept: list, sizes: np.ndarray, info: dict[str, Any]) -> None:
    images = [
        {
            "id": record.image_id,
            "file_name": record.file_name,
            "split": split,
            "height": int(height),
            "width": int(width),
        }
        for (record, split), (height, width) in zip(kept, sizes)
    ]
    texts = ((record.image_id, caption) for record, _ in kept for caption in record.captions)
    write_captions(
        path,
        images,
        (
            {"id": number, "image_id": image_id, "caption": caption}
            for number, (image_id, caption) in enumerate(texts, 1)
        ),
        info,
    )
    CaptionSet.load(path)


def _skipped(rows: list[tuple[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "reason"))
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _report(dataset: str, kept: list, skipped: int, folder: Path) -> None:
    counts = Counter(split for _, split in kept)
    captions = sum(len(record.captions) for record, _ in kept)
    click.echo(
        f"download {dataset}: "
        + ", ".join(f"{counts[split]:,} {split}" for split in SPLITS)
        + f" images, {captions:,} captions; "
        + (f"{skipped:,} skipped, see {folder / 'skipped.csv'}" if skipped else "none skipped"),
        err=True,
    )
    if not counts["test"]:
        click.echo(
            f"download {dataset}: no test images; give a split (download.split, or a column 'split'), or evaluate on "
            "validation: -S"
            " evaluate.split=val",
            err=True,
        )
    for split in ("val", "test"):
        if counts[split] == 1:
            click.echo(f"warning: download {dataset}: one {split} image; {ONE_IMAGE}", err=True)
    if not counts["val"]:
        click.echo(
            f"download {dataset}: no validation images; set download.val_share, or give some the split val", err=True
        )
