"""A small finished run to evaluate: drawn images, features of one kind, a decoder with random weights that says many
things."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.evaluation import evaluate
from captioner.features.store import FeatureStore, write_features
from captioner.images.captions import write_captions
from captioner.images.store import write_images
from captioner.model_io import save_model
from captioner.parameters import Parameters, parse_parameters
from captioner.vocabulary.vocabulary import END, SPECIALS, Vocabulary

REPORT = Path("results/report/index.html")  # where the pipeline has it; a summary names it, whatever lies there
SPLITS = {"train": range(0, 4), "val": range(4, 14), "test": range(14, 26)}
ROWS, COLUMNS, CHANNELS = 2, 3, 8
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "horse",
    "stands",
    "runs",
    "sleeps",
    "on",
    "under",
    "near",
    "beach",
    "road",
    "field",
    "tree",
]


def caption(generator: np.random.Generator) -> str:
    return " ".join(generator.choice(WORDS, size=int(generator.integers(4, 9))))


def make_run(folder: Path, splits: dict[str, range] = SPLITS, **facts: Any) -> dict[str, Path]:
    """Write all that ``evaluate`` reads; the keys are its keyword arguments. ``facts`` go into the features file."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    records, rows, annotations, texts = [], [], [], []
    for split, numbers in splits.items():
        for number in numbers:
            width, height = (48, 32) if number % 2 else (32, 40)
            stream = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(stream, "JPEG")
            records.append((number, stream.getvalue(), height, width))
            rows.append(
                {"id": number, "file_name": f"image-{number}.jpg", "split": split, "height": height, "width": width}
            )
            for _ in range(3):
                texts.append(caption(generator))
                annotations.append({"id": len(annotations), "image_id": number, "caption": texts[-1]})
    paths = {
        name: folder / file
        for name, file in (("models", "models"), ("features", "f.h5"), ("captions", "c.json"), ("images", "i.h5"))
    }
    fingerprint = write_images(paths["images"], records)
    write_captions(paths["captions"], rows, annotations, {})
    features = generator.normal(0, 1, (len(rows), 1, ROWS * COLUMNS, CHANNELS)).astype(np.float16)
    facts = {
        "encoder": "squeezenet1_1",
        "weights_name": "bundled",
        "grid": [ROWS, COLUMNS],
        "images": fingerprint,
        **facts,
    }
    store = write_features(paths["features"], features, [row["id"] for row in rows], facts)
    vocabulary = Vocabulary([*SPECIALS, *WORDS], facts={"max_length": 12})
    save_model(paths["models"], make_decoder(len(vocabulary)), vocabulary, model_facts(store))
    return paths


def make_decoder(vocabulary: int) -> Decoder:
    """Seeded weights, sharp enough that images get captions of their own, some short and some as long as may be."""
    config = DecoderConfig(
        "gru",
        "soft",
        vocabulary,
        6,
        CHANNELS,
        ROWS * COLUMNS,
        feature_size=8,
        hidden_size=64,
        attention_size=8,
        rows=ROWS,
    )
    decoder = build_decoder(config)
    fill(decoder, seed=1, end=12.0)
    return decoder.eval()


@torch.no_grad()
def fill(decoder: Decoder, seed: int = 0, sharpness: float = 6.0, end: float = 1.5) -> None:
    """Draw every weight from its name, so that it does not depend on the order in which a decoder makes its layers.

    Args:
        sharpness: factor of the vocabulary layer.
        end: added to the logit of <end>.
    """
    for name, parameter in decoder.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * (
            1.5 / fan_in**0.5 if fan_in > 1 else 0.3
        )
        parameter.copy_(torch.ones_like(parameter) if name == "norm.weight" else drawn)
    decoder.vocabulary.weight.mul_(sharpness)
    decoder.vocabulary.bias[END] += end


def model_facts(store: FeatureStore) -> dict[str, Any]:
    return {
        "dataset": "small",
        "encoder": store.encoder,
        "layer": store.layer,
        "weights_name": store.weights_name,
        "weights_sha256": store.weights_sha256,
        "weights_seed": 1,
        "precision": store.facts["precision"],
        "images": {"image_size": 256, "jpeg_quality": 90},
        "preprocessing": store.preprocessing,
        "grid": list(store.grid),
        "features_fingerprint": store.fingerprint,
        "max_length": 12,
        "fingerprint": "0" * 64,
    }


def parameters(**evaluate_options: Any) -> Parameters:
    options = {"beam_sizes": [1, 3], **evaluate_options}
    return parse_parameters({"dataset": "small", "evaluate": options, "runtime": {"device": "cpu", "threads": 1}})


def run(paths: dict[str, Path], results: Path, **evaluate_options: Any) -> Path:
    """Evaluate into ``results``; returns it."""
    evaluate(parameters(**evaluate_options), results=results, report=results / "report.html", **paths)
    return results
