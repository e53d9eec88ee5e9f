"""A step of a run by hand: several batches in one step are one large batch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.batches import Batch
from captioner.decoder import DecoderConfig, build_decoder
from captioner.features.store import FeatureStore
from captioner.model_io import load_model
from captioner.parameters import TrainParameters
from captioner.training import stage
from captioner.training.data import GlobalBatch
from captioner.training.inputs import load_inputs
from captioner.training.objectives import CrossEntropy
from captioner.training.optimizers import build_optimizer, clip_gradients, set_rates
from captioner.training.train import autocast
from tests.training.small import history_numbers, make_data, run, small_parameters
from tests.training.watching import Watch, weights_of

RATES = (0.7, 0.2)  # of the decoder and of the feature projection
PROJECTION = ("projection.", "norm.", "position")


def part(batch: Batch, rows: slice) -> Batch:
    captions = batch.captions[rows]
    return Batch(batch.images[rows], captions[:, (captions >= 0).any(0)], batch.views[rows])


def loss_by_hand(decoder: Any, features: Tensor, tokens: Tensor, penalty: float) -> tuple[Tensor, int]:
    """Caption by caption with step(): mean cross entropy of a token, and the penalty's mean over captions."""
    entropy, coverage, count, captions = torch.zeros((), dtype=torch.float64), 0.0, 0, 0
    for image, own in enumerate(tokens):
        for caption in own:
            words = caption[caption != 0]
            if not len(words):
                continue
            memory = decoder.encode(features[image : image + 1])
            state, attention = decoder.initial_state(memory, 1), 0.0
            for word, target in zip(words, words[1:]):
                logits, state, weights = decoder.step(word.reshape(1, 1), state, memory)
                entropy = entropy - torch.log_softmax(logits[0, 0], 0)[target]
                attention = attention + weights[0, 0]
            coverage = coverage + ((1 - attention) ** 2).sum()
            count, captions = count + len(words) - 1, captions + 1
    return entropy / count + penalty * coverage / captions, count


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_an_update_is_that_of_the_mean_over_all_tokens_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch, clip: float, penalty: float, split: bool
) -> None:
    data = make_data(tmp_path / "data")
    options = {"optimizer": "sgd", "clip": clip, "doubly_stochastic": penalty, "dropout": 0.0, "epochs": 1}
    parameters = small_parameters(
        decoder="lstm", accumulate=3, learning_rate=RATES[0], projection_learning_rate=RATES[1], **options
    )
    inputs = load_inputs(parameters, *(data[name] for name in ("features", "captions", "vocab", "embeddings")))
    table = inputs.train
    own = [np.flatnonzero(table.image == image) for image in range(4)]
    captions = np.array([own[0], own[1][[0, 1, 1]], own[2][[0, 1, 2]], own[3][[0, 1, 1]]])
    captions[[1, 3], 2] = -1  # images with fewer captions
    whole = Batch(np.arange(4), captions, np.zeros(4, dtype=np.int64))
    batches = [part(whole, rows) for rows in (slice(1), slice(1, 2), slice(2, 4))] if split else [whole]
    monkeypatch.setattr(importlib.import_module("captioner.training.train"), "epoch_batches", lambda *_: batches)
    build = stage.build_decoder
    monkeypatch.setattr(stage, "build_decoder", lambda *arguments: build(*arguments).double())
    before: list[dict[str, Tensor]] = []
    after: list[dict[str, Tensor]] = []
    watch.before.append(lambda decoder, _: before.append(weights_of(decoder)))
    watch.after.append(lambda decoder, _: after.append(weights_of(decoder)))
    run(tmp_path, data, parameters)
    assert len(before) == len(after) == 1

    decoder = load_model(tmp_path / "models").decoder.double()
    decoder.load_state_dict(before[0])
    trained = {name: own for name, own in decoder.named_parameters() if name != "embedding.weight"}
    for parameter in trained.values():
        parameter.requires_grad_()
    with FeatureStore.open(data["features"]).reader() as reader:
        features = reader.read(inputs.train_rows[:4]).double()
    loss, count = loss_by_hand(decoder, features, torch.from_numpy(table.tokens[whole.captions]), penalty)
    gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()))))
    norm = sum(gradient.square().sum() for gradient in gradients.values()) ** 0.5
    assert norm > 0.05
    factor = clip / (norm + 1e-6) if clip else 1.0  # as torch's manual has it
    for name, gradient in gradients.items():
        expected = before[0][name] - RATES[name.startswith(PROJECTION)] * factor * gradient
        torch.testing.assert_close(after[0][name], expected, rtol=0, atol=1e-12)
        assert (after[0][name] - before[0][name]).abs().max() > 0
    (row,) = history_numbers(tmp_path)
    assert row["tokens"] == count
    if not penalty:
        assert row["train_cross_entropy"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_processor_never_waits_for_a_gpu_within_a_step(precision: str, penalty: float) -> None:
    """Waiting would leave the GPU without work while the next kernels are launched."""
    config = DecoderConfig("lstm", "soft", 30, 3, 6, 4, feature_size=5, hidden_size=6, attention_size=3)
    decoder = build_decoder(config).cuda()
    options = TrainParameters(precision=precision, doubly_stochastic=penalty)
    optimizer, objective = build_optimizer(decoder, options), CrossEntropy(decoder, options)
    tokens = torch.tensor([[[1, 9, 8, 7, 2], [1, 6, 2, 0, 0]], [[1, 5, 4, 2, 0], [0, 0, 0, 0, 0]]])
    features = torch.rand(2, 4, 6).cuda()
    counts = GlobalBatch(tokens=9, captions=3, images=2)

    def step() -> Tensor:
        set_rates(optimizer, (0.1, 0.1))
        optimizer.zero_grad(set_to_none=True)
        tensors = objective.prepare(features, tokens, counts, 1, 0.0)
        with autocast(features.device, options):
            loss, statistics = objective(*tensors)
        loss.backward()
        clip_gradients(list(decoder.parameters()), options.clip)
        optimizer.step()
        return objective.finish(statistics, counts)[0]

    step()  # what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert total.item() > 0
