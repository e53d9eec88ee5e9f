"""CUDA graphs without a GPU: a stand-in does on a CPU what a graph does, and refuses what a graph could not do."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioner import cuda_graphs
from captioner.batches import inputs_and_targets
from captioner.cuda_graphs import GraphedDecoder, GraphedModule, graphed, replaced, tensors_of
from captioner.decoder import unmasked
from captioner.decoder.attention import ATTENTIONS
from captioner.parameters import TrainParameters
from captioner.search import BeamStrategy, Constraints, DiverseStrategy, SamplingStrategy, Strategy, search
from captioner.training import phases
from captioner.training.data import GlobalBatch
from captioner.training.objectives import CrossEntropy, SelfCritical
from captioner.training.objectives.sampling import sample_captions
from captioner.vocabulary.vocabulary import END
from tests.decoder.examples import make_decoder, make_features, make_tokens
from tests.training.small import make_data, result_bytes, run, small_parameters

LENGTHS = [[3, 5, 1], [6, 2, 4], [2, 2, 7]]


class Graph:
    """What ``record`` gives: a replay reads the tensors that were recorded, and writes into those of its outputs."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self.outputs, self.replays = work, work(), 0

    def replay(self) -> None:
        self.replays += 1
        for own, new in zip(tensors_of(self.outputs), tensors_of(self._work()), strict=True):
            own.untyped_storage().copy_(new.untyped_storage())  # some are expanded views


class Recorder:
    """Stands in for CUDA's recording.

    Attributes:
        warm_ups: how many.
        graphs: those of ``GraphedDecoder``.
        callables: the sample arguments of each module that was recorded.
    """

    def __init__(self) -> None:
        self.warm_ups, self.graphs, self.callables = 0, [], []

    def warm_up(self, work: Callable[[], Any], device: torch.device) -> None:
        self.warm_ups += 1
        work()

    def record(self, work: Callable[[], Any], device: torch.device) -> tuple[Graph, Any]:
        assert self.warm_ups == len(self.graphs) + 1  # each recording has its own
        self.graphs.append(Graph(work))
        return self.graphs[-1], self.graphs[-1].outputs

    def make_graphed_callables(
        self, module: nn.Module, samples: tuple[Tensor, ...], allow_unused_input: bool = False
    ) -> Callable[..., Any]:
        """Runs the module three times, as torch does, without leaving a gradient.

        The callable takes the recorded shapes alone and computes on its own copies of the inputs in the modes that were
        recorded. Its outputs and gradients lie in memory that its next call overwrites, as torch's do.
        """
        self.callables.append(samples)
        modes = [part.training for part in module.modules()]
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

        def gradients(outputs: tuple[Tensor, ...], upstream: tuple[Tensor, ...] | None = None) -> list[Tensor | None]:
            wanted = [number for number, output in enumerate(outputs) if output.requires_grad]
            given = upstream and [upstream[number] for number in wanted]
            return list(
                torch.autograd.grad(
                    [outputs[number] for number in wanted], parameters, given, allow_unused=allow_unused_input
                )
            )

        for _ in range(3):
            static = module(*samples)
            static_gradients = gradients(static)
        static = tuple(output.detach() for output in static)

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
                with torch.enable_grad():
                    ctx.live = module(*samples)
                for own, new in zip(static, ctx.live, strict=True):
                    own.copy_(new)
                return tuple(own.detach() for own in static)

            @staticmethod
            def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
                for own, new in zip(static_gradients, gradients(ctx.live, upstream), strict=True):
                    assert (own is None) == (new is None)
                    if own is not None:
                        own.copy_(new)
                return tuple(own if own is None else own.detach() for own in static_gradients)

        def call(*tensors: Tensor) -> Any:
            assert [part.training for part in module.modules()] == modes
            for own, given in zip(samples, tensors, strict=True):
                assert own.shape == given.shape and own.dtype == given.dtype and own is not given
                own.copy_(given)
            return Replay.apply(*parameters)

        return call


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(cuda_graphs, "warm_up", recorder.warm_up)
    monkeypatch.setattr(cuda_graphs, "record", recorder.record)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder.make_graphed_callables)
    return recorder


# --- the step of a decoder


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("decoder", ["gru", "lstm"])
def test_steps_are_the_decoders(recorder: Recorder, decoder: str, attention: str) -> None:
    model = make_decoder(decoder, attention, layers=2).eval()
    fast, tokens = GraphedDecoder(model), make_tokens(LENGTHS)
    memory = model.encode(make_features(3))
    ours = theirs = model.initial_state(memory, 3)
    for step in range(4):
        logits, ours, weights = fast.step(tokens[..., step], ours, memory)
        expected, theirs, expected_weights = model.step(tokens[..., step], theirs, memory)
        found = [logits, weights, *tensors_of(ours)]
        assert all(
            torch.equal(one, two)
            for one, two in zip(found, [expected, expected_weights, *tensors_of(theirs)], strict=True)
        )
        assert not any(tensor.requires_grad for tensor in found)
    assert len(recorder.graphs) == recorder.warm_ups == 1 and recorder.graphs[0].replays == 4


