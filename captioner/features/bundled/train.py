"""Train the bundled encoder, squeezenet1_1, on drawn scenes: python -m captioner.features.bundled.train

The scenes tell where everything is, so the last map is supervised densely: which kinds cover each cell, where
things have their centres, and which background it is. Plain SqueezeNet learns slowly from scratch, therefore every
convolution is followed by batch normalisation while training, and folded into plain convolutions afterwards.
"""

from __future__ import annotations

import copy
import multiprocessing
import time
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from captioner.errors import CaptionerError
from captioner.features.bundled import ENCODER, weights_path
from captioner.features.encoders.torchvision_compat import torchvision
from captioner.images import scenes

DATA_SET_SEED = 1  # download.seed: the images that the weights must never have seen
SIDE = 224
CELLS = 13  # the last map of squeezenet1_1 at 224x224
CHANNELS = 512
KINDS = len(scenes.KINDS)
_NUMBER = {kind.name: i for i, kind in enumerate(scenes.KINDS)}
_FINE = 8  # points a cell and axis of the raster on which boxes are painted


def targets(scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray, int]:
    """What the maps should say of a scene.

    Returns:
        ``(32, 13, 13)`` u1, the part of each cell that each kind's boxes cover, times 255;
        ``(32, 13, 13)`` u1, 255 times a bump at each thing's centre; and the number of the background.
    """
    fine = CELLS * _FINE
    cover = np.zeros((KINDS, fine, fine), np.float32)
    bump = np.zeros((KINDS, CELLS, CELLS), np.float32)
    grid = np.arange(CELLS) + 0.5
    for group in (scene.first, scene.second):
        kind = _NUMBER[group.kind]
        for box in group.boxes:
            left, top, right, bottom = (round(edge * fine / scenes.SIDE) for edge in box)
            cover[kind, top:bottom, left:right] = 1
            x, y = ((box[i] + box[i + 2]) / 2 * CELLS / scenes.SIDE for i in (0, 1))
            distance = (grid[:, None] - y) ** 2 + (grid[None, :] - x) ** 2
            bump[kind] = np.maximum(bump[kind], np.exp(-distance / 0.9))
    cover = cover.reshape(KINDS, CELLS, _FINE, CELLS, _FINE).mean((2, 4))
    return (cover * 255).astype(np.uint8), (bump * 255).astype(np.uint8), scenes.BACKGROUNDS.index(scene.background)


def _example(number: tuple[int, int]):
    scene = scenes.describe(*number)
    image = scenes.draw(scene).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image), *targets(scene)


def make(seed: int, count: int, processes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``count`` scenes of a seed: images ``(N, 224, 224, 3)`` u1, covers ``(N, 32, 13, 13)`` u1, centres
    ``(N, 32, 13, 13)`` u1 and backgrounds ``(N,)`` i8."""
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    covers = np.empty((count, KINDS, CELLS, CELLS), np.uint8)
    centres = np.empty_like(covers)
    grounds = np.empty(count, np.int64)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        jobs = pool.imap(_example, ((seed, index) for index in range(count)), chunksize=64)
        for i, example in enumerate(jobs):
            images[i], covers[i], centres[i], grounds[i] = example
    return torch.from_numpy(images), torch.from_numpy(covers), torch.from_numpy(centres), torch.from_numpy(grounds)


class Trainee(nn.Module):
    """squeezenet1_1's convolutions with batch normalisation, and a linear head on each cell of the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = with_norms(_torchvision_features())
        self.head = nn.Conv2d(CHANNELS, 2 * KINDS, 1)
        self.ground = nn.Linear(CHANNELS, len(scenes.BACKGROUNDS))
        # Few cells are covered by a given kind: begin with that belief rather than learn it first.
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, -3.0)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, 3, 224, 224)`` normalised -> kinds ``(B, 32, 13, 13)``, centres likewise, grounds ``(B, 5)``."""
        maps = self.features(images)  # (B, 512, 13, 13)
        cells = self.head(F.dropout(maps, 0.1, self.training))
        return cells[:, :KINDS], cells[:, KINDS:], self.ground(maps.mean((2, 3)))


def _torchvision_features() -> nn.Sequential:
    features = torchvision.models.squeezenet1_1(weights=None).features
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return features


class _Normed(nn.Sequential):
    """A convolution and its batch normalisation, under the name that the convolution had."""

    def folded(self) -> nn.Conv2d:
        conv, norm = copy.deepcopy(self).eval()
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        return fuse_conv_bn_eval(conv, norm)


def with_norms(features: nn.Module) -> nn.Module:
    """Put batch normalisation behind every convolution, in place."""
    for name, child in features.named_children():
        if isinstance(child, nn.Conv2d):
            bare = nn.Conv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,  # type: ignore[arg-type]  # annotated as a tuple of any length
                child.stride,  # type: ignore[arg-type]
                child.padding,  # type: ignore[arg-type]
                bias=False,
            )
            bare.weight.data = child.weight.data
            setattr(features, name, _Normed(bare, nn.BatchNorm2d(child.out_channels, momentum=0.05)))
        else:
            with_norms(child)
    return features


def fold(features: nn.Module) -> dict[str, Tensor]:
    """The trained features as plain convolutions under torchvision's names, ``features.`` left out."""
    state: dict[str, Tensor] = {}
    for name, module in features.named_modules():
        if isinstance(module, _Normed):
            plain = module.folded()
            state |= {f"{name}.{key}": value.detach() for key, value in plain.named_parameters()}
    return state


