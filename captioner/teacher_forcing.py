"""Cross entropy and token accuracy of given captions under teacher forcing, for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.batches import Batch, BatchLoader, inputs_and_targets
from captioner.decoder import Decoder, unmasked
from captioner.vocabulary.vocabulary import PAD


def token_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The cross entropy of each target in nats: logits (M, V), targets (M,) int64 -> (M,) float, 0 for PAD."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return F.cross_entropy(wide, targets, ignore_index=PAD, reduction="none", label_smoothing=label_smoothing)


@torch.no_grad()
def score_captions(
    decoder: Decoder, loader: BatchLoader, batches: Sequence[Batch], stop: Callable[[], bool] = lambda: False
) -> Tensor | None:
    """How well true captions are predicted, token by token.

    Args:
        decoder: in eval mode.
        loader: of the split.
        batches: of the split; their size decides the last bits of the sums.
        stop: asked before each batch.

    Returns:
        (3,) float64: the summed cross entropy in nats, the number of tokens with the highest logit, and of all tokens
        (words and END); None where ``stop`` said so.
    """
    device = decoder.device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for ((features, tokens),) in loader.stream([batch] for batch in batches):
        if stop():
            return None
        inputs, targets = inputs_and_targets(tokens)
        index = unmasked(targets)
        wanted = targets.flatten()[index].to(device, non_blocking=True)
        memory = decoder.encode(features.to(device, non_blocking=True))
        logits, _ = decoder(memory, inputs.to(device, non_blocking=True), index.to(device, non_blocking=True))
        entropies = token_cross_entropy(logits, wanted)
        correct = (logits.argmax(-1) == wanted).sum()
        sums += torch.stack([entropies.sum(dtype=torch.float64), correct.double(), sums.new_tensor(len(wanted))])
    return sums


def token_metrics(sums: Tensor) -> dict[str, float]:
    """``cross_entropy`` in nats a token and ``token_accuracy``, from the sums of ``score_captions``."""
    total, correct, count = sums.tolist()
    return {"cross_entropy": total / count, "token_accuracy": correct / count}