def test_what_a_step_returns_is_not_overwritten(recorder: Recorder) -> None:
    model = make_decoder().eval()
    fast, memory = GraphedDecoder(model), model.encode(make_features(2))
    first = fast.step(torch.tensor([[1], [1]]), model.initial_state(memory, 1), memory)
    kept = [tensor.clone() for tensor in tensors_of(first)]
    second = fast.step(torch.tensor([[7], [8]]), first[1], memory)
    assert all(torch.equal(own, before) for own, before in zip(tensors_of(first), kept, strict=True))
    pointers = [tensor.data_ptr() for tensor in [*tensors_of(first), *tensors_of(second)]]
    assert len(set(pointers)) == len(pointers) == 6
    first[0].fill_(-1.0)  # the caller may overwrite the logits
    again = fast.step(torch.tensor([[1], [1]]), model.initial_state(memory, 1), memory)
    assert torch.equal(again[0], kept[0])


def test_each_shape_has_a_graph(recorder: Recorder) -> None:
    model = make_decoder().eval()
    fast = GraphedDecoder(model)
    memories = {images: model.encode(make_features(images)) for images in (1, 2)}
    for _ in range(2):
        for images, beams in ((1, 1), (2, 1), (1, 4), (2, 4)):
            tokens = torch.randint(4, 23, (images, beams))
            state = model.initial_state(memories[images], beams)
            found = fast.step(tokens, state, memories[images])
            torch.testing.assert_close(found[0], model.step(tokens, state, memories[images])[0])
    assert len(recorder.graphs) == 4 and [graph.replays for graph in recorder.graphs] == [2] * 4
    half = model.float()
    memory = half.encode(make_features(1))
    fast.step(torch.tensor([[1]]), half.initial_state(memory, 1), memory)
    assert len(recorder.graphs) == 5  # other types are another shape