_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) * 255
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255


def normalised(images: Tensor) -> Tensor:
    """``(B, 224, 224, 3)`` u1 -> ``(B, 3, 224, 224)`` f4, channels last in memory, ImageNet mean and spread."""
    return (images.permute(0, 3, 1, 2).float() - _MEAN) / _STD


def augmented(batch: tuple[Tensor, ...], random: torch.Generator) -> tuple[Tensor, ...]:
    """Half of the batches mirrored with their maps, and every image's colours a little changed."""
    images, covers, centres, grounds = batch
    inputs = normalised(images)
    if torch.rand((), generator=random) < 0.5:
        inputs, covers, centres = inputs.flip(3), covers.flip(3), centres.flip(3)
    n = len(inputs)
    gain = 1 + 0.15 * (torch.rand(n, 3, 1, 1, generator=random) - 0.5)
    inputs = inputs * gain + 0.2 * (torch.rand(n, 3, 1, 1, generator=random) - 0.5)
    return inputs, covers, centres, grounds


def loss_of(model: Trainee, inputs: Tensor, covers: Tensor, centres: Tensor, grounds: Tensor) -> Tensor:
    """The summed loss of cells at 13x13, of cells pooled to 7x7 (as the pipeline pools) and of the whole image."""
    kinds, middles, positions = (part.float() for part in model(inputs))
    cover, centre = covers.float() / 255, centres.float() / 255
    # Centres tell how many there are, which covered cells do not where things touch.
    cells = _map_loss(kinds, cover) + 0.6 * _map_loss(middles, centre)
    present = (cover.amax((2, 3)) > 0).float()
    whole = F.binary_cross_entropy_with_logits(presence(kinds), present, reduction="none").sum(1).mean()
    return cells + whole + 0.5 * F.cross_entropy(positions, grounds)


