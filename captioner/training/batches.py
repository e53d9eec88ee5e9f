"""Captions as token tables, and the batches of an epoch: a pure function of seed and epoch, so that a resumed run sees
the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from captioner.decoder.packing import caption_lengths
from captioner.errors import CaptionerError
from captioner.features.store import FeatureReader
from captioner.images.captions import CaptionSet
from captioner.vocabulary.tokenizer import tokenize
from captioner.vocabulary.vocabulary import END, PAD, START, Vocabulary

S, T = TypeVar("S"), TypeVar("T")


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
        """Tokenize the captions of a split; longer ones are cut to ``max_length`` words, ones without a word are left
        out.

        Raises:
            CaptionerError: no caption is left.
        """
        image_ids, rows, owners = [], [], []
        for image_id in captions.image_ids(split):
            encoded = [vocabulary.encode(tokenize(caption)[:max_length]) for caption in captions.captions(image_id)]
            encoded = [ids for ids in encoded if ids]
            if encoded:
                owners += [len(image_ids)] * len(encoded)
                image_ids.append(image_id)
                rows += encoded
        if not rows:
            remedy = "set download.val_share" if split == "val" else "check the data set's splits"
            raise CaptionerError(
                f"{captions.path}: no caption in the split {split}, which training needs; {remedy} and run the download stage again"
            )
        tokens = np.full((len(rows) + 1, max(map(len, rows)) + 2), PAD, dtype=np.int64)
        for row, ids in zip(tokens, rows):
            row[: len(ids) + 2] = [START, *ids, END]
        return cls(np.array(image_ids, dtype=np.int64), tokens, np.array(owners, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def targets(self) -> np.ndarray:
        """(M + 1,) int64, tokens of each caption that are to be predicted; none of the last row."""
        return caption_lengths(self.tokens)


@dataclass(frozen=True)
class Batch:
    """Pictures of a step and their captions.

    Attributes:
        images: (I,) int64 into the table's image_ids.
        captions: (I, K) int64 into the table's tokens; -1 fills up pictures with fewer than K.
        views: (I,) int64, which stored view of each picture.
    """

    images: np.ndarray
    captions: np.ndarray
    views: np.ndarray


def epoch_batches(
    table: CaptionTable, batch_size: int, captions_per_image: int, views: int, seed: int, epoch: int
) -> list[Batch]:
    """The batches of a training epoch: every caption once, pictures in random order.

    Args:
        batch_size: the most captions in a batch (a picture whose captions are more is a batch of its own).
        captions_per_image: captions of a picture that go together; 0 all of them, 1 independent draws.
        views: stored views; each visit of a picture draws one.
        seed, epoch: what the order and the views are drawn from.
    """
    generator = np.random.default_rng([seed, epoch])
    groups, owners = _groups(table, captions_per_image, generator)
    order = generator.permutation(len(groups))
    drawn = generator.integers(views, size=len(groups))
    return _cut(groups[order], owners[order], drawn, batch_size)


def ordered_batches(table: CaptionTable, batch_size: int) -> list[Batch]:
    """All captions picture by picture in file order, view 0; for validation."""
    groups, owners = _groups(table, 0, None)
    return _cut(groups, owners, np.zeros(len(groups), dtype=np.int64), batch_size)


def share(batch: Batch, table: CaptionTable, rank: int, world: int) -> Batch | None:
    """The pictures of a batch that process ``rank`` of ``world`` works on; None where there are too few for it to have
    one.

    From the longest to the shortest by the tokens of its captions, each picture goes to the process that has the least
    to do so far (Graham 1969). Every process knows all shares, since nothing but the batch decides them.
    """
    if world == 1:
        return batch
    work = table.targets[batch.captions].sum(1)  # (I,)
    loads, mine = [0] * world, []
    for picture in np.argsort(-work, kind="stable").tolist():
        least = loads.index(min(loads))
        loads[least] += int(work[picture])
        if least == rank:
            mine.append(picture)
    if not mine:
        return None
    chosen = np.array(sorted(mine))
    return Batch(batch.images[chosen], batch.captions[chosen], batch.views[chosen])


def _groups(table: CaptionTable, size: int, generator: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """Captions that stay together: (G, K) with -1 for none, and the picture of each group (G,)."""
    captions = np.arange(len(table))
    if size:
        captions = np.lexsort((generator.random(len(table)), table.image))  # shuffled within each picture
    owner = table.image[captions]
    counts = np.bincount(owner)
    place = np.arange(len(captions)) - np.repeat(np.cumsum(counts) - counts, counts)  # among the picture's own captions
    size = size or int(counts.max())
    starts = place % size == 0
    group = np.cumsum(starts) - 1
    groups = np.full((int(starts.sum()), min(size, int(counts.max()))), -1, dtype=np.int64)
    groups[group, place % size] = captions
    return groups, owner[starts]


def _cut(groups: np.ndarray, owners: np.ndarray, views: np.ndarray, batch_size: int) -> list[Batch]:
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
        width = int(counts[first:last].max())
        batches.append(Batch(owners[first:last], groups[first:last, :width], views[first:last]))
    return batches


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
        """Features (I, P, C) float16 on the reader's device and tokens (I, K, T + 1) int64 on the CPU, T of the longest
        caption."""
        tokens = self.table.tokens[batch.captions]  # (I, K, L + 2); row -1 is the row of PAD
        longest = int((tokens != PAD).sum(-1).max())
        return self._reader.read(self._rows[batch.images], batch.views), torch.from_numpy(
            np.ascontiguousarray(tokens[:, :, :longest])
        )

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches one after another, the next one read in a thread while the last is worked on."""
        return ahead(self.load, batches)

    def stream_groups(self, groups: Iterable[list[Batch | None]]) -> Iterator[list[tuple[Tensor, Tensor] | None]]:
        """The same for batches that belong together; None stays None."""
        return ahead(lambda group: [None if batch is None else self.load(batch) for batch in group], groups)


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
