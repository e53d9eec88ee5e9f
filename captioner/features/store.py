"""Stored features, found by image id. The file's layout and its creation are in ``layout``, the ways to read it in
``readers``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captioner.errors import CaptionerError
from captioner.features.layout import DEFAULT_FACTS, Layout, create_features
from captioner.features.readers import FeatureReader, open_reader
from captioner.features.writer import FeatureWriter

__all__ = ["FeatureReader", "FeatureStore", "FeatureWriter", "create_features", "write_features"]


class FeatureStore:
    """A finished features file. Holds no open handle, so it can be sent to another process.

    Attributes:
        path: the file.
        shape: ``(N, V, P, C)``: images, views, grid positions (row by row), channels.
        image_ids: ``(N,)`` int64; row i holds the features of image_ids[i].
        fingerprint: of the facts; two files with the same fingerprint hold the same features.
        images_fingerprint: of the images file that they were made from.
        encoder, layer, weights_name, weights_sha256: what made them.
        grid: ``(rows, columns)``, rows * columns = P.
        preprocessing: how an image became the encoder's input: ``fit``, ``image_size``, ``mean``, ``std``,
            ``resample``, and ``crop_pct`` where it is below 1.
        views: V; view 0 is the plain one.
        facts: all facts that make the fingerprint.
        weights_seed: ``extract.seed`` of random weights; 1, its default, for other weights and where an older file does
            not state it.
        weights_license: of the encoder's weights, as their publisher states it; None where nothing is stated.
        image_size, jpeg_quality: how the download stage stored the images, as ``ImageStore`` states it; None where an
            older file does not.
    """

    def __init__(self, layout: Layout) -> None:
        facts, attributes = layout.facts, layout.attributes
        self.path, self.shape, self.image_ids = layout.path, layout.shape, layout.image_ids
        self.facts: dict[str, Any] = facts
        self.fingerprint, self.images_fingerprint = str(attributes["fingerprint"]), str(facts["images"])
        self.encoder, self.layer = str(facts["encoder"]), str(facts["layer"])
        self.weights_name, self.weights_sha256 = str(facts["weights_name"]), str(facts["weights_sha256"])
        self.grid: tuple[int, int] = (int(facts["grid"][0]), int(facts["grid"][1]))
        self.preprocessing: dict[str, Any] = facts["preprocessing"]
        self.views = int(facts["views"])
        self.weights_seed = int(attributes.get("weights_seed", 1))
        license = attributes.get("weights_license")
        self.weights_license = None if license is None else str(license)
        self.image_size, self.jpeg_quality = (
            None if (value := attributes.get(key)) is None else int(value) for key in ("image_size", "jpeg_quality")
        )
        self.offset, self.row_size, self._checksums = layout.offset, layout.row_size, layout.checksums
        self._order = np.argsort(self.image_ids, kind="stable")
        self._sorted = self.image_ids[self._order]

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open a finished features file.

        Raises:
            CaptionerError: the file is missing, no features file, shorter than its rows, or some of its rows were never
                written.
        """
        layout = Layout(path)
        if layout.size < layout.expected_size:
            raise CaptionerError(
                f"{path}: truncated, {layout.size:,} of {layout.expected_size:,} bytes; "
                "delete it and run the extract stage again"
            )
        if not layout.done.all():
            missing = int((~layout.done).sum())
            raise CaptionerError(
                f"{path}: {missing:,} of {layout.shape[0]:,} rows were never written; run the extract stage again"
            )
        return cls(layout)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, image_ids: Iterable[int]) -> np.ndarray:
        """The rows ``(K,)`` int64 of some images.

        Raises:
            CaptionerError: an image has no features; its id is named.
        """
        wanted = np.asarray(
            image_ids if isinstance(image_ids, np.ndarray) else list(image_ids), dtype=np.int64
        ).reshape(-1)
        positions = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        found = self._sorted[positions] == wanted
        if not found.all():
            raise CaptionerError(
                f"{self.path}: no features of image {wanted[~found][0]} ({int((~found).sum()):,} images are missing); "
                "run the extract stage again"
            )
        return self._order[positions]

    def reader(self, where: str = "auto", device: str | torch.device = "cpu") -> FeatureReader:
        """A reader of random rows; ``where`` and ``device`` as in ``readers.open_reader``."""
        return open_reader(self.path, self.offset, self.shape, where, device, self._checksums)


def write_features(
    path: str | Path,
    features: np.ndarray,
    image_ids: Iterable[int],
    facts: dict[str, Any] | None = None,
    stated: dict[str, Any] | None = None,
) -> FeatureStore:
    """Write a whole features file from memory.

    Args:
        features: ``(N, V, P, C)`` float16.
        image_ids: ``(N,)`` int64.
        facts: any of ``layout.DEFAULT_FACTS``; the rest is filled in. Without ``grid``, a square grid where P is a
            square, else 1 x P.
        stated: any of ``layout.STATED``.
    """
    features = np.asarray(features, dtype=np.float16)
    side = int(round(features.shape[2] ** 0.5))
    grid = [side, side] if side * side == features.shape[2] else [1, features.shape[2]]
    facts = {**DEFAULT_FACTS, "grid": grid, "views": features.shape[1], **(facts or {})}
    create_features(path, features.shape, image_ids, facts, stated)
    with FeatureWriter(path) as writer:
        writer.write(0, features)
        writer.sync()
    return FeatureStore.open(path)
