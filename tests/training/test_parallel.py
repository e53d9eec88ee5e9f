"""Several ranks that train together: the same losses and weights as one process, and every rank the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from captioner.batches import Batch, CaptionTable
from captioner.launch import Rank
from captioner.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from captioner.training.data import epoch_batches, shard
from captioner.training.distributed import Group, rank_seed
from captioner.training.inputs import Inputs, load_inputs
from tests.training.runs import Runs, run_ranks, start_ranks, torchrun_environments
from tests.training.small import history, make_data, small_parameters, with_runtime


def read(data: dict[str, Path]) -> Inputs:
    return load_inputs(small_parameters(), *(data[name] for name in ("features", "captions", "vocab", "embeddings")))


def one_caption_each(lengths: list[int]) -> CaptionTable:
    """One caption of so many tokens to predict for each image."""
    tokens = np.zeros((len(lengths) + 1, max(lengths) + 1), dtype=np.int64)
    for row, length in zip(tokens, lengths):
        row[: length + 1] = 5
    return CaptionTable(np.arange(len(lengths)), tokens, np.arange(len(lengths)))


def test_shards_by_hand() -> None:
    """7 tokens (image 2) to rank 0; 5 and 4 (3 and 1) to rank 1; 3 (4) to rank 0, and 3 (0) to rank 1, which has 9
    against 10."""
    batch = Batch(np.array([4, 0, 2, 1, 3]), np.array([[4], [0], [2], [1], [3]]), np.array([1, 0, 0, 1, 0]))
    table = one_caption_each([3, 4, 7, 5, 3])
    first, second = (shard(batch, table, rank, 2) for rank in range(2))
    assert first.images.tolist() == [4, 2] and second.images.tolist() == [0, 1, 3]
    assert first.views.tolist() == [1, 0] and first.captions.tolist() == [[4], [2]]
    assert [table.targets[part.captions].sum() for part in (first, second)] == [10, 12]
    assert shard(batch, table, 0, 1) is batch
    shards = [shard(batch, table, rank, 7) for rank in range(7)]
    assert [len(part.images) for part in shards] == [1] * 5 + [0] * 2
    assert shards[6].captions.shape == (0, 1) and shards[6].views.shape == (0,)


def test_shards_make_up_the_batch_and_are_balanced(data: dict[str, Path]) -> None:
    table = read(data).train
    for batch in epoch_batches(table, 64, 0, 2, 1, 1):
        for world_size in (2, 3, 4):
            parts = [shard(batch, table, rank, world_size) for rank in range(world_size)]
            for name in ("images", "views"):
                assert sorted(np.concatenate([getattr(part, name) for part in parts])) == sorted(getattr(batch, name))
            together = np.concatenate([part.captions for part in parts])
            assert sorted(map(tuple, together)) == sorted(map(tuple, batch.captions))
            row = {image: row for row, image in enumerate(batch.images.tolist())}
            for part in parts:  # an image keeps its captions and its view
                rows = [row[image] for image in part.images.tolist()]
                assert np.array_equal(part.captions, batch.captions[rows])
                assert np.array_equal(part.views, batch.views[rows])
            work = [table.targets[part.captions].sum() for part in parts]
            assert max(work) - min(work) <= table.targets[batch.captions].sum(1).max()


def test_operations_of_a_group_by_hand(runs: Runs, tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(runs, tmp_path, 3, "operate")):
        assert found["main"] == (rank == 0) and found["shard"] == [["a", "d", "g"], ["b", "e", "h"], ["c", "f"]][rank]
        assert found["sum"] == found["in_place"] == [3, 4.5]
        assert found["any"] == [[True, False], [False], [True]]
        assert found["gather"] == [{"x": ""}, {"x": "x"}, {"x": "xx"}]
        assert found["broadcast"] == "from 0" and found["broadcast_nothing"] == ""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            assert found["weight"] == nn.Linear(2, 1).weight.tolist()  # of rank 0
        assert found["gradient"] == [[1, 1]]  # the mean of (1, 0), (1, 1), (1, 2)


def test_one_process_is_a_group_of_its_own() -> None:
    group, tensor, module = Group(), torch.tensor([1.5]), nn.Linear(2, 1)
    assert group.is_main and group.shard([1, 2]) == [1, 2] and group.sum(tensor) is tensor and tensor.item() == 1.5
    assert group.any(True, False) == [True, False] and group.gather("x") == ["x"] and group.broadcast("x") == "x"
    assert group.wrap(module, False) is module


def test_ranks_draw_differently_and_again_the_same() -> None:
    states = [(seed, rank, epoch, step) for seed in (1, 2) for rank in (1, 2) for epoch in (1, 2) for step in (0, 1)]
    seeds = {rank_seed(*state) for state in states}
    assert len(seeds) == len(states) and rank_seed(1, 2, 1, 0) == rank_seed(1, 2, 1, 0)


class AloneGroup(Group):
    """A rank whose group exists on paper alone.

    Args:
        gathered: what ``gather`` returns.
        payload: what ``broadcast`` returns.
    """

    def __init__(self, rank: int, world_size: int, gathered: list[Any] | None = None, payload: bytes = b"") -> None:
        super().__init__(Rank(rank, world_size))
        self.gathered, self.payload = gathered, payload

    def gather(self, item: Any) -> list[Any]:
        return self.gathered

    def any(self, *flags: bool) -> list[bool]:
        return list(flags)

    def broadcast(self, item: Any) -> Any:
        self.payload = self.payload or item
        return self.payload


def test_a_rank_takes_its_own_generator_from_a_checkpoint(tmp_path: Path) -> None:
    decoder, states = nn.Linear(2, 1), []
    with torch.random.fork_rng([]):
        for seed in range(2):
            torch.manual_seed(seed)
            states.append({"cpu": torch.get_rng_state()})
        state = TrainState(epoch=3, step=4)
        save_checkpoint(tmp_path, state, {}, {"weights": dict(decoder.named_parameters())}, AloneGroup(0, 2, states))
        main = AloneGroup(0, 3)
        seeds = [0, 1, rank_seed(77, 2, 3, 4)]  # rank 2 has none in the checkpoint
        for rank, seed in enumerate(seeds):
            group = AloneGroup(rank, 3, payload=main.payload) if rank else main
            found = load_checkpoint(tmp_path, decoder, group, 77)
            assert found and found[0] == state
            assert torch.rand(()).item() == torch.rand((), generator=torch.Generator().manual_seed(seed)).item()


SGD = {"optimizer": "sgd", "learning_rate": 0.1, "projection_learning_rate": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "cross entropy": {"doubly_stochastic": 1.0, "label_smoothing": 0.1, "epochs": 3, "clip": 0.5},
    "two batches a step": {"doubly_stochastic": 1.0, "accumulate": 2, "batch_size": 8, "epochs": 4, "clip": 0.5},
    "batch norm": {
        **SGD,
        "norm": "batch",
        "batch_size": 3,
        "captions_per_image": 1,
        "accumulate": 2,
        "epochs": 1,
        "ema": 0.9,
        "layers": 2,
        "tie_weights": True,
        "tune_embeddings": True,
        "scst_epochs": 1,
        "scst_learning_rate": 0.01,
    },
    "hard attention": {
        "attention": "hard",
        "hard_reinforce": 1.0,
        "hard_entropy": 0.1,
        "doubly_stochastic": 0.1,
        "epochs": 4,
        "clip": 0.5,
    },
    "hard attention, two batches a step": {
        "attention": "hard",
        "hard_reinforce": 1.0,
        "accumulate": 2,
        "batch_size": 4,
        "epochs": 2,
        "scst_epochs": 1,
        "scst_learning_rate": 0.01,
        "weight_decay": 0.01,
    },
    "self-critical": {"epochs": 1, "scst_epochs": 2, "scst_learning_rate": 0.01, "clip": 0.01},
    "self-critical, greedy baseline": {
        "epochs": 1,
        "scst_epochs": 2,
        "scst_learning_rate": 0.01,
        "scst_baseline": "greedy",
        "scst_bleu_weight": 1.0,
        "batch_size": 4,
        "accumulate": 2,
    },
    "one image a batch": {**SGD, "batch_size": 1, "captions_per_image": 1, "accumulate": 2, "epochs": 1, "ema": 0.9},
    "three images a batch": {**SGD, "batch_size": 3, "captions_per_image": 1, "epochs": 1, "ema": 0.9},
    "one image a batch, batch norm": {**SGD, "batch_size": 1, "captions_per_image": 1, "norm": "batch", "epochs": 1},
}


@pytest.fixture(scope="module")
def single(runs: Runs, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case's run in a single process."""
    folders: dict[str, Path] = {}

    def find(case: str) -> Path:
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp("single")
            run_ranks(runs, folders[case], 1, "record", data, small_parameters(dropout=0.0, **CASES[case]))
        return folders[case]

    return find


