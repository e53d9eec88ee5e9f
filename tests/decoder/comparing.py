"""The decoder beside the slow one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.batches import inputs_and_targets
from captioner.decoder import Decoder, unmasked
from captioner.decoder.recurrent import RecurrentDecoder
from captioner.vocabulary.vocabulary import PAD
from tests.decoder.slow import slow_logits


class TeacherForced(NamedTuple):
    """A pass of teacher forcing.

    Attributes:
        logits: (M, V) of the tokens to predict.
        targets: (M,) int64, those tokens.
        attention: (I, K, T, P), where there is nothing to predict too.
        mask: (I, K, T) bool, where there is something to predict.
    """

    logits: Tensor
    targets: Tensor
    attention: Tensor
    mask: Tensor

    @property
    def weights(self) -> Tensor:
        """Attention (M, P) of the tokens to predict."""
        return self.attention[self.mask]


def teacher_forced(model: Decoder, features: Tensor, tokens: Tensor) -> TeacherForced:
    """Features (I, P, C) and padded captions (I, K, T + 1) -> logits and attention of every word and END."""
    inputs, targets = inputs_and_targets(tokens)
    index = unmasked(targets)
    device = features.device
    logits, attention = model(model.encode(features), inputs.to(device), index.to(device))
    return TeacherForced(logits, targets.flatten()[index].to(device), attention, (targets != PAD).to(device))


def cross_entropy(outputs: TeacherForced) -> Tensor:
    """Its sum over all tokens to predict."""
    return F.cross_entropy(outputs.logits, outputs.targets, reduction="sum")


def by_caption(outputs: TeacherForced) -> dict[tuple[int, int], Tensor]:
    """(image, k) -> logits (n, V) in order, of the captions that there are."""
    captions, first = {}, 0
    for (i, k), length in zip(outputs.mask.any(-1).nonzero().tolist(), outputs.mask.sum(-1)[outputs.mask.any(-1)]):
        captions[i, k] = outputs.logits[first : first + length]
        first += int(length)
    assert first == len(outputs.logits)
    return captions


def gradients(model: Decoder, loss: Tensor) -> dict[str, Tensor]:
    """Of every parameter that the loss reaches."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found) if gradient is not None}


def assert_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-9, atol: float = 1e-11
) -> None:
    """Two sets of named tensors are the same within bounds."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_is_the_equations(model: RecurrentDecoder, features: Tensor, tokens: Tensor) -> None:
    """Teacher forcing gives the logits, the attention and the gradients of ``slow_logits``; leaves the gradients in the
    model."""
    expected_loss, count, slow = torch.zeros((), dtype=torch.float64), 0, {}
    for i, row in enumerate(tokens):
        for k, padded in enumerate(row):
            caption = padded[padded != PAD]
            if len(caption):
                slow[i, k] = slow_logits(model, features[i], caption, batch=features)
                expected_loss = expected_loss + F.cross_entropy(slow[i, k][0], caption[1:], reduction="sum")
                count += len(caption) - 1
    expected_gradients = gradients(model, expected_loss)

    outputs = teacher_forced(model, features, tokens)
    found = by_caption(outputs)
    assert found.keys() == slow.keys() and len(outputs.targets) == count  # every word and every END, no padding
    assert outputs.attention.shape == (*tokens[..., 1:].shape, features.shape[1])
    for (i, k), (expected, weights) in slow.items():
        torch.testing.assert_close(found[i, k], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(outputs.attention[i, k, : len(weights)], weights, rtol=1e-10, atol=1e-12)
    cross_entropy(outputs).backward()
    assert_same({name: own.grad for name, own in model.named_parameters() if own.grad is not None}, expected_gradients)


def assert_steps_are_teacher_forcing(model: RecurrentDecoder, features: Tensor, tokens: Tensor) -> None:
    """``step``, word by word, gives the logits and the attention of ``forward``."""
    images, captions, width = tokens.shape
    outputs = teacher_forced(model, features, tokens)
    memory = model.encode(features)
    state, steps = model.initial_state(memory, captions), []
    for step in range(width - 1):
        logits, state, weights = model.step(tokens[:, :, step], state, memory)
        assert logits.shape == (images, captions, model.config.vocabulary_size)
        assert weights.shape == (images, captions, features.shape[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones(images, captions, dtype=torch.float64))
        here = outputs.mask[:, :, step]
        torch.testing.assert_close(weights[here], outputs.attention[:, :, step][here], rtol=1e-10, atol=1e-12)
        steps.append(logits)
    together = torch.stack(steps, 2)  # (I, K, T, V)
    for (i, k), logits in by_caption(outputs).items():
        torch.testing.assert_close(together[i, k, : len(logits)], logits, rtol=1e-10, atol=1e-12)
