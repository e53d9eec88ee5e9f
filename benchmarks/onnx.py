"""A model in torch and exported to ONNX: size, and the time to the first caption: python -m benchmarks.onnx
[--model models]

Size is of encoder and decoder: in torch the weights of both, wherever they lie, in ONNX the three graphs. The time to
the first caption is that of a whole command, `captioner caption` of one image on the CPU, from its start to its first
line; the commands are run in turn. `same` is how many of some drawn images get the same best caption as in torch in
fp32. A line of JSON follows the table.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from pathlib import Path

import click
import torch

from benchmarks.caption import first_caption
from benchmarks.extract import draw_images
from captioner import Captioner
from captioner.captioning.onnx.captioner import OnnxCaptioner
from captioner.captioning.onnx.files import GRAPHS
from captioner.device import core_count
from captioner.export.onnx import export_onnx
from captioner.images.store import ImageStore
from captioner.model_io import CONFIG


def torch_bytes(captioner: Captioner) -> int:
    """Bytes of the weights of encoder and decoder."""
    modules = (captioner.encoder.encoder, captioner.model.decoder)
    return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())


def in_fp32(model: Path, folder: Path) -> Path:
    """A copy of the model whose encoder computes in fp32, as the exported one does."""
    shutil.copytree(model, folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "precision": "fp32"}))
    return folder


@click.command(help=__doc__)
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=Path("models"), show_default=True)
@click.option("--images", default=200, show_default=True, help="Drawn images whose captions are compared.")
@click.option("--repeats", default=5, show_default=True)
def main(model: Path, images: int, repeats: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = in_fp32(model, folder / "model")
        draw_images(folder / "images.h5", images)
        store = ImageStore.open(folder / "images.h5")
        files = [folder / f"{row:06}.jpg" for row in range(images)]
        for row, file in enumerate(files):
            file.write_bytes(store.jpeg(row))
        with Captioner.load(model, "cpu") as captioner:
            wanted, size = [result.text for result in captioner.caption(files)], torch_bytes(captioner)
        rows = {"torch": {"bytes": size, "same": images}}
        commands = {"torch": (model, "torch")}
        for runtime, int8 in (("onnx fp32", False), ("onnx int8", True)):
            out = folder / runtime.replace(" ", "-")
            export_onnx(model, out, int8)
            with OnnxCaptioner.load(out) as exported:
                found = [result.text for result in exported.caption(files)]
            same = sum(ours == theirs for ours, theirs in zip(found, wanted, strict=True))
            rows[runtime] = {"bytes": sum((out / graph).stat().st_size for graph in GRAPHS), "same": same}
            commands[runtime] = (out, "onnx")
        seconds: dict[str, list[float]] = {runtime: [] for runtime in rows}
        for _ in range(repeats + 1):
            for runtime, (of, kind) in commands.items():
                seconds[runtime].append(first_caption(files[0], of, "cpu", "--runtime", kind))
    print(f"{'runtime':10} {'MB':>8} {'first caption, s':>17} {'same captions':>14}")
    for runtime, row in rows.items():
        first = statistics.median(seconds[runtime][1:])  # the first round fills the file cache
        print(f"{runtime:10} {row['bytes'] / 1e6:8.2f} {first:17.2f} {row['same']:>7} of {images}")
        row["seconds"] = round(first, 3)
    print(json.dumps({"cores": core_count(), "images": images, "repeats": repeats, "runtimes": rows}))


if __name__ == "__main__":
    main()
