"""``captioner export``: a trained model for another runtime."""

from __future__ import annotations

from pathlib import Path

import click

from captioner import paths
from captioner.errors import CaptionerError


@click.command("export")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=paths.MODELS,
    show_default=True,
    help="Folder of a trained model.",
)
@click.option("--onnx", is_flag=True, help="ONNX graphs, for `captioner caption --runtime onnx`.")
@click.option("--int8", is_flag=True, help="With --onnx: the decoder step's matrices as 8-bit integers.")
def command(out: Path, model: Path, onnx: bool, int8: bool) -> None:
    """Export a trained model to the folder OUT.

    With --onnx OUT holds the encoder, the decoder step and the vocabulary; captioning with it needs onnxruntime, numpy
    and Pillow, but neither torch nor timm. An export that stands there already is replaced.
    """
    if not onnx:
        raise CaptionerError("captioner export: no format is given; add --onnx")
    from captioner.export.onnx import export_onnx

    for path in export_onnx(model, out, int8):
        click.echo(f"{path.stat().st_size / 1e6:9.3f} MB  {path}")
