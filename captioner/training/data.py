"""The batches of a training epoch: a pure function of seed and epoch, so that a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captioner.batches import Batch, CaptionTable, cut_batches, group_captions, longest_first

_POOL_BATCHES = 50  # with group_by_length, images are sorted among as many as fill this many batches


def epoch_batches(
    table: CaptionTable,
    batch_size: int,
    captions_per_image: int,
    views: int,
    seed: int,
    epoch: int,
    group_by_length: bool = False,
) -> list[Batch]:
    """The batches of an epoch in random order, every caption once.

    Args:
        batch_size: the most captions in a batch (an image with more is a batch of its own).
        captions_per_image: captions of an image that stay together; 0: all of them, 1: independent draws.
        views: stored views; each visit of an image draws one.
        seed, epoch: seed of the order and of the views.
        group_by_length: batches of images whose longest captions are of similar length; else of random images.
    """
    generator = np.random.default_rng([seed, epoch])
    groups, owners = group_captions(table, captions_per_image, generator if captions_per_image else None)
    order = generator.permutation(len(groups))
    drawn = generator.integers(views, size=len(groups))
    if group_by_length:
        size = _POOL_BATCHES * max(1, batch_size // groups.shape[1])
        pools = [order[first : first + size] for first in range(0, len(order), size)]
        order = np.concatenate([pool[longest_first(table, groups[pool])] for pool in pools])
    batches = cut_batches(table, groups[order], owners[order], drawn[order], batch_size)
    return [batches[row] for row in generator.permutation(len(batches))]


def shard(batch: Batch, table: CaptionTable, rank: int, world_size: int) -> Batch:
    """The images of a batch that rank ``rank`` works on; it may have none.

    From the most tokens to the fewest, each image goes to the rank that has the least to do so far (Graham 1969).
    """
    if world_size == 1:
        return batch
    work = table.targets[batch.captions].sum(1)  # (I,)
    loads, own = [0] * world_size, []
    for image in np.argsort(-work, kind="stable").tolist():
        least = loads.index(min(loads))
        loads[least] += int(work[image])
        if least == rank:
            own.append(image)
    rows = np.array(sorted(own), dtype=np.int64)
    return Batch(batch.images[rows], batch.captions[rows], batch.views[rows])


@dataclass(frozen=True)
class GlobalBatch:
    """What one step of the optimizer counts, over all its batches and all ranks.

    Attributes:
        tokens: to predict.
        captions: that have one.
        images: of all batches.
    """

    tokens: int
    captions: int
    images: int

    @classmethod
    def of(cls, batches: Sequence[Batch], table: CaptionTable) -> GlobalBatch:
        """Count the batches of a step before they are sharded."""
        tokens = sum(int(table.targets[batch.captions].sum()) for batch in batches)
        captions = sum(int((batch.captions >= 0).sum()) for batch in batches)
        return cls(tokens, captions, sum(len(batch.images) for batch in batches))
