"""The order of images and captions, and how much of a batch is padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.batches import Batch, BatchLoader, CaptionTable, cut_batches, inputs_and_targets, ordered_batches
from captioner.cuda_graphs import pad_images, pad_length
from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.images.captions import CaptionSet
from captioner.training.data import epoch_batches
from captioner.vocabulary.vocabulary import Vocabulary
from tests.training.small import make_data


@pytest.fixture(scope="module")
def table() -> CaptionTable:
    counts = [5, 1, 3, 5, 5, 2, 7, 5, 5, 5]
    tokens = np.full((sum(counts) + 1, 4), 7)
    tokens[-1] = 0  # no caption
    return CaptionTable(np.arange(10) + 50, tokens, np.repeat(np.arange(10), counts))


@pytest.mark.parametrize("captions_per_image", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("batch_size", [1, 8, 1000])
def test_every_caption_once_an_epoch_with_its_image(
    table: CaptionTable, captions_per_image: int, batch_size: int
) -> None:
    batches = epoch_batches(table, batch_size, captions_per_image, 3, seed=1, epoch=1)
    seen = []
    for batch in batches:
        real = batch.captions >= 0
        assert real.any(1).all() and batch.captions.shape == (len(batch.images), real.sum(1).max())
        assert real.sum() <= batch_size or len(batch.images) == 1
        assert batch.views.shape == batch.images.shape and set(batch.views) <= {0, 1, 2}
        if captions_per_image:
            assert batch.captions.shape[1] <= captions_per_image
        for image, captions in zip(batch.images, batch.captions):
            mine = captions[captions >= 0]
            assert (table.image[mine] == image).all()
            if captions_per_image == 0:
                assert len(mine) == (table.image == image).sum()
            seen += mine.tolist()
    assert sorted(seen) == list(range(len(table)))
    if batch_size == 8 and captions_per_image == 1:
        assert len(batches) == 6  # 43 = 5 * 8 + 3


def test_batches_are_cut_where_the_next_group_does_not_fit() -> None:
    groups = np.array([[0, 1, -1], [2, -1, -1], [3, 4, 5], [6, 7, -1], [8, 9, 10], [11, -1, -1]])
    lengths = [2, 3, 3, 1, 2, 3, 1, 1, 1, 2, 1, 3]
    tokens = np.array([[5] * (length + 1) + [0] * (3 - length) for length in [*lengths, -1]])
    table = CaptionTable(np.arange(6), tokens, np.repeat(np.arange(6), [2, 1, 3, 2, 3, 1]))
    batches = cut_batches(table, groups, np.arange(6) + 20, np.arange(6), 4)
    # the longest captions first, of the batch and of an image; a batch is as wide as its largest group
    assert [batch.images.tolist() for batch in batches] == [[20, 21], [22], [23], [25, 24]]
    assert [batch.captions.tolist() for batch in batches] == [
        [[1, 0], [2, -1]],
        [[5, 4, 3]],
        [[6, 7]],
        [[11, -1, -1], [9, 8, 10]],
    ]
    assert [batch.views.tolist() for batch in batches] == [[0, 1], [2], [3], [5, 4]]
    assert [len(batch.images) for batch in cut_batches(table, groups, np.arange(6), np.arange(6), 1)] == [1] * 6


def test_order_depends_on_seed_and_epoch_alone(table: CaptionTable) -> None:
    def order(seed: int, epoch: int, size: int) -> list[list[list[int]]]:
        batches = epoch_batches(table, 8, size, 2, seed, epoch)
        return [array.tolist() for batch in batches for array in (batch.images, batch.captions, batch.views)]

    for size in (0, 1):
        assert order(1, 1, size) == order(1, 1, size)
        assert order(1, 1, size) != order(1, 2, size) and order(1, 1, size) != order(2, 1, size)


def test_independent_draws_mix_the_captions_of_images(table: CaptionTable) -> None:
    first = epoch_batches(table, 10, 1, 1, 1, 1)[0]
    assert first.captions.shape == (10, 1) and len(set(first.images.tolist())) > 3


# tokens of a caption, END included, and its probability: about what COCO's captions have
LENGTHS = {9: 0.1, 10: 0.22, 11: 0.24, 12: 0.18, 13: 0.11, 14: 0.06, 16: 0.05, 18: 0.025, 22: 0.0125, 25: 0.0025}
MEAN = 11.7575  # of these


@pytest.fixture(scope="module")
def large() -> CaptionTable:
    """4,000 images of 5 captions."""
    lengths = np.random.default_rng(0).choice(list(LENGTHS), 20000, p=list(LENGTHS.values()))
    tokens = np.where(np.arange(26) <= np.append(lengths, -1)[:, None], 5, 0)
    return CaptionTable(np.arange(4000), tokens, np.repeat(np.arange(4000), 5))


def padding(table: CaptionTable, batches: list[Batch]) -> float:
    """The share of the tensors' tokens that is padding."""
    total = sum(batch.captions.size * table.targets[batch.captions].max() for batch in batches)
    return 1 - table.targets.sum() / total


