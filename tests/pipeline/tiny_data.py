"""Tiny data sets in the layouts that users have: Flickr8k's, COCO's, and a table of one's own."""

from __future__ import annotations

import json
from pathlib import Path

from captioner.images.scenes import captions, describe, draw


def _draw(path: Path, index: int) -> list[str]:
    """Save scene ``index`` as a JPEG; its captions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scene = describe(7, index)
    draw(scene).resize((96, 96)).save(path)
    return captions(scene)


def flickr8k(folder: Path, train: int = 16, dev: int = 6, test: int = 6) -> Path:
    """The official Flickr8k layout."""
    text = folder / "Flickr8k_text"
    text.mkdir(parents=True)
    tokens, index = [], 0
    for name, count in (("train", train), ("dev", dev), ("test", test)):
        files = [f"{1000 + index + i}_{name}.jpg" for i in range(count)]
        for file in files:
            said = _draw(folder / "Flicker8k_Dataset" / file, index)
            tokens += [f"{file}#{number}\t{caption}" for number, caption in enumerate(said)]
            index += 1
        (text / f"Flickr_8k.{name}Images.txt").write_text("\n".join(files) + "\n")
    (text / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
    return folder


def coco2017(folder: Path, train: int = 20, val: int = 6) -> Path:
    """COCO's layout: train2017/, val2017/ and their annotations."""
    index = 0
    for part, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for _ in range(count):
            name = f"{index + 1:012d}.jpg"
            for caption in _draw(folder / f"{part}2017" / name, index):
                annotations.append({"id": len(annotations) + 1000 * index, "image_id": index + 1, "caption": caption})
            images.append(
                {"id": index + 1, "file_name": name, "height": 96, "width": 96, "coco_url": f"http://localhost/{name}"}
            )
            index += 1
        target = folder / "annotations" / f"captions_{part}2017.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations}))
    return folder


def table(folder: Path, count: int = 20) -> Path:
    """A CSV of one's own beside its images."""
    rows = ["image,caption"]
    for index in range(count):
        rows += [f'{index}.png,"{caption}"' for caption in _draw(folder / f"{index}.png", index)]
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder / "captions.csv"