def test_a_memory_is_copied_when_it_is_another_one(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_decoder().eval()
    fast, tokens = GraphedDecoder(model), torch.tensor([[1], [5]])
    first, second = (model.encode(make_features(2, seed)) for seed in (1, 2))
    fast.step(tokens, model.initial_state(first, 1), first)
    _, static, _ = next(iter(fast._graphs.values()))
    copies: list[int] = []
    copy = Tensor.copy_

    def counted(self: Tensor, other: Tensor) -> Tensor:
        copies.extend(number for number, own in enumerate(static) if own is self)
        return copy(self, other)

    monkeypatch.setattr(Tensor, "copy_", counted)
    inputs, everything = [0, 1], [0, 1, 2, 3, 4]  # tokens and h, then values, keys and mean
    for memory, expected in ((first, inputs), (second, everything), (second, inputs), (first, everything)):
        state = model.initial_state(memory, 1)
        found = fast.step(tokens, state, memory)
        assert copies == expected
        copies.clear()
        assert torch.equal(found[0], model.step(tokens, state, memory)[0])


def test_further_shapes_run_without_a_graph(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST_SHAPES", 3)
    model = make_decoder().eval()
    fast, memory = GraphedDecoder(model), model.encode(make_features(1))
    for _ in range(2):
        for beams in range(1, 7):
            state, tokens = model.initial_state(memory, beams), torch.full((1, beams), 5)
            assert torch.equal(fast.step(tokens, state, memory)[0], model.step(tokens, state, memory)[0])
    assert len(recorder.graphs) == 3 and [graph.replays for graph in recorder.graphs] == [2] * 3


def test_weights_may_change_in_place(recorder: Recorder) -> None:
    model = make_decoder().eval()
    fast, memory = GraphedDecoder(model), model.encode(make_features(1))
    state, tokens = model.initial_state(memory, 1), torch.tensor([[5]])
    before = fast.step(tokens, state, memory)[0]
    with torch.no_grad():
        model.vocabulary.bias += 1
    torch.testing.assert_close(fast.step(tokens, state, memory)[0], before + 1)
    assert len(recorder.graphs) == 1


def test_only_a_gpu_has_graphs() -> None:
    model = make_decoder()
    assert graphed(model) is model
    fast = GraphedDecoder(model)
    assert fast.config is model.config and fast.device == model.device


def test_tensors_of_nested_values_and_back() -> None:
    model = make_decoder("lstm", layers=2)
    memory = model.encode(make_features(1))
    value = (memory, model.initial_state(memory, 2))
    tensors = tensors_of(value)
    assert [tensor.dim() for tensor in tensors] == [3, 3, 2, 3, 3, 3, 3]
    other = replaced(value, [tensor + 1 for tensor in tensors])
    assert type(other[0]) is type(memory) and type(other[1]) is type(value[1])
    assert all(torch.equal(new, old + 1) for new, old in zip(tensors_of(other), tensors, strict=True))
    assert torch.equal(other[0].keys, memory.keys + 1) and len(other[1].tensors) == 4


# --- search and sampling


@pytest.mark.parametrize("attention", ["soft", "hard", "multihead"])
@pytest.mark.parametrize(
    "strategy",
    [
        lambda: BeamStrategy(1),
        lambda: BeamStrategy(4),
        lambda: DiverseStrategy(4, 2, 0.7),
        lambda: SamplingStrategy(3, [5, 6, 7, 8, 9], 8, temperature=1.3),
    ],
)
def test_search_finds_the_same_captions(recorder: Recorder, attention: str, strategy: Callable[[], Strategy]) -> None:
    model = make_decoder("gru", attention).eval()
    model.vocabulary.bias.data[END] -= 0.5
    fast, results = GraphedDecoder(model), []
    for decoder in (model, fast, fast):
        for seed in (0, 1):  # another batch of the same shape
            memory = decoder.encode(make_features(5, seed))
            found = search(decoder, memory, 5, strategy(), Constraints(8, 1), keep=2, attention=True, fixed_shapes=True)
            results.append([[(h.tokens, h.score, h.attention.tolist()) for h in hypotheses] for hypotheses in found])
    assert results[0] == results[2] == results[4] and results[1] == results[3] == results[5]
    assert results[0] != results[1]
    # a step of one beam, then steps of all of them, which are one shape where there is one beam
    assert len(recorder.graphs) == (1 if strategy().beam_size == 1 else 2)


@pytest.mark.parametrize("greedy", [False, True])
def test_samples_are_the_same(recorder: Recorder, greedy: bool) -> None:
    model = make_decoder("lstm").eval()
    fast, features, results = GraphedDecoder(model), make_features(4), []
    for decoder in (model, fast):
        torch.manual_seed(3)
        results.append(sample_captions(decoder, features, 5, 9, greedy))
    assert torch.equal(*results) and results[0].shape[:2] == (4, 5 + greedy)
    assert len(recorder.graphs) == 1 and recorder.graphs[0].replays == results[0].shape[2] - 1


# --- a module with its backward pass


def batch(lengths: list[list[int]] = LENGTHS) -> tuple[Tensor, Tensor, GlobalBatch]:
    return make_features(len(lengths)), make_tokens(lengths), GlobalBatch(tokens=41, captions=9, images=3)


@pytest.mark.parametrize(("attention", "training"), [("soft", True), ("soft", False), ("hard", True)])
def test_losses_and_gradients_of_a_module(recorder: Recorder, attention: str, training: bool) -> None:
    """With dropout: the numbers drawn are the same too, because recording draws none from the generator."""
    model = make_decoder("gru", attention, dropout=0.5).train(training)
    objective = CrossEntropy(model, TrainParameters(doubly_stochastic=0.3))
    results = []
    for module in (GraphedModule(objective, False), GraphedModule(objective, True)):
        torch.manual_seed(0)
        steps = []
        for lengths in (LENGTHS, LENGTHS[::-1], LENGTHS):
            model.zero_grad()
            loss, statistics = module(*objective.prepare(*batch(lengths), 1.0, 0.0))
            loss.backward()
            own = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            steps.append([tensor.detach().clone() for tensor in (loss, statistics, *own)])
        results.append(steps)
    for ours, theirs in zip(*results, strict=True):
        assert len(ours) > 10
        assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))
    assert len(recorder.callables) == 1
    assert (results[0][0][0] != results[0][2][0]) == training  # the same batch with other units dropped


def test_a_module_without_graphs_is_called_itself(recorder: Recorder) -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    x = torch.ones(2)
    assert GraphedModule(Loss(), False)(x) is x and not recorder.callables
    assert not list(GraphedModule(Loss(), True).parameters())


def test_each_shape_and_each_mode_of_a_module_has_a_graph(recorder: Recorder) -> None:
    model = make_decoder(dropout=0.5)
    objective = CrossEntropy(model, TrainParameters())
    module = GraphedModule(objective, True)
    names = set(module.state_dict())

    def call(lengths: list[list[int]]) -> Tensor:
        return module(*objective.prepare(*batch(lengths), 1.0, 0.0))[0].detach().clone()

    for _ in range(2):
        for lengths in (LENGTHS, [[3, 5, 1]], [[3, 4, 1]]):
            call(lengths)
    assert len(recorder.callables) == 3
    model.eval()
    still = call(LENGTHS)
    assert torch.equal(call(LENGTHS), still) and len(recorder.callables) == 4
    model.dropout.train()  # dropout alone, as self-critical training may have it
    assert not torch.equal(call(LENGTHS), call(LENGTHS)) and len(recorder.callables) == 5
    model.eval()
    assert torch.equal(call(LENGTHS), still) and len(recorder.callables) == 5
    assert set(module.state_dict()) == names  # graphs are no part of the module