def test_images_of_similar_lengths_are_together(large: CaptionTable) -> None:
    """Bounds of the padding by hand, where batches of 64 captions are cut from pools of 50 * 64 = 3,200, in order.

    Single captions: in a pool a batch begins at the length at which the one before it ends or above, so that the
    differences between the longest and the shortest of all its batches add up to 25 - 9 = 16 at most. That is 64 * 16
    tokens of padding in each of 7 pools: 7,168 against 20,000 * 11.7575 = 235,150 tokens, a share of 2.96 %.

    All captions of an image: padded to the longest of 5 they have 14.73 tokens in the mean (the lengths times the
    differences of the cumulative probabilities' fifth powers, added up). Batches of 12 images add 60 * 16 / 3,200 = 0.3
    at most: 1 - 11.7575 / 15.03 = 21.8 %. In random order the longest of 60, about 20, decides: more than 35 %.
    """
    assert large.targets.sum() / 20000 == pytest.approx(MEAN, rel=0.005)
    for captions_per_image, bound in ((1, 0.03), (0, 0.22)):
        batches = epoch_batches(large, 64, captions_per_image, 2, seed=1, epoch=1, group_by_length=True)
        assert padding(large, batches) < bound
        captions = np.concatenate([batch.captions.ravel() for batch in batches])
        assert sorted(captions[captions >= 0].tolist()) == list(range(20000))
        assert max((batch.captions >= 0).sum() for batch in batches) <= 64
        assert padding(large, epoch_batches(large, 64, captions_per_image, 2, seed=1, epoch=1)) > 0.35


def test_batches_of_all_lengths_alternate(large: CaptionTable) -> None:
    """The batches are in random order: long captions are not all at the end of an epoch, or of a pool."""
    batches = epoch_batches(large, 64, 1, 1, seed=1, epoch=1, group_by_length=True)
    lengths = np.array([large.targets[batch.captions].max() for batch in batches])
    halves = [part.mean() for part in np.array_split(lengths, 2)]
    assert abs(halves[0] - halves[1]) < 1  # sorted, they would differ by more than 3
    pool = lengths[:50]
    assert 15 < (np.diff(pool) < 0).sum() < 35  # sorted, none
    other = epoch_batches(large, 64, 1, 1, seed=1, epoch=2, group_by_length=True)
    first = set(batches[0].captions.ravel().tolist())
    assert max(len(first & set(batch.captions.ravel().tolist())) for batch in other) < 32  # other neighbours each epoch


def test_validation_is_in_order_with_the_plain_view(table: CaptionTable) -> None:
    batches = ordered_batches(table, 12)
    assert np.concatenate([sorted(batch.images) for batch in batches]).tolist() == list(range(10))
    assert not any(batch.views.any() for batch in batches)


