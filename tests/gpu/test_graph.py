"""Training passes replayed from CUDA graphs are those that are launched kernel by kernel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.batches import Batch, CaptionTable
from captioner.cuda_graphs import GraphedModule
from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.parameters import TrainParameters
from captioner.training import phases
from captioner.training.data import GlobalBatch
from captioner.training.distributed import Group
from captioner.training.objectives import CrossEntropy
from captioner.training.optimizers import build_optimizer, clip_gradients, set_rates
from captioner.training.phases import Learner, build_phases
from captioner.training.train import autocast
from captioner.vocabulary.vocabulary import END, PAD, START
from tests.training.small import history_numbers, make_data, run, small_parameters, with_runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
IMAGES, WORDS, POSITIONS, CHANNELS = 300, 40, 6, 16


@pytest.fixture(scope="module")
def table() -> CaptionTable:
    """Three to five captions an image, of one to twelve words."""
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(IMAGES), generator.integers(3, 6, IMAGES))
    tokens = np.full((len(owners) + 1, 14), PAD)
    for row, length in zip(tokens, generator.integers(1, 13, len(owners))):
        row[: length + 2] = [START, *generator.integers(4, WORDS, length), END]
    return CaptionTable(np.arange(IMAGES), tokens, owners)


def batches_of(table: CaptionTable, size: int) -> list[Batch]:
    """All images, ``size`` at a time; the last batch is smaller."""
    batches = []
    for first in range(0, IMAGES, size):
        images = np.arange(first, min(first + size, IMAGES))
        captions = np.full((len(images), 5), -1)
        for row, image in zip(captions, images):
            own = np.flatnonzero(table.image == image)
            row[: len(own)] = own
        batches.append(Batch(images, captions, np.zeros(len(images), dtype=np.int64)))
    return batches


def loaded(table: CaptionTable, batch: Batch) -> tuple[Tensor, Tensor]:
    features = torch.randn(IMAGES, POSITIONS, CHANNELS, generator=torch.Generator().manual_seed(0)).half()
    tokens = table.tokens[batch.captions]
    longest = int((tokens != PAD).sum(-1).max())
    return features[batch.images].cuda(), torch.from_numpy(np.ascontiguousarray(tokens[:, :, :longest]))


def make(decoder: str = "lstm", attention: str = "soft", **changes: Any) -> Decoder:
    torch.manual_seed(0)
    settings = {
        "embedding_size": 8,
        "feature_size": 12,
        "hidden_size": 16,
        "attention_size": 10,
        "heads": 2,
        "dropout": 0.0,
        **changes,
    }
    return (
        build_decoder(DecoderConfig(decoder, attention, WORDS, channels=CHANNELS, positions=POSITIONS, **settings))
        .cuda()
        .train()
    )


class Steps:
    """Steps of cross entropy training, with or without graphs."""

    def __init__(self, decoder: Decoder, options: TrainParameters, table: CaptionTable, graphs: bool) -> None:
        self.options, self.table = options, table
        self.objective = CrossEntropy(decoder, options)
        self.model = GraphedModule(self.objective, graphs)
        self.optimizer = build_optimizer(decoder, options)
        set_rates(self.optimizer, (0.01, 0.01))

    def backward(self, batch: Batch, data: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The mean cross entropy of a batch; its gradients are in the decoder."""
        counts = GlobalBatch.of([batch], self.table)
        features, tokens = data or loaded(self.table, batch)
        tensors = self.objective.prepare(features, tokens, counts, 1.0, 0.0)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(features.device, self.options):
            loss, statistics = self.model(*tensors)
        loss.backward()
        total, count = self.objective.finish(statistics.detach().clone(), counts)
        return total / count

    def step(self, batch: Batch, data: tuple[Tensor, Tensor] | None = None) -> Tensor:
        loss = self.backward(batch, data)
        if self.options.clip:
            clip_gradients([p for group in self.optimizer.param_groups for p in group["params"]], self.options.clip)
        self.optimizer.step()
        return loss


