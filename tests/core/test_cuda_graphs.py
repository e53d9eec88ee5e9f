"""CUDA graphs with a stand-in on a CPU, which runs again what was recorded, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioner import cuda_graphs
from captioner.cuda_graphs import GraphedDecoder, GraphedModule, graphed, replaced, tensors_of
from captioner.decoder import Decoder
from captioner.decoder.transformer import TransformerDecoder
from captioner.search import beam_search
from captioner.training.objectives.sampling import sample_captions
from captioner.vocabulary.vocabulary import START
from tests.decoder.examples import make_decoder, make_features, make_tokens
from tests.search.real_decoders import random_features, sharp_decoder


class StandIn:
    """A graph: a replay reads and overwrites the tensors that were recorded."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.replays = work, 0
        outputs = work()
        self.outputs = replaced(outputs, [tensor.clone() for tensor in tensors_of(outputs)])

    def replay(self) -> None:
        self.replays += 1
        for static, new in zip(tensors_of(self.outputs), tensors_of(self.work()), strict=True):
            static.copy_(new)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """The graphs recorded so far."""
    graphs: list[StandIn] = []

    def record(work: Callable[[], Any], device: torch.device) -> tuple[StandIn, Any]:
        graphs.append(StandIn(work))
        for tensor in tensors_of(graphs[-1].outputs):  # recording computes nothing
            tensor.fill_(0)
        return graphs[-1], graphs[-1].outputs

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(cuda_graphs, "warm_up", lambda work, device: work())
    return graphs


