"""Training steps replayed from a CUDA graph are those that are launched kernel by kernel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.decoder import CaptionDecoder, DecoderConfig, build_decoder
from captioner.parameters import TrainParameters
from captioner.training.batches import Batch, CaptionTable
from captioner.training.graph import StepGraph
from captioner.training.optimizers import build_optimizer, set_rates
from captioner.training.phases import build_phases
from captioner.training.reinforce import Reinforce
from captioner.training.step import training_step
from captioner.vocabulary.vocabulary import END, PAD, START
from tests.training.small import history_numbers, make_data, run, small_parameters, with_runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
IMAGES, WORDS, POSITIONS, CHANNELS = 300, 40, 6, 16


@pytest.fixture(scope="module")
def table() -> CaptionTable:
    """Three to five captions a picture, of one to twelve words."""
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(IMAGES), generator.integers(3, 6, IMAGES))
    tokens = np.full((len(owners) + 1, 14), PAD)
    for row, length in zip(tokens, generator.integers(1, 13, len(owners))):
        row[: length + 2] = [START, *generator.integers(4, WORDS, length), END]
    return CaptionTable(np.arange(IMAGES), tokens, owners)


def batches_of(table: CaptionTable, size: int) -> list[Batch]:
    """All pictures, ``size`` at a time; the last batch is smaller."""
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


def make(decoder: str = "lstm", attention: str = "soft", **changes: Any) -> CaptionDecoder:
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


@pytest.mark.parametrize(
    "size", [7, 128]
)  # 1,200 tokens a batch, and 3,900: kernels of the word vectors' gradient differ
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
        ({"attention": "none", "decoder": "gru"}, {}),
        ({"attention": "dot"}, {"weight_decay": 0.1}),
        ({"attention": "bilinear", "norm": "none", "position": "sinusoidal", "rows": 2}, {"clip": 0.0}),
    ],
)
def test_losses_and_weights(table: CaptionTable, size: int, shape: dict, options: dict) -> None:
    model, settings = make(**shape), TrainParameters(**options)
    batches, results = batches_of(table, size), []
    for graphed in (False, True):
        mine = copy.deepcopy(model)
        optimizer = build_optimizer(mine, settings)
        set_rates(optimizer, (0.01, 0.01))
        graph = StepGraph(mine, settings) if graphed else None
        if graph:
            graph.fit(table, batches)
        losses = []
        for group in [[batches[0]], batches[1:3], [batches[-1]], [batches[0]]]:
            total, count = training_step(
                mine, optimizer, [loaded(table, batch) for batch in group], settings, graph=graph
            )
            losses.append(total.item() / count)
        results.append((losses, {name: parameter.detach() for name, parameter in mine.named_parameters()}))
    tolerance = 2e-2 if settings.precision == "bf16" else 1e-4
    assert results[1][0] == pytest.approx(results[0][0], rel=tolerance) and results[0][0][-1] < results[0][0][0]
    for name, weight in results[0][1].items():
        torch.testing.assert_close(
            results[1][1][name], weight, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_gradients_in_full_precision_of_the_sums(table: CaptionTable) -> None:
    model, settings, batch = make(), TrainParameters(clip=0.0), batches_of(table, 32)[0]
    features, tokens = loaded(table, batch)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    training_step(model, still, [(features, tokens)], settings)
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    graph = StepGraph(model, settings)
    graph.fit(table, batches_of(table, 32))
    for _ in range(2):  # the second adds nothing to the first
        training_step(model, still, [(features, tokens)], settings, graph=graph)
    for name, gradient in expected.items():
        found = dict(model.named_parameters())[name].grad
        assert float((found - gradient).norm() / gradient.norm()) < 1e-5, name


def test_each_replay_draws_anew_and_recording_draws_nothing(table: CaptionTable) -> None:
    model, settings, batch = make(dropout=0.5), TrainParameters(), batches_of(table, 32)[0]
    graph, still = StepGraph(model, settings), torch.optim.SGD(model.parameters(), lr=0.0)
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    graph.fit(table, batches_of(table, 32))
    assert torch.equal(torch.cuda.get_rng_state(), before)

    def losses() -> list[float]:
        torch.cuda.set_rng_state(before)
        return [training_step(model, still, [loaded(table, batch)], settings, graph=graph)[0].item() for _ in range(3)]

    first = losses()
    assert len(set(first)) == 3 and losses() == pytest.approx(first, rel=1e-6)


def test_hard_attention_learns(table: CaptionTable) -> None:
    settings = TrainParameters()
    model = make(attention="hard")
    reinforce = Reinforce(model, settings)
    graph, optimizer = StepGraph(model, settings, reinforce), build_optimizer(model, settings)
    set_rates(optimizer, (0.01, 0.01))
    batches = batches_of(table, 50)
    graph.fit(table, batches)
    losses = []
    for batch in batches * 4:
        total, count = training_step(
            model, optimizer, [loaded(table, batch)], settings, reinforce=reinforce, graph=graph
        )
        losses.append(total.item() / count)
    assert sum(losses[-3:]) < sum(losses[:3]) and -4 < reinforce.state["baseline"].item() < -2


def test_words_that_the_decoder_drew_go_in(table: CaptionTable) -> None:
    model, settings, batch = make(), TrainParameters(), batches_of(table, 32)[0]
    features, tokens = loaded(table, batch)
    other = torch.randint(4, WORDS, tokens[..., 1:].shape).cuda()
    graph = StepGraph(model, settings)
    graph.fit(table, batches_of(table, 32))
    count = int((tokens[..., 1:] != PAD).sum())
    graph.clear_gradients()
    found = graph.backward(features, tokens, other, 1 / count, 1.0).item()
    hidden, _, packing, _ = model.hidden(features, tokens, other)
    expected = torch.nn.functional.cross_entropy(model.vocabulary(hidden), packing.targets, reduction="sum")
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert found != pytest.approx(graph.backward(features, tokens, None, 1 / count, 1.0).item(), rel=1e-3)


def test_it_is_recorded_again_only_for_larger_batches(table: CaptionTable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, recorded = make(), []
    graph, original = StepGraph(model, TrainParameters()), StepGraph._record
    monkeypatch.setattr(StepGraph, "_record", lambda self, tokens: (recorded.append(1), original(self, tokens)))
    batches, larger = batches_of(table, 20), batches_of(table, 40)
    for part in (batches, batches[1:3], batches[-1:], batches):
        graph.fit(table, part)
    assert len(recorded) == 1
    with pytest.raises(ValueError, match="mould"):
        graph.backward(*loaded(table, larger[0]), None, 1.0, 1.0)
    for part in (larger, batches):
        graph.fit(table, part)
    assert len(recorded) == 2


def test_batches_too_different_are_launched_kernel_by_kernel(table: CaptionTable) -> None:
    model, settings = make(), TrainParameters()
    graph, optimizer = StepGraph(model, settings), build_optimizer(model, settings)
    many = Batch(np.array([0]), np.arange(100)[None], np.zeros(1, dtype=np.int64))
    graph.fit(table, [*batches_of(table, 20), many])
    assert not graph.recorded
    total, count = training_step(model, optimizer, [loaded(table, many)], settings, graph=graph)
    assert 0 < total.item() / count < 6 and model.vocabulary.weight.grad.any()
    graph.fit(table, batches_of(table, 20))
    assert graph.recorded


def test_the_processor_never_waits_for_the_gpu(table: CaptionTable) -> None:
    model, settings, batches = make(), TrainParameters(), batches_of(table, 32)
    graph, optimizer = StepGraph(model, settings), build_optimizer(model, settings)
    graph.fit(table, batches)
    ready = [loaded(table, batch) for batch in batches]
    training_step(model, optimizer, ready[:1], settings, graph=graph)  # what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in ready:
            training_step(model, optimizer, [batch], settings, graph=graph)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2, "captions_per_image": 1, "ema": 0.9, "tune_embeddings": True}]
)
def test_whole_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    data = make_data(tmp_path / "data", views=2)
    parameters = with_runtime(small_parameters(dropout=0.0, epochs=4, **options), device="cuda")
    graphed = history_numbers(run(tmp_path / "graphed", data, parameters))
    monkeypatch.setattr(StepGraph, "fits", lambda decoder: False)
    for one, other in zip(graphed, history_numbers(run(tmp_path / "launched", data, parameters)), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=0.02)
        assert one["val_cross_entropy"] == pytest.approx(other["val_cross_entropy"], rel=1e-3)


def test_where_there_is_one(table: CaptionTable) -> None:
    for model, expected in ((make(), True), (make(norm="batch"), False), (make().cpu(), False)):
        (phase,) = build_phases(TrainParameters(epochs=1), table, 12, model)
        assert (phase.graph is not None) == expected
