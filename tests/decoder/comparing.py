"""The fast decoder beside the slow one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.decoder import CaptionDecoder, TeacherForced
from tests.decoder.slow import slow_logits


def by_caption(outputs: TeacherForced) -> dict[tuple[int, int], Tensor]:
    """(image, k) -> logits (n, V) in order."""
    captions = {}
    for caption in outputs.caption.unique().tolist():
        mine = outputs.caption == caption
        assert outputs.step[mine].tolist() == sorted(outputs.step[mine].tolist())
        captions[divmod(caption, outputs.shape[1])] = outputs.logits[mine]
    return captions


def assert_is_the_equations(model: CaptionDecoder, features: Tensor, tokens: Tensor) -> None:
    """Teacher forcing gives the logits, the attention and the gradients of ``slow_logits``; leaves the gradients in the
    model."""
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

    outputs = model(features, tokens)
    found = by_caption(outputs)
    assert found.keys() == slow.keys() and outputs.targets.numel() == count  # every word and every end, no padding
    for (i, k), (expected, weights) in slow.items():
        torch.testing.assert_close(found[i, k], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(outputs.attention[i, k, : len(weights)], weights, rtol=1e-10, atol=1e-12)
        assert not outputs.attention[i, k, len(weights) :].any()
    F.cross_entropy(outputs.logits, outputs.targets, reduction="sum").backward()
    for (name, parameter), gradient in zip(parameters.items(), expected_gradients):
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_steps_are_teacher_forcing(model: CaptionDecoder, features: Tensor, tokens: Tensor) -> None:
    """``step``, word by word, gives the logits of ``forward``."""
    images, captions, width = tokens.shape
    expected = by_caption(model(features, tokens))
    memory = model.encode(features)
    state, steps = model.start(memory, captions), []
    for step in range(width - 1):
        logits, state, weights = model.step(tokens[:, :, step], state, memory)
        assert logits.shape == (images * captions, model.config.vocabulary_size)
        assert weights.shape == (images, captions, features.shape[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones(images, captions, dtype=torch.float64))
        steps.append(logits.view(images, captions, -1))
    together = torch.stack(steps, 2)  # (I, K, T, V)
    for (i, k), logits in expected.items():
        torch.testing.assert_close(together[i, k, : len(logits)], logits, rtol=1e-10, atol=1e-12)