def test_loader_reads_the_right_rows_and_trims_tokens(tmp_path: Path) -> None:
    data = make_data(tmp_path, images=20, views=2)
    captions, vocabulary, store = (
        CaptionSet.load(data["captions"]),
        Vocabulary.load(data["vocab"]),
        FeatureStore.open(data["features"]),
    )
    table = CaptionTable.build(captions, "train", vocabulary, 12)
    with store.reader("ram") as reader:
        loader = BatchLoader(table, store.rows(table.image_ids), reader)
        batches = epoch_batches(table, 7, 0, 2, 1, 1)
        groups = [batches[first : first + 2] for first in range(0, len(batches), 2)]
        loaded = list(loader.stream(groups))
        assert [len(group) for group in loaded] == [len(group) for group in groups] and len(groups) > 3
        loaded = [pair for group in loaded for pair in group]
        for batch, (features, tokens) in zip(batches, loaded):
            for row, (image, view) in enumerate(zip(batch.images, batch.views)):
                expected = reader.read(store.rows([int(table.image_ids[image])]), np.array([view]))[0]
                assert (features[row] == expected).all()
                texts = captions.captions(int(table.image_ids[image]))
                found = [vocabulary.decode(ids) for ids in tokens[row].tolist() if ids[0]]
                assert sorted(found) == sorted(texts)
                assert [len(text.split()) for text in found] == sorted(len(text.split()) for text in texts)[::-1]
            assert (tokens[..., -1] != 0).any()
            assert features.dtype == torch.float16 and tokens.dtype == torch.int64


def test_a_batch_may_be_empty(tmp_path: Path) -> None:
    data = make_data(tmp_path, images=20)
    captions, vocabulary = CaptionSet.load(data["captions"]), Vocabulary.load(data["vocab"])
    store = FeatureStore.open(data["features"])
    table = CaptionTable.build(captions, "train", vocabulary, 12)
    with store.reader("ram") as reader:
        nothing = Batch(*(np.zeros(shape, dtype=np.int64) for shape in ((0,), (0, 3), (0,))))
        features, tokens = BatchLoader(table, store.rows(table.image_ids), reader).load(nothing)
        assert features.shape[0] == 0 and tokens.shape == (0, 3, 2)


def test_few_shapes_for_graphs() -> None:
    """By hand: 1 to 15 images stay, then steps of 2 to 31, of 4 to 63 and so on; lengths are multiples of 4."""
    wanted = {0: 0, 1: 1, 13: 13, 15: 15, 16: 16, 17: 18, 33: 36, 250: 256, 255: 256, 256: 256, 257: 288}
    for images, padded in wanted.items():
        tensor = pad_images(torch.ones(images, 2))
        assert len(tensor) == padded and tensor[:images].all() and not tensor[images:].any()
    tokens = pad_length(torch.ones(2, 3, 9, dtype=torch.int64))
    assert tokens.shape == (2, 3, 12) and tokens[..., :9].all() and not tokens[..., 9:].any()
    assert pad_length(tokens).shape == tokens.shape


def test_inputs_and_targets_by_hand() -> None:
    tokens = torch.tensor([[[1, 7, 8, 2, 0], [1, 9, 2, 0, 0], [0, 0, 0, 0, 0], [1, 7, 8, 9, 2]]])
    inputs, targets = inputs_and_targets(tokens)
    assert inputs.tolist() == [[[1, 7, 8, 0], [1, 9, 0, 0], [0, 0, 0, 0], [1, 7, 8, 9]]]
    assert targets.tolist() == [[[7, 8, 2, 0], [9, 2, 0, 0], [0, 0, 0, 0], [7, 8, 9, 2]]]


def test_long_captions_are_cut_and_empty_ones_left_out(tmp_path: Path) -> None:
    data = make_data(tmp_path, images=10)
    text = data["captions"].read_text().replace("a red ", "?! ", 1)
    data["captions"].write_text(text)
    captions, vocabulary = CaptionSet.load(data["captions"]), Vocabulary.load(data["vocab"])
    table = CaptionTable.build(captions, "train", vocabulary, 3)
    assert table.tokens.shape[1] == 5
    assert all(row[0] == 1 and row[4] == 2 and (row[1:4] > 2).all() for row in table.tokens[:-1])
    assert not table.tokens[-1].any()
    with pytest.raises(CaptionerError, match="no caption in the split test"):
        CaptionTable.build(captions, "test", vocabulary, 3)