def numbers(folder: Path) -> list[dict[str, float]]:
    return [{name: float(value or "nan") for name, value in row.items()} for row in history(folder)]


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_losses_do_not_depend_on_the_number_of_ranks(
    runs: Runs, data: dict[str, Path], tmp_path: Path, single: Callable[[str], Path], case: str, world_size: int
) -> None:
    """In float64, where what is left is rounding. The norm is clipped, so it must be that of the summed gradient."""
    usual = json.loads((single(case) / "rank0.json").read_text())
    ranks = run_ranks(runs, tmp_path, world_size, "record", data, small_parameters(dropout=0.0, **CASES[case]))
    assert all(steps == ranks[0] for steps in ranks)  # weights too, bit by bit, after each step
    for name in ("loss", "baseline"):
        assert [step[name] for step in ranks[0]] == pytest.approx([step[name] for step in usual], abs=1e-5, rel=0)
    assert [step["without_gradient"] for step in ranks[0]] == [step["without_gradient"] for step in usual]
    assert numbers(tmp_path) == [pytest.approx(row, rel=1e-5, nan_ok=True) for row in numbers(single(case))]
    losses = [step["loss"] for step in usual]
    assert len(losses) >= 20 and len(set(losses)) > 10  # it is a run, and its losses change


def test_some_shards_of_these_cases_are_empty(data: dict[str, Path]) -> None:
    table = read(data).train
    for size, world_size in ((1, 2), (3, 4)):
        batches = epoch_batches(table, size, 1, 2, 1, 1)
        assert all(not len(shard(batch, table, world_size - 1, world_size).images) for batch in batches)


