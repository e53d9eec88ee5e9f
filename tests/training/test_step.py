"""Several batches in one step are one large batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from captioner.decoder import DecoderConfig, build_decoder
from captioner.parameters import TrainParameters
from captioner.training.optimizers import build_optimizer, set_rates
from captioner.training.step import training_step
from tests.decoder.examples import make_tokens


@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_halves_of_a_batch_give_its_update(penalty: float, clip: float) -> None:
    torch.manual_seed(0)
    config = DecoderConfig("lstm", "soft", 30, 3, 6, 4, feature_size=5, hidden_size=6, attention_size=3, dropout=0.0)
    decoder = build_decoder(config).double()
    tokens = make_tokens([[4, 1, -1], [7, -1, -1], [2, 2, 3], [1, 6, -1]])  # words; -1: no caption
    features = torch.randn(4, 4, 6, dtype=torch.float64)
    options = TrainParameters(optimizer="sgd", clip=clip, doubly_stochastic=penalty)
    whole = [(features, tokens)]
    parts = [
        (features[:1], tokens[:1]),
        (features[1:2], tokens[1:2, :1]),
        (features[2:], tokens[2:]),
    ]  # of 7, 8 and 19 targets
    results = []
    for batches in (whole, parts):
        mine = copy.deepcopy(decoder)
        optimizer = build_optimizer(mine, options)
        set_rates(optimizer, (1.0, 1.0))
        total, count = training_step(mine, optimizer, batches, options)
        results.append((total.item(), count, [parameter.detach() for parameter in mine.parameters()]))
    outputs = decoder(features, tokens)
    assert results[0][1] == results[1][1] == len(outputs.targets)
    assert results[0][0] == pytest.approx(
        F.cross_entropy(outputs.logits, outputs.targets, reduction="sum").item(), rel=1e-12
    )
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-12)
    moved = 0.0
    for before, one, two in zip(decoder.parameters(), results[0][2], results[1][2]):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        moved = max(moved, float((one - before).detach().abs().max()))
    assert moved > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_processor_never_waits_for_a_gpu_within_a_step(precision: str, penalty: float) -> None:
    """Waiting would leave the GPU without work while the next kernels are launched."""
    config = DecoderConfig("lstm", "soft", 30, 3, 6, 4, feature_size=5, hidden_size=6, attention_size=3)
    decoder = build_decoder(config).cuda()
    options = TrainParameters(precision=precision, doubly_stochastic=penalty)
    optimizer = build_optimizer(decoder, options)
    batches = [(torch.rand(4, 4, 6).cuda(), make_tokens([[4, 1, -1], [7, -1, -1], [2, 2, 3], [1, 6, -1]]))]
    training_step(decoder, optimizer, batches, options)  # what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(decoder, optimizer, batches, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
