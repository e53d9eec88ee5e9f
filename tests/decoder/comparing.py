"""The decoder beside the slow reference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.batches import inputs_and_targets
from captioner.decoder import Decoder, unmasked
from tests.decoder.examples import make_features, make_tokens
from tests.decoder.slow import slow_logits


class Outputs(NamedTuple):
    """Of teacher forcing: logits (M, V) and targets (M,) of all tokens to predict, attention (I, K, T, P)."""

    logits: Tensor
    targets: Tensor
    attention: Tensor


class TeacherForcing(nn.Module):
    """A decoder as a function of features (I, P, C) and captions (I, K, T + 1)."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor, tokens: Tensor) -> Outputs:
        inputs, targets = inputs_and_targets(tokens)
        logits, attention = self.decoder(self.decoder.encode(features), inputs)
        return Outputs(logits, targets[targets != 0], attention)


def teacher_forced(decoder: Decoder, features: Tensor, tokens: Tensor) -> Outputs:
    return TeacherForcing(decoder)(features, tokens)


def by_caption(rows: Tensor, tokens: Tensor) -> dict[tuple[int, int], Tensor]:
    """Rows (M, ...) of the tokens to predict, in order -> (image, k) -> those of one caption (n, ...)."""
    captions, first = {}, 0
    for i, row in enumerate(tokens):
        for k, padded in enumerate(row):
            count = int((padded != 0).sum()) - 1
            if count >= 0:
                captions[i, k] = rows[first : first + count]
                first += count
    assert first == len(rows)
    return captions


def assert_is_the_equations(model: Decoder, features: Tensor, tokens: Tensor) -> None:
    """Teacher forcing gives the logits, the attention and the gradients of ``slow_logits``.

    The gradients stay in the model.
    """
    expected_loss, count, slow = 0.0, 0, {}
    for i, row in enumerate(tokens):
        for k, padded in enumerate(row):
            caption = padded[padded != 0]
            if len(caption):
                slow[i, k] = slow_logits(model, features[i], caption, batch=features)
                expected_loss = expected_loss + F.cross_entropy(slow[i, k][0], caption[1:], reduction="sum")
                count += len(caption) - 1
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected_gradients = torch.autograd.grad(expected_loss, list(parameters.values()), allow_unused=True)

    outputs = teacher_forced(model, features, tokens)
    found = by_caption(outputs.logits, tokens)
    assert found.keys() == slow.keys() and outputs.targets.numel() == count  # every word and every END, no padding
    for (i, k), (expected, weights) in slow.items():
        torch.testing.assert_close(found[i, k], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(outputs.attention[i, k, : len(weights)], weights, rtol=1e-10, atol=1e-12)
    F.cross_entropy(outputs.logits, outputs.targets, reduction="sum").backward()
    for (name, parameter), gradient in zip(parameters.items(), expected_gradients):
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_steps_are_teacher_forcing(model: Decoder, features: Tensor, tokens: Tensor) -> None:
    """``step``, word by word, gives the logits and the attention of ``forward``."""
    images, captions, width = tokens.shape
    outputs = teacher_forced(model, features, tokens)
    memory = model.encode(features)
    state, steps, attention = model.initial_state(memory, captions), [], []
    for step in range(width - 1):
        logits, state, weights = model.step(tokens[:, :, step], state, memory)
        assert logits.shape == (images, captions, model.config.vocabulary_size)
        assert weights.shape == (images, captions, features.shape[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones(images, captions, dtype=torch.float64))
        steps.append(logits)
        attention.append(weights)
    together, weights = torch.stack(steps, 2), torch.stack(attention, 2)  # (I, K, T, V), (I, K, T, P)
    for (i, k), logits in by_caption(outputs.logits, tokens).items():
        torch.testing.assert_close(together[i, k, : len(logits)], logits, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            outputs.attention[i, k, : len(logits)], weights[i, k, : len(logits)], rtol=1e-10, atol=1e-12
        )
    index = unmasked(inputs_and_targets(tokens)[0])
    torch.testing.assert_close(together.flatten(0, 2)[index], outputs.logits, rtol=1e-10, atol=1e-12)


def assert_learns_by_heart(decoder: Decoder, rate: float) -> None:
    """Eight captions of four images in 150 steps of Adam, all but what cannot be known."""
    features, tokens = make_features(4), make_tokens([[3, 5], [6, 2], [4, 7], [1, 5]])
    optimizer = torch.optim.Adam([parameter for parameter in decoder.parameters() if parameter.requires_grad], rate)
    for _ in range(150):
        outputs = teacher_forced(decoder, features, tokens)
        loss = F.cross_entropy(outputs.logits, outputs.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # the first word of two captions of one image cannot be known: ln 2 a caption at least
    assert loss.item() < 8 * 0.6931 / outputs.targets.numel() + 0.01