def _map_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of ``(B, 32, 13, 13)`` maps, as they are and pooled to 7x7; a mean over the batch alone."""
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum((1, 2, 3)).mean()
    # Pooling logits is pooling features, since the head is linear.
    logits, wanted = F.adaptive_avg_pool2d(logits, 7), F.adaptive_avg_pool2d(wanted, 7)
    return (
        0.05 * loss + 0.15 * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum((1, 2, 3)).mean()
    )


def presence(kinds: Tensor) -> Tensor:
    """Cell logits ``(B, 32, 13, 13)`` -> image logits ``(B, 32)``: the largest after pooling to 7x7."""
    return F.adaptive_avg_pool2d(kinds, 7).amax((2, 3))


@torch.inference_mode()
def measure(model: nn.Module, data: tuple[Tensor, ...], batch: int = 64) -> dict:
    """Held-out metrics: fraction of scenes whose two likeliest kinds are right, fraction of backgrounds right, and for
    each kind recall and precision of being among the two likeliest, and average precision."""
    model.eval()
    batches = []
    for start in range(0, len(data[0]), batch):
        with torch.autocast("cpu", torch.bfloat16):
            kinds, _, ground = model(normalised(data[0][start : start + batch]))
        batches.append((presence(kinds.float()), ground.float().argmax(1)))
    scores, grounds = (torch.cat(parts) for parts in zip(*batches))
    truth = data[1].amax((2, 3)) > 0
    named = torch.zeros_like(truth).scatter_(1, scores.topk(2).indices, True)
    hits = (named & truth).sum(0).float()
    per_kind = {}
    for i, kind in enumerate(scenes.KINDS):
        order = truth[scores[:, i].argsort(descending=True), i].float()
        ranks = torch.arange(1, len(order) + 1)
        per_kind[kind.name] = {
            "recall": (hits[i] / truth[:, i].sum()).item(),
            "precision": (hits[i] / named[:, i].sum().clamp(min=1)).item(),
            "ap": ((order.cumsum(0) / ranks * order).sum() / order.sum()).item(),
        }
    return {
        "both_right": torch.eq(named, truth).all(1).float().mean().item(),
        "background_right": torch.eq(grounds, data[3]).float().mean().item(),
        "kinds": per_kind,
    }


def train(
    data: tuple[Tensor, ...],
    held_out: tuple[Tensor, ...],
    batch: int,
    rate: float,
    seed: int,
    steps: int,
    keep: Path | None,
) -> tuple[Trainee, dict]:
    """Train for ``steps`` steps of ``batch`` scenes with AdamW and one cycle of the learning rate."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = Trainee().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.15, anneal_strategy="cos"
    )
    began, order, mean = time.monotonic(), torch.empty(0, dtype=torch.int64), 0.0
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(data[0]), generator=random)
        chosen, order = order[:batch], order[batch:]
        model.train()
        inputs, *wanted = augmented(tuple(part[chosen] for part in data), random)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, inputs, *wanted)
        if not torch.isfinite(loss):
            raise CaptionerError(f"the loss is {loss.item()} at step {step}: try a smaller --rate than {rate}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
        mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            spent = time.monotonic() - began
            line = f"step {step + 1}/{steps}  loss {mean:.3f}  {(step + 1) * batch / spent:.0f} scenes/s  {spent:.0f} s"
            if (step + 1) % 150 == 0:
                line += f"  both kinds right {measure(model, tuple(part[:512] for part in held_out))['both_right']:.3f}"
            click.echo(line)
            if keep:
                torch.save(model.state_dict(), keep)
    return model, measure(model, held_out)


@click.command(help=__doc__.split("\n")[0])
@click.option("--seed", default=1000, show_default=True, help="Seed of the training scenes; seed + 1 is held out.")
@click.option("--train-scenes", default=4000, show_default=True)
@click.option("--held-out", default=1000, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--rate", default=4e-3, show_default=True, help="Highest learning rate of the cycle.")
@click.option("--threads", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=weights_path(), help="File of weights.")
@click.option("--keep", type=click.Path(path_type=Path, dir_okay=False), help="Where to save work in progress.")
def main(seed, train_scenes, held_out, steps, batch, rate, threads, out, keep) -> None:
    if DATA_SET_SEED in (seed, seed + 1):
        raise CaptionerError(
            f"--seed {seed} would train or test on the data set itself (its seed is {DATA_SET_SEED}): take 1000"
        )
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # every buffer is written here; filling costs time
    began = time.monotonic()
    data, unseen = make(seed, train_scenes, threads), make(seed + 1, held_out, threads)
    click.echo(f"{train_scenes} + {held_out} scenes drawn in {time.monotonic() - began:.0f} s")
    model, metrics = train(data, unseen, batch, rate, seed, steps, keep)
    for name, row in metrics["kinds"].items():
        click.echo(f"{name:12s}" + "".join(f"  {key} {value:.3f}" for key, value in row.items()))
    click.echo(f"both kinds right {metrics['both_right']:.4f}, background right {metrics['background_right']:.4f}")
    save(fold(model.features), out, seed, train_scenes, steps * batch, held_out, metrics)
    click.echo(f"{out}: {out.stat().st_size} bytes, {time.monotonic() - began:.0f} s in all")


def save(state: dict[str, Tensor], out: Path, seed: int, count: int, seen: int, held_out: int, metrics: dict) -> None:
    """Write folded features as fp16 safetensors with a record of how they were made."""
    metadata = {
        "encoder": ENCODER,
        "made_by": "python -m captioner.features.bundled.train",
        "data": f"{count} drawn scenes of seed {seed}, {seen} shown; tested on {held_out} of seed {seed + 1}",
        "both_kinds_right": f"{metrics['both_right']:.4f}",
        "background_right": f"{metrics['background_right']:.4f}",
        "mean_ap": f"{np.mean([row['ap'] for row in metrics['kinds'].values()]):.4f}",
        "glyphs": f"OpenMoji, CC BY-SA 4.0, font SHA-256 {scenes.FONT_SHA256}",
    }
    save_file({f"features.{name}": part.half().contiguous() for name, part in state.items()}, out, metadata)


if __name__ == "__main__":
    main()