def test_samples_are_copies(recorder: Recorder) -> None:
    """Otherwise the batches of a step would be written into the first one."""
    objective = CrossEntropy(make_decoder(), TrainParameters())
    module, tensors = GraphedModule(objective, True), objective.prepare(*batch(), 1.0, 0.0)
    before = [tensor.clone() for tensor in tensors]
    module(*tensors)
    module(*objective.prepare(*batch(LENGTHS[::-1]), 1.0, 0.0))
    assert all(torch.equal(one, two) for one, two in zip(tensors, before, strict=True))


def test_gradients_of_two_passes_add_up(recorder: Recorder) -> None:
    model = make_decoder()
    module = GraphedModule(CrossEntropy(model, TrainParameters()), True)
    batches, results = [batch(), batch(LENGTHS[::-1])], []
    for passes in ([0], [1], [0, 1], [1, 0, 1]):
        model.zero_grad()
        for number in passes:
            module(*module.module.prepare(*batches[number], 1.0, 0.0))[0].backward()
            module.keep_gradients()
        results.append([own.grad.clone() for own in model.parameters() if own.grad is not None])
    for first, second, both, three in zip(*results, strict=True):
        assert torch.equal(both, first + second)
        torch.testing.assert_close(three, first + 2 * second)
    assert len(recorder.callables) == 1


def test_further_shapes_of_a_module_run_without_a_graph(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST_SHAPES", 2)
    objective = CrossEntropy(make_decoder(), TrainParameters())
    module = GraphedModule(objective, True)
    for _ in range(2):
        for length in range(1, 6):
            tensors = objective.prepare(*batch([[length]]), 1.0, 0.0)
            assert torch.equal(module(*tensors)[0], objective(*tensors)[0])
    assert len(recorder.callables) == 2


@pytest.mark.parametrize("dropout", [False, True])
def test_self_critical_training_is_recorded_in_its_mode(recorder: Recorder, dropout: bool) -> None:
    model = make_decoder(dropout=0.5)
    options = TrainParameters(scst_samples=3, scst_dropout=dropout, scst_baseline="mean")
    objective = SelfCritical(model, options, lambda captions, references: (captions > 9).sum(-1) / 7.0, 6)
    module, losses = GraphedModule(objective, True), []
    for _ in range(2):
        torch.manual_seed(1)
        tensors = objective.prepare(*batch(), 1.0, 0.0)
        losses += [module(*tensors)[0].item(), module(*tensors)[0].item()]
    assert len(recorder.callables) == 1
    assert (losses[0] == losses[1]) == (not dropout) and losses[:2] == losses[2:]


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.3, "accumulate": 2, "ema": 0.9},
        {"attention": "hard", "doubly_stochastic": 0.5},
        {"epochs": 1, "scst_epochs": 1, "scst_learning_rate": 0.01},
        {"sampling": "linear", "sampling_rate": 0.5},
    ],
)
def test_runs_end_with_the_same_bytes(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    """A run with graphs, whose outputs the next step overwrites, is the run without."""
    if "scst_epochs" in options:
        pytest.importorskip("pycocoevalcap")
    data, parameters = make_data(tmp_path / "data"), small_parameters(**{"epochs": 2, **options})
    expected = result_bytes(run(tmp_path / "plain", data, parameters))
    monkeypatch.setattr(phases, "GraphedModule", lambda module, enabled: GraphedModule(module, True))
    monkeypatch.setattr(importlib.import_module("captioner.training.validation"), "graphed", GraphedDecoder)
    found = result_bytes(run(tmp_path / "graphed", data, parameters))
    assert found == expected and len(recorder.callables) > 1
    assert ("scst_epochs" in options) == bool(recorder.graphs)


def test_logits_of_all_positions_count_once() -> None:
    """What a GPU computes for fixed shapes, with an index of all positions, has the loss of the real tokens."""
    model = make_decoder()
    objective = CrossEntropy(model, TrainParameters(label_smoothing=0.1))
    *tensors, index = objective.prepare(*batch(), 1.0, 0.0)
    _, targets = inputs_and_targets(batch()[1])
    assert torch.equal(index, unmasked(targets)) and len(index) < targets.numel()
    for one, two in zip(objective(*tensors, index), objective(*tensors, torch.arange(targets.numel())), strict=True):
        torch.testing.assert_close(one, two)
