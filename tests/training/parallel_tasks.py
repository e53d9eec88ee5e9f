"""What the processes of test_parallel.py and test_hard_run.py do."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from captioner.decoder.attention import hard
from captioner.launch import Rank
from captioner.parameters import Parameters
from captioner.training import checkpoint, stage
from captioner.training.distributed import process_group
from captioner.training.objectives import CrossEntropy, SelfCritical, self_critical
from captioner.vocabulary.vocabulary import PAD, START
from tests.training.small import run


def record(folder: Path, data: dict[str, Path], parameters: Parameters, drawn_by_image: bool = True) -> None:
    """Train in float64 and leave ``rank<N>.json``, a list of steps: the loss, and after it hashes of all weights and
    of the attention's, the baseline of hard attention and the names of the parameters without a gradient.

    Args:
        drawn_by_image: nothing is drawn by chance: the image decides sampled captions and hard attention's positions,
            whatever the rank. False: hard attention draws all positions and never takes the expected value.
    """
    build, steps = stage.build_decoder, []
    decoders: list[nn.Module] = []

    def build_double(*arguments: Any) -> nn.Module:
        decoders.append(build(*arguments).double())
        return decoders[-1]

    def recorded(finish: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, statistics: Tensor, counts: Any) -> tuple[Tensor, int]:
            total, count = finish(self, statistics, counts)
            steps.append({"loss": float(total) / count, "baseline": float(self.state.get("baseline", 0.0))})
            return total, count

        return call

    def after_step(*_: Any) -> None:
        (decoder,) = decoders
        steps[-1]["weights"], steps[-1]["attention"] = _hash(decoder), _hash(decoder.attention)
        trained = {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}
        steps[-1]["without_gradient"] = [name for name, parameter in trained.items() if parameter.grad is None]

    stage.build_decoder = build_double
    for objective in (CrossEntropy, SelfCritical):
        objective.finish = recorded(objective.finish)
    register_optimizer_step_post_hook(after_step)
    if drawn_by_image:
        self_critical.sample_captions = _captions_of_images
        hard.draw_positions = _median_positions
        hard.HardAttention.start_sequence = _expect_every_second_caption
    else:
        hard.EXPECTED_SHARE = 0.0
    run(folder, data, parameters)
    (folder / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(steps))


def _hash(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())).hexdigest()


def record_until(folder: Path, checkpoint_name: str, *arguments: Any) -> None:
    """``record``, but rank 0 ends at once when it has saved the checkpoint ``checkpoint_name``."""
    write = checkpoint.write_state

    def write_and_end(partial: Path, name: str, *rest: Any) -> None:
        write(partial, name, *rest)
        if name == checkpoint_name:
            os._exit(9)

    checkpoint.write_state = write_and_end
    record(folder, *arguments)


_sample_captions = self_critical.sample_captions


def _captions_of_images(decoder: Any, features: Tensor, samples: int, max_length: int, greedy: bool) -> Tensor:
    """Samples of START and four words that the image alone decides; then the decoder's own greedy caption."""
    sampled = []
    for image in features:
        generator = torch.Generator().manual_seed(int(image.double().abs().sum() * 1000))
        sampled.append(torch.randint(4, decoder.config.vocabulary_size, (samples, 4), generator=generator))
    words = torch.stack(sampled)
    captions = torch.cat([torch.full_like(words[..., :1], START), words], 2)
    if not greedy:
        return captions
    best = _sample_captions(decoder, features, 0, max_length, greedy=True)
    length = max(captions.shape[2], best.shape[2])
    padded = [nn.functional.pad(part, (0, length - part.shape[2]), value=PAD) for part in (captions, best)]
    return torch.cat(padded, 1)


def _median_positions(weights: Tensor) -> Tensor:
    """The position at which the cumulative weight passes a half."""
    return (weights.cumsum(-1) < 0.5).sum(-1).clamp(max=weights.shape[-1] - 1)


def _expect_every_second_caption(self: hard.HardAttention, tokens: Tensor) -> None:
    """Captions with an even sum of tokens take expected values."""
    self.drawn, self.expected = [], tokens.sum(-1) % 2 == 0


def operate(folder: Path) -> None:
    """Every operation of a group once."""
    rank = Rank.from_environment()
    with process_group(rank, torch.device("cpu")) as group:
        own = torch.tensor([rank.rank, 1.5], dtype=torch.float64)
        found = {
            "main": group.is_main,
            "shard": list(group.shard("abcdefgh")),
            "sum": group.sum(own).tolist(),
            "in_place": own.tolist(),
            "any": [group.any(rank.rank == 1, False), group.any(False), group.any(True)],
            "gather": group.gather({"x": "x" * rank.rank}),
            "broadcast": group.broadcast(f"from {rank.rank}".encode() * (rank.rank + 1)).decode(),
            "broadcast_nothing": group.broadcast(b"" if rank.is_main else b"something").decode(),
        }
        torch.manual_seed(rank.rank)
        module = group.wrap(nn.Linear(2, 1), find_unused_parameters=False)
        module(torch.tensor([[1.0, float(rank.rank)]])).sum().backward()
        weight, _ = module.parameters()
        found["weight"], found["gradient"] = weight.tolist(), weight.grad.tolist()
    (folder / f"rank{rank.rank}.json").write_text(json.dumps(found))
