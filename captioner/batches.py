"""Captions as tables of tokens, and padded batches of images with their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from captioner.device import capture_lock
from captioner.errors import CaptionerError
from captioner.features.store import FeatureReader
from captioner.images.captions import CaptionSet
from captioner.vocabulary.vocabulary import END, PAD, START, Vocabulary

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class CaptionTable:
    """The captions of one split as tokens.

    Attributes:
        image_ids: (N,) int64.
        tokens: (M + 1, L + 2) int64: START, words, END, PAD; the last row is PAD alone and stands for "no caption".
        image: (M,) int64, the image of each caption, ascending.
    """

    image_ids: np.ndarray
    tokens: np.ndarray
    image: np.ndarray

    @classmethod
    def build(cls, captions: CaptionSet, split: str, vocabulary: Vocabulary, max_length: int) -> CaptionTable:
        """Tokenize the captions of a split, cut to ``max_length`` words; captions without a word are left out.

        Raises:
            CaptionerError: no caption is left.
        """
        image_ids: list[int] = []
        rows: list[list[int]] = []
        owners: list[int] = []
        for image_id in captions.image_ids(split):
            encoded = [
                vocabulary.encode(vocabulary.tokenize(caption)[:max_length]) for caption in captions.captions(image_id)
            ]
            encoded = [ids for ids in encoded if ids]
            if encoded:
                owners += [len(image_ids)] * len(encoded)
                image_ids.append(image_id)
                rows += encoded
        if not rows:
            remedy = "set download.val_share" if split == "val" else "check the data set's splits"
            raise CaptionerError(
                f"{captions.path}: no caption in the split {split}, which training needs; {remedy} and run the "
                "download stage again"
            )
        tokens = np.full((len(rows) + 1, max(map(len, rows)) + 2), PAD, dtype=np.int64)
        for row, ids in zip(tokens, rows):
            row[: len(ids) + 2] = [START, *ids, END]
        return cls(np.array(image_ids, dtype=np.int64), tokens, np.array(owners, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def targets(self) -> np.ndarray:
        """(M + 1,) int64, tokens to predict of each caption: its words and END; 0 of the last row."""
        return np.maximum((self.tokens != PAD).sum(1) - 1, 0)


@dataclass(frozen=True)
class Batch:
    """Which images and captions a step works on.

    Attributes:
        images: (I,) int64 into the table's image_ids.
        captions: (I, K) int64 into the table's tokens; -1 pads images with fewer than K captions.
        views: (I,) int64, which stored view of each image.
    """

    images: np.ndarray
    captions: np.ndarray
    views: np.ndarray


def group_captions(
    table: CaptionTable, size: int = 0, generator: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Captions of an image that stay together.

    Args:
        size: the most captions of a group; 0: all of an image.
        generator: shuffles the captions of each image before they are grouped; None: their order in the table.

    Returns:
        (G, K) int64 captions with -1 as padding, and the image of each group (G,).
    """
    captions = np.arange(len(table))
    if generator is not None:
        captions = np.lexsort((generator.random(len(table)), table.image))
    owner = table.image[captions]
    counts = np.bincount(owner)
    rank = np.arange(len(captions)) - np.repeat(np.cumsum(counts) - counts, counts)  # among the image's own captions
    size = size or int(counts.max())
    starts = rank % size == 0
    group = np.cumsum(starts) - 1
    groups = np.full((int(starts.sum()), min(size, int(counts.max()))), -1, dtype=np.int64)
    groups[group, rank % size] = captions
    return groups, owner[starts]


def cut_batches(
    table: CaptionTable, groups: np.ndarray, owners: np.ndarray, views: np.ndarray, batch_size: int
) -> list[Batch]:
    """Consecutive groups (G, K) as batches of at most ``batch_size`` captions; a larger group is its own batch.

    In a batch the images with the longest captions come first, and of an image the longest caption, so that a decoder
    can leave out those that are done.
    """
    counts = (groups >= 0).sum(1)
    bounds, total = [0], 0
    for row, count in enumerate(counts):
        if total and total + count > batch_size:
            bounds.append(row)
            total = 0
        total += count
    bounds.append(len(groups))
    batches = []
    for first, last in zip(bounds, bounds[1:]):
        rows = first + longest_first(table, groups[first:last])
        captions = groups[rows, : counts[rows].max()]
        order = np.argsort(-table.targets[captions], axis=1, kind="stable")
        batches.append(Batch(owners[rows], np.take_along_axis(captions, order, axis=1), views[rows]))
    return batches


def longest_first(table: CaptionTable, groups: np.ndarray) -> np.ndarray:
    """The order of groups (G, K) by their longest caption, then by all their tokens: (G,) int64."""
    lengths = table.targets[groups]  # 0 for padding
    return np.lexsort((-lengths.sum(1), -lengths.max(1)))


def ordered_batches(table: CaptionTable, batch_size: int) -> list[Batch]:
    """All captions, batch after batch in file order, view 0; for validation and evaluation."""
    groups, owners = group_captions(table)
    return cut_batches(table, groups, owners, np.zeros(len(groups), dtype=np.int64), batch_size)


def inputs_and_targets(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Captions (I, K, T + 1), START, words, END, PAD -> what the decoder reads and what it predicts, (I, K, T) each.

    Both are PAD where there is nothing to predict.
    """
    targets = tokens[..., 1:]
    return tokens[..., :-1].where(targets != PAD, PAD), targets


class BatchLoader:
    """Reads batches: features from a reader, tokens from the table.

    Args:
        table: captions of the split.
        rows: (N,) int64, the features file's row of each image of the table.
        reader: of the features file.
    """

    def __init__(self, table: CaptionTable, rows: np.ndarray, reader: FeatureReader) -> None:
        self.table, self._rows, self._reader = table, rows, reader

    def load(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features (I, P, C) float16 on the reader's device and tokens (I, K, T + 1) int64 on the CPU, padded with PAD.

        T is the length of the longest caption with END. The batch may have no image.
        """
        tokens = self.table.tokens[batch.captions]  # (I, K, L + 2); row -1 is the row of PAD
        longest = int(self.table.targets[batch.captions].max(initial=1))
        tokens = np.ascontiguousarray(tokens[..., : longest + 1])
        with capture_lock:  # it may copy to a GPU
            features = self._reader.read(self._rows[batch.images], batch.views)
        return features, torch.from_numpy(tokens)

    def stream(self, groups: Iterable[list[Batch]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Lists of batches one after another, the next one read in a thread while the last is worked on."""
        return ahead(lambda group: [self.load(batch) for batch in group], groups)


def ahead(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """``work`` done on one item after another, in a thread on the next while the caller uses the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting = None
        for item in items:
            following = pool.submit(work, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
