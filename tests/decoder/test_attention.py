"""Attention mechanisms against torch's own, their gradients, and what every one of them promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.decoder import DecoderConfig
from captioner.decoder.attention import build_attention
from captioner.decoder.attention.base import Attention


def make_attention(name: str, **sizes: int) -> tuple[Attention, Tensor, Tensor]:
    """With values (3, 7, E) and hidden states (3, 2, H)."""
    torch.manual_seed(0)
    options = {"feature_size": 8, "hidden_size": 10, "attention_size": 6, "heads": 2, **sizes}
    config = DecoderConfig("gru", name, 23, 5, 11, 7, **options)
    attention = build_attention(config).double().eval()
    values = torch.randn(3, 7, config.feature_size, dtype=torch.float64, requires_grad=True)
    return attention, values, torch.randn(3, 2, config.hidden_size, dtype=torch.float64, requires_grad=True)


def attend(attention: Attention, hidden: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return attention(hidden, attention.keys(values), values, values.mean(1))


@pytest.mark.parametrize("name", ["soft", "dot", "multihead", "bilinear", "none"])
def test_attention_gradients(name: str) -> None:
    attention, values, hidden = make_attention(name)
    assert torch.autograd.gradcheck(lambda h, v: attend(attention, h, v), (hidden, values))


@pytest.mark.parametrize("name", ["soft", "hard", "dot", "multihead", "bilinear", "none"])
def test_weights_are_probabilities_and_captions_do_not_see_each_other(name: str) -> None:
    attention, values, hidden = make_attention(name)
    context, weights = attend(attention, hidden, values)
    assert context.shape == (3, 2, 8) and weights.shape == (3, 2, 7) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, dtype=torch.float64))
    for k in range(2):
        alone, own = attend(attention, hidden[:, k : k + 1], values)
        torch.testing.assert_close(alone[:, 0], context[:, k])
        torch.testing.assert_close(own[:, 0], weights[:, k])


def test_dot_attention_is_torchs() -> None:
    attention, values, hidden = make_attention("dot")
    query, keys = attention.query(hidden), values @ attention.key.weight.T
    torch.testing.assert_close(
        attend(attention, hidden, values)[0], F.scaled_dot_product_attention(query, keys, values)
    )


def test_multihead_attention_is_torchs() -> None:
    """With copied weights, where all sizes are equal as torch wants them."""
    attention, values, hidden = make_attention("multihead", feature_size=12, hidden_size=12, attention_size=12, heads=3)
    other = nn.MultiheadAttention(12, 3, batch_first=True).double()
    none = torch.zeros(12, dtype=torch.float64)
    other.load_state_dict(
        {
            "in_proj_weight": torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]),
            "in_proj_bias": torch.cat([attention.query.bias, none, none]),
            "out_proj.weight": attention.output.weight,
            "out_proj.bias": none,
        }
    )
    for found, expected in zip(attend(attention, hidden, values), other(hidden, values, values), strict=True):
        torch.testing.assert_close(found, expected)
