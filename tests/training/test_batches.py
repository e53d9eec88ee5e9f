"""The order of pictures and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.features.store import FeatureStore
from captioner.images.captions import CaptionSet
from captioner.training.batches import BatchLoader, CaptionTable, epoch_batches, ordered_batches
from captioner.vocabulary.vocabulary import Vocabulary
from tests.training.small import make_data


@pytest.fixture(scope="module")
def table() -> CaptionTable:
    counts = [5, 1, 3, 5, 5, 2, 7, 5, 5, 5]
    tokens = np.arange(sum(counts) + 1)[:, None] + np.zeros(4, dtype=np.int64)
    return CaptionTable(np.arange(10) + 50, tokens, np.repeat(np.arange(10), counts))


@pytest.mark.parametrize("captions_per_image", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("batch_size", [1, 8, 1000])
def test_every_caption_once_an_epoch_with_its_picture(
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
    if batch_size == 8:  # full as far as groups allow: no two neighbours would fit into one
        sizes = [(batch.captions >= 0).sum() for batch in batches]
        firsts = [(batch.captions[0] >= 0).sum() for batch in batches]
        assert all(size + first > 8 for size, first in zip(sizes, firsts[1:]))


def test_order_depends_on_seed_and_epoch_alone(table: CaptionTable) -> None:
    def order(seed: int, epoch: int, size: int) -> list[int]:
        return [
            row for batch in epoch_batches(table, 8, size, 2, seed, epoch) for row in batch.captions.ravel().tolist()
        ]

    for size in (0, 1):
        assert order(1, 1, size) == order(1, 1, size)
        assert order(1, 1, size) != order(1, 2, size) and order(1, 1, size) != order(2, 1, size)


def test_independent_draws_mix_the_captions_of_pictures(table: CaptionTable) -> None:
    first = epoch_batches(table, 10, 1, 1, 1, 1)[0]
    assert first.captions.shape == (10, 1) and len(set(first.images.tolist())) > 3


def test_validation_is_in_order_with_the_plain_view(table: CaptionTable) -> None:
    batches = ordered_batches(table, 12)
    assert np.concatenate([batch.images for batch in batches]).tolist() == list(range(10))
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
        loaded = list(loader.stream(batches))
        assert len(loaded) == len(batches)
        for batch, (features, tokens) in zip(batches, loaded):
            for row, (image, view) in enumerate(zip(batch.images, batch.views)):
                expected = reader.read(store.rows([int(table.image_ids[image])]), np.array([view]))[0]
                assert (features[row] == expected).all()
                texts = captions.captions(int(table.image_ids[image]))
                found = [vocabulary.decode(ids) for ids in tokens[row].tolist() if ids[0]]
                assert found == texts
            assert (tokens[..., -1] != 0).any()


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
