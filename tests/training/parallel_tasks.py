"""What the processes of test_parallel.py do."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from captioner.decoder.attention import hard
from captioner.interrupts import StopSignal
from captioner.parameters import Parameters
from captioner.processes import Torchrun
from captioner.training import lifeline, phases, self_critical
from captioner.training.parallel import Group, following, leading
from captioner.vocabulary.vocabulary import START
from tests.training.small import run


def record(folder: Path, data: dict[str, Path], parameters: Parameters) -> None:
    """Train in float64 and leave ``rank<N>.json``: the loss of every step, a hash of the weights and hard attention's
    baseline after it."""
    module = sys.modules["captioner.training.train"]  # the package has a function of this name
    build, seen = module.build_decoder, []

    def recorded(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            total, count = step(*arguments, **options)
            decoder = next(value for value in arguments if isinstance(value, torch.nn.Module))
            weights = b"".join(tensor.numpy().tobytes() for tensor in decoder.state_dict().values())
            baseline = options["reinforce"].state["baseline"].item() if options else 0.0
            seen.append((float(total) / count, hashlib.sha256(weights).hexdigest(), baseline))
            return total, count

        return call

    module.build_decoder = lambda *arguments: build(*arguments).double()
    phases.training_step, phases.self_critical_step = (
        recorded(phases.training_step),
        recorded(phases.self_critical_step),
    )
    self_critical.sample_captions = _captions_of_pictures
    run(folder, data, parameters)
    (folder / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))


def record_drawn(*arguments: Any) -> None:
    """``record`` where hard attention never takes the expected value."""
    hard.EXPECTED_SHARE = 0.0
    record(*arguments)


def _captions_of_pictures(decoder: Any, features: torch.Tensor, samples: int, *_: Any) -> torch.Tensor:
    """(I, S, 5): START and four words that the picture alone decides, not which process draws them."""
    drawn = []
    for picture in features:
        generator = torch.Generator().manual_seed(int(picture.double().abs().sum() * 1000))
        drawn.append(torch.randint(4, decoder.config.vocabulary_size, (samples, 4), generator=generator))
    words = torch.stack(drawn)
    return torch.cat([torch.full_like(words[..., :1], START), words], 2)


def operate(folder: Path) -> None:
    """Every operation of a group once."""
    torchrun, device, found = Torchrun.from_environment("train"), torch.device("cpu"), {}
    with StopSignal("test") as stop:
        if torchrun.rank.rank == 0:
            with leading(torchrun.rank, device, torchrun.store, {}, stop) as group:
                found = _operations(group)
        else:
            with following(torchrun.rank, torchrun.store, stop) as enter, enter(device) as group:
                found = _operations(group)
    (folder / f"rank{torchrun.rank.rank}.json").write_text(json.dumps(found))


def hang() -> None:
    """Rank 1 dies; the main threads of the others take no notice."""
    lifeline._GRACE_SECONDS = 0.5
    torchrun = Torchrun.from_environment("train")
    if torchrun.rank.rank == 0:
        leader = lifeline.Leader(torchrun.rank.world, torchrun.store)
        leader.wait_ready(lambda: None)
    else:
        lifeline.Follower(torchrun.rank.rank, torchrun.rank.world, torchrun.store, lambda: None).ready()
    if torchrun.rank.rank == 1:
        time.sleep(0.5)
        os._exit(9)
    time.sleep(60)


def _operations(group: Group) -> dict[str, Any]:
    rank = group.rank
    first, second, third = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (3,), ()))
    group.flags = lambda: (rank == 2, False)
    sums = []
    for figures in (
        torch.tensor(10.0**rank),
        torch.tensor(10.0**rank),
        torch.tensor([10.0**rank, rank]),
    ):  # at first the buffer is used again
        first.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (rank + 1) if rank != 1 else None
        second.grad, third.grad = torch.full((3,), float(rank)), None
        figures = group.sum_gradients([first, second, third], figures)
        sums.append([figures.tolist(), first.grad.tolist(), second.grad.tolist(), third.grad.tolist(), group.carried()])
    return {
        "sums": sums,
        "agree": [group.agree(rank == 1), group.agree(False)],
        "all_reduce": group.all_reduce_(torch.tensor([rank, 1.5], dtype=torch.float64)).tolist(),
        "broadcast": group.broadcast_(torch.tensor([rank + 5])).tolist(),
        "broadcast_bytes": group.broadcast_bytes(f"from {rank}".encode() * (rank + 1)).decode(),
        "gather_bytes": [part.decode() for part in group.gather_bytes(b"x" * rank)],
    }
