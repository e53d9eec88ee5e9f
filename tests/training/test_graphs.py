"""Training with CUDA graphs, by a stand-in that overwrites what torch's graphs overwrite, is training without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioner.cuda_graphs import GraphedModule
from captioner.parameters import TrainParameters
from captioner.training import phases
from captioner.training.data import GlobalBatch
from captioner.training.objectives import CrossEntropy, SelfCritical
from tests.decoder.examples import make_decoder, make_features, make_tokens
from tests.training.small import make_data, result_bytes, run, small_parameters

LENGTHS = [[3, 5, 1], [6, 2, 4], [2, 2, 7]]


class Recorder:
    """Stands in for ``torch.cuda.make_graphed_callables``.

    Attributes:
        callables: the sample arguments of each module that was recorded.
    """

    def __init__(self) -> None:
        self.callables: list[tuple[Tensor, ...]] = []

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
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder.make_graphed_callables)
    return recorder


def batch(lengths: list[list[int]] = LENGTHS) -> tuple[Tensor, Tensor, GlobalBatch]:
    return make_features(len(lengths)), make_tokens(lengths), GlobalBatch(tokens=41, captions=9, images=3)


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
    found = result_bytes(run(tmp_path / "graphed", data, parameters))
    assert found == expected and len(recorder.callables) > 1
