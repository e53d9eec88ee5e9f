"""A page that captions one image at a time, on this machine alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from captioner.captioning import Captioner, ImageCaptions
from captioner.drawing import attention_or_none, overlay
from captioner.errors import CaptionerError

HOST = "127.0.0.1"
_FONT = ["system-ui", "sans-serif"]  # Gradio's own would be fetched


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it would call home
    import gradio

    return gradio


def title(captioner: Captioner) -> str:
    """How a model is called in the list: what it was trained on, its encoder and decoder."""
    return f"{captioner.dataset}: {captioner.title}"


def rows(result: ImageCaptions) -> list[list[str]]:
    """Each caption and its log-probability."""
    return [[caption.text, f"{caption.log_probability:.2f}"] for caption in result.captions]


def words(result: ImageCaptions, grid: tuple[int, int]) -> list[tuple[Any, str]]:
    """A heat map for each word of the best caption; none where the decoder has no attention."""
    best = result.captions[0]
    attention = attention_or_none(best.attention)
    if attention is None or result.image is None:
        return []
    return [
        (overlay(result.image, weights, grid, result.box), word)
        for weights, word in zip(attention, best.words, strict=True)
    ]


def build(captioners: Mapping[str, Captioner]) -> Any:
    """The page, a ``gradio.Blocks``.

    Args:
        captioners: name -> model; the first is chosen at the start.
    """
    gradio = _gradio()
    names = list(captioners)

    def caption(path: str | None, name: str, beam: float) -> tuple[list[list[str]], list[tuple[Any, str]]]:
        if path is None:
            return [], []
        captioner = captioners[name]
        try:
            [result] = captioner.caption(path, int(beam), n_best=min(int(beam), 5), attention=True)
        except CaptionerError as error:
            raise gradio.Error(error.message) from error
        if result.error is not None:
            raise gradio.Error(f"This image cannot be captioned: {result.error}.")
        return rows(result), words(result, captioner.grid)

    with gradio.Blocks(title="captioner", analytics_enabled=False) as page:
        gradio.Markdown("# captioner\nDrop an image. Nothing leaves this machine.")
        with gradio.Row():
            with gradio.Column():
                # image_mode=None: the file as it came, for the captioner's own careful reader
                image = gradio.Image(
                    type="filepath", image_mode=None, label="Image", sources=["upload", "webcam", "clipboard"]
                )
                model = gradio.Dropdown(names, value=names[0], label="Model")
                beam = gradio.Slider(1, 10, value=5, step=1, label="Beam size (1 is greedy search)")
            with gradio.Column():
                captions = gradio.Dataframe(
                    headers=["caption", "log-prob."],
                    column_widths=["78%", "22%"],
                    label="Captions, best first, with their log-probabilities",
                    interactive=False,
                    wrap=True,
                )
                heat = gradio.Gallery(label="Where the decoder looked for each word", columns=4, object_fit="contain")
        inputs, outputs = [image, model, beam], [captions, heat]
        for event in (image.change, model.change, beam.release):
            event(caption, inputs, outputs, show_progress="minimal")
    return page


def serve(captioners: Mapping[str, Captioner], port: int) -> Any:
    """Serve the page on this machine's loopback address, in a thread of its own.

    Returns:
        The page; its ``block_thread`` waits for the end, its ``close`` ends it.

    Raises:
        CaptionerError: the port is taken.
    """
    gradio = _gradio()
    page = build(captioners)
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gradio.themes.Default(font=_FONT, font_mono=["monospace"]),
        )
    except OSError as error:
        raise CaptionerError(f"captioner demo: port {port} is taken; name another one with --port") from error
    return page
