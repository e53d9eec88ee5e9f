"""The command ``captioner``. Each subcommand is imported when it is called, so that ``--help`` is quick."""

from __future__ import annotations

import importlib
from typing import Any

import click

from captioner import __version__
from captioner.errors import CaptionerError

# name -> module of captioner.cli that has the click command ``command``, and its line of help
_COMMANDS = {
    "caption": ("caption", "Caption images with the model of photos, or with a trained one."),
    "compare": ("compare", "Compare experiments: confidence intervals, and whether they differ by more than chance."),
    "demo": ("demo", "Caption images in the browser."),
    "doctor": ("doctor", "Show what is installed and what is missing, each with its remedy."),
    "export": ("export", "Export a trained model: half its size, or to ONNX for captioning without torch."),
    "report": ("report", "Make one page of one or several experiments: scores, curves, images, attention."),
    "score": ("score", "Score a COCO results file against a COCO captions file."),
    "summary": ("summary", "Show the last run's scores and some captions."),
    "verify": ("verify", "Check an images or features file."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        return importlib.import_module(f"captioner.cli.{_COMMANDS[name][0]}").command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("captioner"):
                raise
            raise CaptionerError(
                f"the package {error.name} is not installed; in the program's folder: pip install '.[pipeline]'"
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="captioner")
def main() -> None:
    """Captions of images: tools beside the pipeline that `dvc repro` runs."""
