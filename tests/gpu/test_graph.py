"""Passes and steps replayed from a CUDA graph are those that are launched kernel by kernel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.batches import Batch, BatchLoader, CaptionTable, cut_batches, group_captions
from captioner.cuda_graphs import GraphedDecoder, GraphedModule, graphed
from captioner.decoder import Decoder, DecoderConfig, build_decoder
from captioner.parameters import TrainParameters
from captioner.search import BeamStrategy, Constraints, DiverseStrategy, SamplingStrategy, search
from captioner.training import phases
from captioner.training.data import GlobalBatch
from captioner.training.distributed import Group
from captioner.training.objectives import CrossEntropy
from captioner.training.objectives.sampling import sample_captions
from captioner.training.objectives.scheduled_sampling import mix_inputs
from captioner.training.optimizers import build_optimizer, clip_gradients, set_rates
from captioner.training.phases import Learner, build_phases
from captioner.training.train import autocast
from captioner.vocabulary.vocabulary import END, PAD, START
from tests.training.small import history_numbers, make_data, run, small_parameters, with_runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
IMAGES, WORDS, POSITIONS, CHANNELS = 300, 40, 6, 16
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def table() -> CaptionTable:
    """Three to five captions an image, of one to twelve words."""
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(IMAGES), generator.integers(3, 6, IMAGES))
    tokens = np.full((len(owners) + 1, 14), PAD)
    for row, length in zip(tokens, generator.integers(1, 13, len(owners))):
        row[: length + 2] = [START, *generator.integers(4, WORDS, length), END]
    return CaptionTable(np.arange(IMAGES), tokens, owners)


class Features:
    """In place of a ``FeatureReader``."""

    def read(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        features = torch.randn(IMAGES, POSITIONS, CHANNELS, generator=torch.Generator().manual_seed(0))
        return features.half()[rows].cuda()


def batches_of(table: CaptionTable, captions: int) -> list[Batch]:
    """All captions, image by image; the last batch is smaller."""
    groups, owners = group_captions(table)
    return cut_batches(groups, owners, np.zeros(len(groups), dtype=np.int64), captions)


def loaded(table: CaptionTable, batch: Batch) -> tuple[Tensor, Tensor]:
    return BatchLoader(table, np.arange(IMAGES), Features(), length_multiple=4).load(batch)


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
    config = DecoderConfig(decoder, attention, WORDS, channels=CHANNELS, positions=POSITIONS, **settings)
    return build_decoder(config).cuda().train()


class Training:
    """Steps of an objective as the training loop makes them, with graphs or without."""

    def __init__(self, decoder: Decoder, options: TrainParameters, table: CaptionTable, graphs: bool) -> None:
        self.decoder, self.options, self.table = decoder, options, table
        self.objective = CrossEntropy(decoder, options)
        self.module = GraphedModule(self.objective, graphs)
        self.optimizer = build_optimizer(decoder, options)
        set_rates(self.optimizer, (0.01, 0.01))

    def backward(self, group: list[Batch], epochs: float = 0.0) -> Tensor:
        """The mean loss of a token; the gradients are left in the parameters."""
        counts = GlobalBatch.of(group, self.table)
        self.optimizer.zero_grad(set_to_none=True)
        statistics = torch.zeros(self.objective.statistics, device=CUDA)
        for batch in group:
            features, tokens = loaded(self.table, batch)
            tensors = self.objective.prepare(features, tokens, counts, 1, epochs)
            with autocast(CUDA, self.options):
                loss, own = self.module(*tensors)
            loss.backward()
            self.module.keep_gradients()
            statistics = statistics + own.detach()
        total, count = self.objective.finish(statistics, counts)
        return total / count

    def step(self, group: list[Batch], epochs: float = 0.0) -> float:
        loss = self.backward(group, epochs)
        if self.options.clip:
            parameters = [parameter for part in self.optimizer.param_groups for parameter in part["params"]]
            clip_gradients(parameters, self.options.clip)
        self.optimizer.step()
        return loss.item()

    def gradients(self) -> dict[str, Tensor]:
        return {name: own.grad.clone() for name, own in self.decoder.named_parameters() if own.grad is not None}


@pytest.mark.parametrize("size", [30, 400])
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
    for graphs in (False, True):
        training = Training(copy.deepcopy(model), settings, table, graphs)
        groups = [[batches[0]], batches[1:3], [batches[-1]], [batches[0]]]
        losses = [training.step(group) for group in groups]
        results.append((losses, {name: own.detach() for name, own in training.decoder.named_parameters()}))
    tolerance = 2e-2 if settings.precision == "bf16" else 1e-4
    assert results[1][0] == pytest.approx(results[0][0], rel=tolerance) and results[0][0][-1] < results[0][0][0]
    for name, weight in results[0][1].items():
        torch.testing.assert_close(
            results[1][1][name], weight, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_gradients_in_full_precision_of_the_sums(table: CaptionTable) -> None:
    model, settings, group = make(), TrainParameters(clip=0.0), batches_of(table, 128)[:2]
    plain = Training(model, settings, table, graphs=False)
    plain.backward(group)
    expected, fast = plain.gradients(), Training(model, settings, table, graphs=True)
    for _ in range(2):  # the second adds nothing to the first
        fast.backward(group)
    found = fast.gradients()
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-5, name


def test_each_replay_draws_anew_and_recording_draws_nothing(table: CaptionTable) -> None:
    training = Training(make(dropout=0.5), TrainParameters(), table, graphs=True)
    batch = batches_of(table, 128)[0]

    def losses(count: int) -> list[float]:
        torch.cuda.manual_seed(5)
        return [training.backward([batch]).item() for _ in range(count)]

    first = losses(3)  # with the recording
    assert len(set(first)) == 3 and losses(3) == pytest.approx(first, rel=1e-6)


def test_each_mode_has_a_graph(table: CaptionTable) -> None:
    training = Training(make(dropout=0.5), TrainParameters(), table, graphs=True)
    batch = batches_of(table, 128)[0]
    training.backward([batch])
    training.decoder.eval()
    still = [training.backward([batch]).item() for _ in range(2)]
    expected = Training(training.decoder, TrainParameters(), table, graphs=False).backward([batch]).item()
    assert still == pytest.approx([expected] * 2, rel=1e-5) and len(training.module._graphs) == 2


def test_hard_attention_learns(table: CaptionTable) -> None:
    training = Training(make(attention="hard"), TrainParameters(), table, graphs=True)
    losses = [training.step([batch]) for batch in batches_of(table, 200) * 4]
    assert sum(losses[-3:]) < sum(losses[:3]) and -4 < training.objective.state["baseline"].item() < -2


def test_words_that_the_decoder_drew_are_inputs(table: CaptionTable) -> None:
    options = TrainParameters(sampling="linear", sampling_rate=1.0, epochs=2)
    model, group = make(), batches_of(table, 128)[:1]
    results = []
    for graphs in (True, False):
        torch.manual_seed(1)
        training = Training(model, options, table, graphs)
        results.append([training.backward(group, epochs).item() for epochs in (0.0, 2.0)])
    assert results[0] == pytest.approx(results[1], rel=1e-5) and results[0][0] != pytest.approx(results[0][1], rel=1e-3)
    features, tokens = loaded(table, group[0])
    inputs = tokens[..., :-1]
    assert (mix_inputs(model, features, inputs, 1.0).cpu() != inputs).any()


def test_a_shape_is_recorded_once(table: CaptionTable, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, make_graphed_callables = [], torch.cuda.make_graphed_callables

    def counted(*arguments: Any, **options: Any) -> Any:
        recorded.append(1)
        return make_graphed_callables(*arguments, **options)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", counted)
    training, batches = Training(make(), TrainParameters(), table, graphs=True), batches_of(table, 100)
    shapes = {(len(batch.images), loaded(table, batch)[1].shape) for batch in batches}
    for _ in range(2):
        for batch in batches:
            training.step([batch])
    assert len(recorded) == len(shapes) < len(batches)
    monkeypatch.setattr("captioner.cuda_graphs._MOST_SHAPES", 0)
    assert 0 < training.step([batches_of(table, 30)[0]]) < 6 and len(recorded) == len(shapes)


def test_the_processor_never_waits_for_the_gpu(table: CaptionTable) -> None:
    training, batches = Training(make(), TrainParameters(), table, graphs=True), batches_of(table, 128)
    counts = GlobalBatch.of(batches[:1], table)
    for batch in batches:  # what is made once a shape
        training.step([batch])
    ready = [loaded(table, batch) for batch in batches]
    parameters = list(training.decoder.parameters())
    torch.cuda.set_sync_debug_mode("error")
    try:
        for features, tokens in ready:
            training.optimizer.zero_grad(set_to_none=True)
            loss, statistics = training.module(*training.objective.prepare(features, tokens, counts, 1, 0.0))
            loss.backward()
            training.objective.finish(statistics.detach(), counts)
            clip_gradients([own for own in parameters if own.requires_grad], 5.0)
            training.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 2, "captions_per_image": 1, "ema": 0.9, "tune_embeddings": True},
        {"epochs": 2, "scst_epochs": 1, "scst_learning_rate": 0.01},
    ],
)
def test_whole_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    if "scst_epochs" in options:
        pytest.importorskip("pycocoevalcap")
    data = make_data(tmp_path / "data", views=2)
    parameters = with_runtime(small_parameters(**{"dropout": 0.0, "epochs": 4, **options}), device="cuda")
    modules: list[GraphedModule] = []

    def seen(enabled: bool | None) -> None:
        def build(module: torch.nn.Module, wanted: bool) -> GraphedModule:
            modules.append(GraphedModule(module, wanted if enabled is None else enabled))
            return modules[-1]

        monkeypatch.setattr(phases, "GraphedModule", build)

    seen(None)
    run(tmp_path / "graphed", data, parameters)
    assert all(module._graphs for module in modules)
    seen(False)
    run(tmp_path / "launched", data, parameters)
    if "scst_epochs" in options:  # a caption drawn otherwise is another reward
        return
    pairs = zip(history_numbers(tmp_path / "graphed"), history_numbers(tmp_path / "launched"), strict=True)
    for one, other in pairs:
        assert one == pytest.approx(other, rel=1e-3, abs=0.02)
        assert one["val_cross_entropy"] == pytest.approx(other["val_cross_entropy"], rel=1e-3)


def test_where_there_is_one(table: CaptionTable) -> None:
    options = TrainParameters(epochs=1)
    for decoder, device, expected in ((make(), "cuda", True), (make(norm="batch"), "cuda", False), (make(), "cpu", 0)):
        (phase,) = build_phases(options, table, 12, decoder.to(device))
        assert Learner(phase, decoder, options, Group(device=device)).model.enabled == expected
    assert isinstance(graphed(make()), GraphedDecoder)


@pytest.mark.parametrize("attention", ["soft", "hard", "dot", "multihead", "bilinear", "none"])
@pytest.mark.parametrize(
    "strategy",
    [
        lambda: BeamStrategy(1),
        lambda: BeamStrategy(4),
        lambda: DiverseStrategy(4, 2, 0.7),
        lambda: SamplingStrategy(3, range(7), 8, temperature=1.3),
    ],
)
def test_search_finds_the_same_captions(attention: str, strategy: Any) -> None:
    model = make("gru", attention, layers=2).double().eval()
    for parameter in model.parameters():
        parameter.data *= 4
    fast, results = GraphedDecoder(model), []
    for decoder in (model, fast, fast):
        for seed in (0, 1):  # another batch of the same shape
            features = torch.randn(7, POSITIONS, CHANNELS, generator=torch.Generator().manual_seed(seed)).cuda()
            with torch.no_grad():
                memory = decoder.encode(features)
            found = search(decoder, memory, 7, strategy(), Constraints(8, 1), keep=2, attention=True, device=CUDA)
            results.append([(h.tokens, h.score, h.attention) for hypotheses in found for h in hypotheses])
    for found in (results[2:4], results[4:6]):
        for own, expected in zip(found, results[:2], strict=True):
            assert [tokens for tokens, _, _ in own] == [tokens for tokens, _, _ in expected]
            assert [score for _, score, _ in own] == pytest.approx([score for _, score, _ in expected], rel=1e-9)
            for (_, _, one), (_, _, two) in zip(own, expected, strict=True):
                torch.testing.assert_close(one, two)
    assert [tokens for tokens, _, _ in results[0]] != [tokens for tokens, _, _ in results[1]]


def test_samples_are_the_same() -> None:
    model = make(layers=2).double().eval()
    features, results = torch.randn(4, POSITIONS, CHANNELS).cuda(), []
    for decoder in (model, GraphedDecoder(model)):
        torch.cuda.manual_seed(3)
        results.append(sample_captions(decoder, features, 5, 9, greedy=True))
    assert torch.equal(*results)
