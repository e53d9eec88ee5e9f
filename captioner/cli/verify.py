"""``captioner verify``: what is wrong with an images or features file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from captioner.errors import CaptionerError


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def command(context: click.Context, file: Path) -> None:
    """Check FILE, an images file (images.h5) or a features file: shape, completeness, values, fingerprint.

    Prints "ok" and what the file holds, or each thing that is wrong and exits with status 1.
    """
    kind, summary = _look(file)
    if kind == "images":
        from captioner.images.verify import verify_images as verify
    else:
        from captioner.features.verify import verify_features as verify
    problems = verify(file)
    for problem in problems:
        click.echo(problem)
    if problems:
        context.exit(1)
    click.echo(f"{file}: ok, {summary}")


def _look(file: Path) -> tuple[str, str]:
    """Which of the two files it is, and what it holds in words."""
    import h5py

    try:
        with h5py.File(file, "r") as content:
            for kind, name in (("images", "jpeg"), ("features", "features")):
                if name in content and isinstance(content[name], h5py.Dataset):
                    return kind, _summary(kind, content)
    except FileNotFoundError:
        raise CaptionerError(f"{file}: not there; check the path") from None
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        raise CaptionerError(
            f"{file}: truncated or no HDF5 file ({error}); make it again with the stage that makes it"
        ) from error
    raise CaptionerError(
        f"{file}: neither an images nor a features file (no data set 'jpeg' or 'features'); give "
        "data/<dataset>/images.h5 or features/<encoder>.h5"
    )


def _summary(kind: str, content: Any) -> str:
    mark = content.attrs.get("fingerprint", b"none")
    mark = (mark.decode(errors="replace") if isinstance(mark, bytes) else str(mark))[:12]
    if kind == "images":
        return (
            f"{content['image_id'].shape[0]:,} images in {content['jpeg'].shape[0] / 1e6:,.1f} MB, fingerprint {mark}"
        )
    shape = " x ".join(f"{length:,}" for length in content["features"].shape)
    return f"features {shape} (images x views x positions x channels), fingerprint {mark}"