@pytest.mark.parametrize("world_sizes", [(2, 1), (1, 2), pytest.param((4, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("newest", ["000001-000000003", "000003-000000002"])
def test_resumes_with_another_number_of_ranks(
    runs: Runs,
    data: dict[str, Path],
    tmp_path: Path,
    single: Callable[[str], Path],
    world_sizes: tuple[int, int],
    newest: str,
) -> None:
    """Cut within an epoch of either phase; the run ends as one in a single process, but for rounding."""
    case, (before, after) = "self-critical", world_sizes
    parameters = with_runtime(small_parameters(dropout=0.0, **CASES[case]), checkpoint_seconds=0)
    codes = start_ranks(runs, tmp_path, before, "record_until", newest, data, parameters)
    assert codes[0] == 9 and all(codes)  # rank 0 ended itself, the others without it
    assert max(tmp_path.glob("models.partial/*.state")).stem == newest
    usual = json.loads((single(case) / "rank0.json").read_text())
    ranks = run_ranks(runs, tmp_path, after, "record", data, parameters, log="again")
    assert "going on with unfinished work" in (tmp_path / "again").read_text()
    found, rest = [step["loss"] for step in ranks[0]], [step["loss"] for step in usual]
    assert 0 < len(found) < len(rest) and found == pytest.approx(rest[-len(found) :], abs=1e-5, rel=0)
    assert numbers(tmp_path) == [pytest.approx(row, rel=1e-5, nan_ok=True) for row in numbers(single(case))]


def test_validation_scores_do_not_depend_on_the_number_of_ranks(runs: Runs, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=400)  # 80 validation images are two batches of the search
    parameters = small_parameters(epochs=1, batch_size=64, select_by="val_cider_d", dropout=0.0, learning_rate=0.05)
    rows = []
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        run_ranks(runs, folder, world_size, "record", data, parameters)
        rows.append(history(folder))
    assert rows[0] == rows[1] and float(rows[0][0]["val_cider_d"]) > 0


def test_other_inputs_in_another_rank_are_refused(runs: Runs, data: dict[str, Path], tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", views=2, seed=3)
    processes = [
        runs.start(tmp_path, files, small_parameters(), environment, tmp_path / f"log{rank}")
        for rank, (files, environment) in enumerate(zip((data, other), torchrun_environments(2)))
    ]
    codes = [runs.wait(process) for process in processes]
    assert codes[1] == 1 and codes[0]  # rank 0 loses its partner
    assert "other captions, embeddings, vocabulary than rank 0 has" in (tmp_path / "log1").read_text()
    assert not (tmp_path / "models").exists()
