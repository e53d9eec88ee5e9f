"""A loss is that of its tokens, whatever padding the batch has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.decoder.attention import hard
from captioner.parameters import TrainParameters
from captioner.training.data import GlobalBatch
from captioner.training.objectives import CrossEntropy
from captioner.training.objectives.reinforce import Reinforce
from tests.decoder.examples import make_decoder, make_features, make_tokens

BATCHES = [
    [[4, 1, -1], [7, -1, -1], [2, 2, 3], [1, 6, -1]],
    [[3], [2]],
    [[0, 5, 5, 5]],
    [[-1, 2], [1, -1], [-1, -1], [8, 8], [0, 3], [2, 2]],
]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of every parameter that the loss reaches."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found) if gradient is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def median_positions(weights: Tensor) -> Tensor:
    """The position at which the cumulative weight passes a half, in place of a drawn one."""
    return (weights.cumsum(-1) < 0.5).sum(-1).clamp(max=weights.shape[-1] - 1)


def expect_every_second_caption(self: hard.HardAttention, tokens: Tensor) -> None:
    """Captions with an even sum of tokens take expected values."""
    self.drawn, self.expected = [], tokens.sum(-1) % 2 == 0


@pytest.mark.parametrize("options", [{}, {"doubly_stochastic": 0.7, "label_smoothing": 0.1}])
@pytest.mark.parametrize(
    ("decoder", "attention", "shape"),
    [
        ("gru", "soft", {}),
        ("lstm", "soft", {"layers": 2, "tie_weights": True}),
        ("gru", "multihead", {}),
        ("lstm", "none", {}),
        ("gru", "hard", {}),
    ],
)
def test_the_loss_of_a_larger_batch(
    monkeypatch: pytest.MonkeyPatch, decoder: str, attention: str, shape: dict, options: dict
) -> None:
    """With images that have no caption, and with the logits of all positions, as on a GPU."""
    monkeypatch.setattr(hard, "draw_positions", median_positions)
    monkeypatch.setattr(hard.HardAttention, "start_sequence", expect_every_second_caption)
    model = make_decoder(decoder, attention, **shape).train()
    objective = CrossEntropy(model, TrainParameters(**options))
    for number, lengths in enumerate(BATCHES):
        tokens, counts = make_tokens(lengths, number), GlobalBatch(tokens=7, captions=3, images=1)
        features, filling = make_features(len(tokens), number), make_features(8, 99)
        filling[: len(tokens)] = features
        larger = F.pad(tokens, (0, 3, 0, 2, 0, 8 - len(tokens)))
        results = []
        for given, own, every in ((features, tokens, False), (filling, larger, False), (filling, larger, True)):
            *tensors, index = objective.prepare(given, own, counts, 1.0, 0.0)
            loss, statistics = objective(*tensors, torch.arange(own[..., 1:].numel()) if every else index)
            results.append({"loss": loss, "statistics": statistics, **gradients(model, loss)})
        for found in results[1:]:
            assert_same(found, results[0], rtol=1e-9, atol=1e-13)


def test_what_hard_attention_learns_by() -> None:
    tokens = make_tokens(BATCHES[0])
    reinforce = Reinforce(make_decoder("gru", "hard"), TrainParameters(hard_reinforce=0.9, hard_entropy=0.3))
    larger = F.pad(tokens, (0, 5, 0, 2))
    generator = torch.Generator().manual_seed(1)
    numbers = torch.rand(*larger[..., 1:].shape, 6, generator=generator, dtype=torch.float64)
    results = []
    for own in (tokens, larger):
        mask = own[..., 1:] != 0
        _, captions, steps = mask.shape
        values = numbers[:, :captions, :steps]
        attention = values.softmax(-1).requires_grad_()
        positions = torch.where(values[..., 0] < 0.3, -1, (values[..., 1] * 6).long())
        loss, statistics = reinforce.loss(attention, positions, -values[..., 2] * mask, mask)
        (gradient,) = torch.autograd.grad(loss, attention)
        assert not gradient[~mask].any() and gradient[mask].any(-1).all()
        assert statistics[1] == ((positions >= 0) & mask).sum()
        results.append({"loss": loss, "statistics": statistics, "gradient": gradient[mask]})
    assert_same(results[1], results[0], rtol=1e-12, atol=0)