@pytest.mark.parametrize("size", [7, 128])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        (
            {"decoder": "gru", "tune_embeddings": True},
            {"doubly_stochastic": 0.7, "label_smoothing": 0.1, "optimizer": "adamw"},
        ),
        ({"layers": 2, "tie_weights": True, "tune_embeddings": True, "vector_size": 5}, {"optimizer": "sgd"}),
        ({"attention": "multihead"}, {"precision": "bf16"}),
        ({"decoder": "transformer", "layers": 2}, {"doubly_stochastic": 0.7}),
        ({"decoder": "transformer", "word_position": "sinusoidal"}, {"precision": "bf16"}),
        ({"attention": "none", "decoder": "gru"}, {}),
        ({"attention": "dot"}, {"weight_decay": 0.1}),
        ({"attention": "bilinear", "norm": "none", "position": "sinusoidal", "rows": 2}, {"clip": 0.0}),
    ],
)
def test_losses_and_weights(table: CaptionTable, size: int, shape: dict, options: dict) -> None:
    decoder, settings = make(**shape), TrainParameters(**options)
    batches, results = batches_of(table, size), []
    for graphs in (False, True):
        mine = copy.deepcopy(decoder)
        steps = Steps(mine, settings, table, graphs)
        losses = [steps.step(batch).item() for batch in (batches[0], batches[1], batches[-1], batches[0])]
        results.append((losses, {name: parameter.detach() for name, parameter in mine.named_parameters()}))
    tolerance = 2e-2 if settings.precision == "bf16" else 1e-4
    assert results[1][0] == pytest.approx(results[0][0], rel=tolerance) and results[0][0][-1] < results[0][0][0]
    for name, weight in results[0][1].items():
        torch.testing.assert_close(
            results[1][1][name], weight, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_gradients(table: CaptionTable) -> None:
    decoder, batch = make(), batches_of(table, 32)[0]
    Steps(decoder, TrainParameters(), table, False).backward(batch)
    expected = {
        name: parameter.grad.clone() for name, parameter in decoder.named_parameters() if parameter.requires_grad
    }
    steps = Steps(decoder, TrainParameters(), table, True)
    for _ in range(2):  # the second adds nothing to the first
        steps.backward(batch)
    for name, gradient in expected.items():
        found = dict(decoder.named_parameters())[name].grad
        assert float((found - gradient).norm() / gradient.norm()) < 1e-5, name


def test_gradients_of_batches_of_one_shape_add_up(table: CaptionTable) -> None:
    batches, results = batches_of(table, 32)[:2], []
    for graphs in (False, True):
        steps = Steps(make(), TrainParameters(), table, graphs)
        counts = GlobalBatch.of(batches, table)
        for batch in batches:
            loss, _ = steps.model(*steps.objective.prepare(*loaded(table, batch), counts, 1.0, 0.0))
            loss.backward()
            steps.model.keep_gradients()
        results.append({n: p.grad for n, p in steps.objective.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys() and len(results[0]) > 10
    for name, gradient in results[0].items():
        assert float((results[1][name] - gradient).norm() / gradient.norm()) < 1e-5, name


def test_recording_draws_no_random_numbers(table: CaptionTable) -> None:
    batch, losses = batches_of(table, 32)[0], []
    steps = Steps(make(dropout=0.5), TrainParameters(), table, True)
    for _ in range(2):  # recorded in the first pass
        torch.cuda.manual_seed(5)
        losses.append([steps.backward(batch).item() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(set(losses[0])) == 3


def test_each_replay_draws_dropout_anew(table: CaptionTable) -> None:
    batch = batches_of(table, 32)[0]
    steps = Steps(make(dropout=0.5), TrainParameters(), table, True)
    steps.backward(batch)  # recorded here

    def losses() -> list[float]:
        torch.cuda.manual_seed(5)
        return [steps.backward(batch).item() for _ in range(3)]

    first = losses()
    assert len(set(first)) == 3 and losses() == pytest.approx(first, rel=1e-6)


def test_hard_attention_learns(table: CaptionTable) -> None:
    torch.cuda.manual_seed(0)
    steps = Steps(make(attention="hard"), TrainParameters(), table, True)
    losses = [steps.step(batch).item() for batch in batches_of(table, 50) * 4]
    assert sum(losses[-3:]) < sum(losses[:3]) and -4 < steps.objective.state["baseline"].item() < -2


def test_the_processor_never_waits_for_the_gpu(table: CaptionTable) -> None:
    steps, batches = Steps(make(), TrainParameters(), table, True), batches_of(table, 32)
    ready = [loaded(table, batch) for batch in batches]
    for batch, data in zip(batches, ready):  # records the shapes
        steps.step(batch, data)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch, data in zip(batches, ready):
            steps.step(batch, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2, "captions_per_image": 1, "ema": 0.9, "tune_embeddings": True}]
)
def test_whole_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    data = make_data(tmp_path / "data", views=2)
    parameters = with_runtime(small_parameters(dropout=0.0, epochs=4, **options), device="cuda")
    graphed = history_numbers(run(tmp_path / "graphed", data, parameters))
    monkeypatch.setattr(phases, "GraphedModule", lambda module, enabled: GraphedModule(module, False))
    for one, other in zip(graphed, history_numbers(run(tmp_path / "launched", data, parameters)), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=0.02)
        assert one["val_cross_entropy"] == pytest.approx(other["val_cross_entropy"], rel=1e-3)


def test_where_there_are_graphs(table: CaptionTable) -> None:
    """On a GPU, without a batch norm, whose running statistics a recording would change."""
    for decoder, expected in ((make(), True), (make(norm="batch"), False), (make().cpu(), False)):
        options = TrainParameters(epochs=1)
        (phase,) = build_phases(options, table, 12, decoder)
        learner = Learner(phase, decoder, options, Group(device=decoder.device))
        assert isinstance(learner.model, GraphedModule) and learner.model.enabled == expected
