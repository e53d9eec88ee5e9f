"""COCO captions from a local copy, from the official zips, or image by image from the URLs in the annotations.

Image ids are COCO's own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from captioner.errors import CaptionerError
from captioner.images.captions import read_json
from captioner.images.containers import Folder, Zip, find_images, read_member
from captioner.images.manifests import Fetcher, Manifest
from captioner.images.records import Absent, ImageRecord, Listing, UrlSource, clean

_FLICKR = re.compile(r"/(\d+)_\w+\.jpg$")


def read_coco(manifest: Manifest, root: Path | None, from_urls: bool, fetch: Fetcher) -> Listing:
    """The images of all parts of a COCO release.

    Args:
        root: a local copy of all or some parts: annotations as JSON or in their zip, images in folders or zips.
        from_urls: download each image from its ``coco_url``; with a ``root``, only missing ones.
        fetch: downloads an archive of the manifest to the download cache.

    Raises:
        CaptionerError: the copy has no part with both annotations and images, or the annotations are not COCO captions.
    """
    if root is not None and not root.is_dir():
        raise CaptionerError(f"params.yaml: download.root={root}: no such folder; give the folder of {manifest.name}")
    found: dict[int, tuple[dict[str, Any], list[str], str, Folder | Zip | None, str]] = {}
    listing = Listing([])
    absent = []
    for part in manifest.parts:
        name = part["name"]
        member = manifest.annotations.format(part=name)
        content, table = _annotations(manifest, root, member, fetch)
        files = _image_files(manifest, root, name, from_urls, fetch) if content is not None else None
        if content is None or (files is None and not from_urls):
            absent.append((name, f"no {member}" if content is None else "no images"))
            continue
        images, captions = check_annotations(content, table, listing)
        for number, image in images.items():
            if number in found:
                listing.skipped.append(
                    (image["file_name"], f"image id {number} is also in {found[number][2]}; the latter part counts")
                )
            found[number] = (image, captions[number], part["split"], files, table)
        if files is not None:
            named = {image["file_name"].rsplit("/", 1)[-1] for image in images.values()}
            listing.skipped += [(f"{name}/{file}", "no captions") for file in files.names() if file not in named]
        listing.table = table
    if not found:
        raise CaptionerError(
            f"{root}: no part of {manifest.name} with annotations and images "
            f"({'; '.join(f'{n}: {w}' for n, w in absent)}); "
            f"set download.root to the folder with {manifest.parts[0]['name']}/ and annotations/"
        )
    for name, what in absent:
        click.echo(f"{manifest.name}: {name} is skipped, this copy has {what}", err=True)
        listing.skipped.append((name, f"whole part left out: {what} in this copy"))
    for number, (image, texts, split, files, table) in sorted(found.items()):
        if not texts:
            listing.uncaptioned += 1
            listing.skipped.append((image["file_name"], "no captions"))
            continue
        source = files.source(image["file_name"], table) if files is not None else Absent("not in the local copy")
        if isinstance(source, Absent) and from_urls:
            url = image.get("coco_url")
            source = (
                UrlSource(url)
                if isinstance(url, str) and url.startswith(("http://", "https://"))
                else Absent("no coco_url in the annotations")
            )
        flickr = _FLICKR.search(str(image.get("flickr_url", "")))
        photo = f"flickr {flickr[1]}" if flickr else f"coco {number}"
        listing.records.append(ImageRecord(number, image["file_name"], tuple(texts), split, source, photo))
    return listing


def _annotations(
    manifest: Manifest, root: Path | None, member: str, fetch: Fetcher
) -> tuple[dict[str, Any] | None, str]:
    """The JSON of one part and its name in messages; None if a local copy lacks it."""
    if root is not None:
        for path in (root / member, root / Path(member).name):
            if path.is_file():
                return read_json(path), str(path)
        name = manifest.archives["annotations"].name
        archive = next((path for path in (root / name, root / "annotations" / name) if path.is_file()), None)
        if archive is None:
            return None, ""
    else:
        archive = fetch(manifest.archives["annotations"])
    data = read_member(archive, member)
    if data is None:
        if root is not None:
            return None, ""
        raise CaptionerError(f"{archive}: it lacks {member}; delete it and run again")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CaptionerError(
            f"{archive}: {member} is not valid JSON ({error}); delete the archive and download it again"
        ) from error
    return content, f"{archive}:{member}"


def _image_files(
    manifest: Manifest, root: Path | None, part: str, from_urls: bool, fetch: Fetcher
) -> Folder | Zip | None:
    if root is not None:
        return find_images(root, (part,))
    return None if from_urls else Zip(fetch(manifest.archives[part]))


def check_annotations(
    content: Any, table: str, listing: Listing
) -> tuple[dict[int, dict[str, Any]], dict[int, list[str]]]:
    """Images by id and their captions in order; invalid entries go to ``listing.skipped``.

    Args:
        content: a file in COCO's captions format, as JSON values.
        table: its name, for messages.

    Raises:
        CaptionerError: it is another kind of file, or one of its ids or names is invalid.
    """
    rows: list[Any] = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
    if not all(isinstance(part, list) and all(isinstance(row, dict) for row in part) for part in rows):
        raise CaptionerError(
            f"{table}: not a COCO captions file (lists 'images' and 'annotations' of objects); give captions_*.json"
        )
    images: dict[int, dict[str, Any]] = {}
    for image in rows[0]:
        number, name = image.get("id"), image.get("file_name")
        if type(number) is not int or abs(number) >= 1 << 62 or not isinstance(name, str) or not name:
            raise CaptionerError(
                f"{table}: an image has id {number!r} and file_name {name!r}; give the official captions_*.json"
            )
        if number in images:
            if images[number]["file_name"] != name:
                raise CaptionerError(
                    f"{table}: image id {number} is used for {images[number]['file_name']} and for {name}; remove "
                    "one of them"
                )
            listing.skipped.append((name, f"image id {number} is listed twice; the first counts"))
            continue
        images[number] = image
    captions: dict[int, list[str]] = {number: [] for number in images}
    for row in rows[1]:
        if "caption" not in row:
            raise CaptionerError(
                f"{table}: annotation {row.get('id')!r} has no 'caption'; give captions_*.json, not instances or "
                "keypoints"
            )
        number, text = row.get("image_id"), clean(row["caption"])
        if type(number) is not int or number not in captions:
            listing.skipped.append((f"image id {number}", "a caption for an image that the annotations do not list"))
        elif not text:
            listing.skipped.append((images[number]["file_name"], f"caption {row.get('id')} is empty"))
        else:
            captions[number].append(text)
    return images, captions
