"""Section ``download`` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.parameters.options import option


@dataclass(frozen=True)
class DownloadParameters:
    """Where images and captions come from, and how images are stored."""

    version: int = option(1, "increased when the stage's result changes for the same parameters", low=1)
    seed: int = option(1, "seed of the generated scenes and of the 85/15 split", low=0)
    root: str | None = option(
        None, "folder with a local copy of the data set, complete or partial; null: bundled or from the network"
    )
    captions: str = option(
        "sources/custom.csv",
        "dataset=custom only: CSV or JSON of image,caption[,split], or COCO captions; image paths are relative to root "
        "or to this file",
    )
    from_: str = option(
        "archives",
        "COCO over the network: the official archives, or each image from its URL",
        choices=("archives", "urls"),
    )
    split: str = option("own", "own: the data set's; karpathy: fetched; or the path of a Karpathy-style dataset_*.json")
    limit: int = option(0, "use only the first N images of each split, for trials; 0: all", low=0)
    image_size: int = option(
        256, "shorter side of the stored JPEGs in pixels; images are never enlarged", low=32, high=2048
    )
    max_missing: float = option(
        0.02, "fraction of the listed images that may be missing or unreadable; more is an error", low=0, high=1
    )
    test_share: float = option(1.0, "fraction of the data set's test images that is kept", low=0, high=1)
    val_share: float = option(
        0.15,
        "fraction of the training images held out for validation where the data set has no validation split",
        low=0,
        high=0.9,
    )
    jpeg_quality: int = option(90, "quality of re-encoded JPEGs", low=10, high=100)
    scenes: int = option(6000, "dataset=scenes only: number of generated scenes", low=20, high=10_000_000)
