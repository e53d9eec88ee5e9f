"""``captioner demo``: a page in the browser that captions images."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from pathlib import Path

import click

from captioner.errors import CaptionerError


@click.command("demo")
@click.option(
    "--model",
    "models",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder of a trained model, may be given several times; without it the model of photos.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N; auto: a GPU where there is one.")
def command(models: tuple[Path, ...], port: int, device: str) -> None:
    """Caption images in the browser.

    Serves a page on 127.0.0.1: drop or photograph an image, choose a model and a beam size, read the captions with
    their log-probabilities, and see where the decoder looked for each word. Needs the extra [demo].
    """
    if importlib.util.find_spec("gradio") is None:
        raise CaptionerError("captioner demo needs Gradio; in the program's folder: pip install '.[demo]'")
    from captioner.captioning import Captioner
    from captioner.demo.app import HOST, serve, title
    from captioner.pretrained import FLICKR8K

    with ExitStack() as stack:
        captioners = {}
        for folder in models or (FLICKR8K,):
            captioner = stack.enter_context(Captioner.load(folder, device))
            name = title(captioner)
            captioners[name if name not in captioners else f"{name} ({folder})"] = captioner
        page = serve(captioners, port)
        click.echo(f"http://{HOST}:{port}")
        page.block_thread()