def started(decoder: Any, features: Tensor, beams: int) -> tuple[Tensor, Any, Any]:
    memory = decoder.encode(features)
    tokens = torch.full((len(features), beams), START)
    return tokens, decoder.initial_state(memory, beams), memory


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for one, two in zip(tensors_of(found), tensors_of(expected), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("attention", ["soft", "hard", "multihead", "none"])
def test_steps_are_the_decoders_and_are_not_overwritten(attention: str, recorded: list[StandIn]) -> None:
    model = make_decoder("lstm", attention, layers=2)
    decoder, tokens = GraphedDecoder(model), make_tokens([[4, 3], [2, 5]])
    _, state, memory = started(decoder, make_features(2), 2)
    results, states = [], [state]
    for step in range(4):
        results.append(decoder.step(tokens[:, :, step], states[-1], memory))
        states.append(results[-1][1])
    assert len(recorded) == 1 and recorded[0].replays == 4
    state = states[0]
    for step, found in enumerate(results):  # compared when all steps are done
        expected = model.step(tokens[:, :, step], state, memory)
        assert_same(found, expected)
        state = expected[1]
    assert not any(tensor.requires_grad for tensor in tensors_of(results[0]))


def test_one_graph_serves_all_steps_of_the_transformer(recorded: list[StandIn]) -> None:
    """Its cache has room for the longest caption, as on a GPU."""
    model = make_decoder("transformer", layers=2)
    assert isinstance(model, TransformerDecoder)
    decoder, tokens, memory = GraphedDecoder(model), make_tokens([[4, 3], [2, 5]]), model.encode(make_features(2))
    states = [model.initial_state(memory, 2, fixed_shapes=True)]
    results = []
    for step in range(5):
        results.append(decoder.step(tokens[:, :, step], states[-1], memory))
        states.append(results[-1][1])
    assert len(recorded) == 1 and recorded[0].replays == 5
    state = model.initial_state(memory, 2)
    for step, (logits, _, attention) in enumerate(results):  # compared when all steps are done
        expected, state, weights = model.step(tokens[:, :, step], state, memory)
        assert_same((logits, attention), (expected, weights))


def test_one_graph_for_each_shape(recorded: list[StandIn]) -> None:
    model = make_decoder()
    decoder = GraphedDecoder(model)
    for images, beams in ((2, 1), (2, 3), (3, 1), (2, 3), (2, 1)):
        arguments = started(model, make_features(images), beams)
        assert_same(decoder.step(*arguments), model.step(*arguments))
    assert len(recorded) == 3 and [graph.replays for graph in recorded] == [2, 2, 1]


def test_further_shapes_run_without_a_graph(recorded: list[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST_SHAPES", 2)
    model = make_decoder()
    decoder = GraphedDecoder(model)
    for beams in (1, 2, 3, 4, 2):
        arguments = started(model, make_features(2), beams)
        assert_same(decoder.step(*arguments), model.step(*arguments))
    assert [graph.replays for graph in recorded] == [1, 2]


def test_memory_is_copied_when_it_is_another(recorded: list[StandIn]) -> None:
    model = make_decoder()
    decoder = GraphedDecoder(model)
    tokens, state, memory = started(model, make_features(2), 1)
    expected = model.step(tokens, state, memory)
    assert_same(decoder.step(tokens, state, memory), expected)
    kept = memory.select(torch.arange(2))
    memory.values.zero_()  # not seen: the graph has its own copy
    assert_same(decoder.step(tokens, state, memory), expected)
    other = model.encode(make_features(2, seed=5))
    for one in (other, kept, other, memory):
        assert_same(decoder.step(tokens, state, one), model.step(tokens, state, one))
    assert len(recorded) == 1


def test_weights_that_change_in_place_are_used(recorded: list[StandIn]) -> None:
    model = make_decoder()
    decoder, arguments = GraphedDecoder(model), started(model, make_features(2), 1)
    before, _, _ = decoder.step(*arguments)
    with torch.no_grad():
        model.vocabulary.bias.add_(1)
    after, _, _ = decoder.step(*arguments)
    torch.testing.assert_close(after, before + 1)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_search_gives_the_same_captions(cell: str, recorded: list[StandIn]) -> None:
    model, features = sharp_decoder(cell, "soft", vocabulary=60), random_features(5)
    decoder: Decoder = GraphedDecoder(model)  # type: ignore[assignment]
    for beams in (1, 4):
        expected = beam_search(model, features, beams, max_length=9, keep=beams)
        found = beam_search(decoder, features, beams, max_length=9, keep=beams)
        assert [[h.tokens for h in one] for one in found] == [[h.tokens for h in one] for one in expected]
        scores = [h.log_probability for one in expected for h in one]
        assert [h.log_probability for one in found for h in one] == pytest.approx(scores, rel=1e-12)
    assert len({h.tokens for one in expected for h in one}) > 5
    assert sum(graph.replays for graph in recorded) > 5


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_sampling_gives_the_same_captions(cell: str, recorded: list[StandIn]) -> None:
    model, drawn = make_decoder(cell), []
    for decoder in (model, GraphedDecoder(model)):
        torch.manual_seed(3)
        drawn.append(sample_captions(decoder, make_features(5), 3, 8, greedy=True))
    assert torch.equal(*drawn) and len(drawn[0].flatten(0, 1).unique(dim=0)) > 5
    assert len(recorded) == 1 and recorded[0].replays == drawn[0].shape[2] - 1


def test_on_a_cpu_there_are_no_graphs() -> None:
    model = make_decoder()
    assert graphed(model) is model


@pytest.fixture
def callables(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """The samples of ``torch.cuda.make_graphed_callables``, whose stand-in takes no other shapes."""
    samples: list[tuple[Tensor, ...]] = []

    def make(module: nn.Module, sample: tuple[Tensor, ...], allow_unused_input: bool) -> Callable[..., Any]:
        samples.append(sample)
        training = [part.training for part in module.modules()]

        def call(*tensors: Tensor) -> Any:
            assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in sample]
            assert [part.training for part in module.modules()] == training
            return module(*tensors)

        return call

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    return samples


class Small(nn.Module):
    """Takes two tensors; in eval mode something else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.dropout(self.linear(x)).sum(), y * 2


def test_a_module_has_one_graph_for_each_shape_and_mode(callables: list[tuple[Tensor, ...]]) -> None:
    torch.manual_seed(0)
    module = Small()
    wrapped, names = GraphedModule(module, True), set(dict(module.named_parameters()))
    inputs = [(torch.randn(rows, 3), torch.randn(2)) for rows in (4, 5, 4)]
    for training in (True, False, True):
        wrapped.train(training)
        for one in inputs:
            torch.manual_seed(1)
            expected = module(*one)
            gradients = torch.autograd.grad(expected[0], list(module.parameters()))
            torch.manual_seed(1)
            found = wrapped(*one)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
            wrapped.zero_grad()
            found[0].backward()
            assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), gradients, strict=True))
    assert [sample[0].shape[0] for sample in callables] == [4, 5, 4, 5]  # of training, of evaluation
    module.dropout.train(False)  # one part alone counts, too
    wrapped(*inputs[0])
    assert len(callables) == 5
    assert {f"module.{name}" for name in names} == set(dict(wrapped.named_parameters()))
    given = {tensor.data_ptr() for one in inputs for tensor in one}
    assert not given & {tensor.data_ptr() for sample in callables for tensor in sample}  # samples are copies


def test_a_module_runs_without_a_graph(callables: list[tuple[Tensor, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where graphs are off, and for more shapes than the most."""
    monkeypatch.setattr(cuda_graphs, "_MOST_SHAPES", 2)
    module, inputs = Small().eval(), [(torch.randn(rows, 3), torch.randn(2)) for rows in (1, 2, 3, 4)]
    for enabled, expected in ((False, 0), (True, 2)):
        wrapped = GraphedModule(module, enabled)
        for one in [*inputs, inputs[0]]:
            assert torch.equal(wrapped(*one)[0], module(*one)[0])
        assert len(callables) == expected
