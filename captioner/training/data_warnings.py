"""What training says of data from which little can be learned."""

from __future__ import annotations

import click

from captioner.images.captions import ONE_IMAGE
from captioner.training.inputs import Inputs


def warn_about_data(inputs: Inputs) -> None:
    """Print a line for features that are constant, and for a single validation image."""
    store = inputs.store
    constant = store.constant_images()
    if constant:
        named = ", ".join(map(str, constant[:3])) + (", ..." if len(constant) > 3 else "")
        click.echo(
            f"warning: {store.path}: {len(constant):,} of {len(store):,} images have features that are all zero or one "
            f"value ({named}); if these images are not blank, run the extract stage again",
            err=True,
        )
    if len(inputs.val.image_ids) == 1:
        click.echo(f"warning: {inputs.captions.path}: one validation image; {ONE_IMAGE}", err=True)
