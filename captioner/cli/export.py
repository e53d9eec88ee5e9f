"""``captioner export``: a trained model to pass on, or for another runtime."""

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

    Without --onnx OUT is a model with the decoder's weights in half precision, half the size, for `captioner caption
    --model OUT`.

    With --onnx OUT holds the encoder, the decoder step and the vocabulary; captioning with it needs onnxruntime, numpy
    and Pillow, but neither torch nor timm. An ONNX export that stands there already is replaced.
    """
    if int8 and not onnx:
        raise CaptionerError("captioner export: --int8 goes with --onnx; add it")
    if onnx:
        from captioner.export.onnx import export_onnx

        written = export_onnx(model, out, int8)
    else:
        from captioner.export.half import export_half

        written = export_half(model, out)
    for path in written:
        click.echo(f"{path.stat().st_size / 1e6:9.3f} MB  {path}")
