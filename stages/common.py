"""What every stage does first: read and check params.yaml."""

from __future__ import annotations

import os
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.parameters import Parameters, load_parameters


def read_parameters() -> Parameters:
    """params.yaml of the current folder, checked.

    ``dvc exp run -S`` leaves in params.yaml what it has set, also where the run fails; the message says how to undo it.
    DVC runs queued and ``--temp`` experiments in a copy of the repository elsewhere, where a relative path that leaves
    the repository points to nothing; it is refused there with the remedy.
    """
    queued = "/.dvc/tmp/exps/" in f"{Path.cwd().as_posix()}/"
    try:
        parameters = load_parameters()
    except CaptionerError as error:
        if "DVC_EXP_BASELINE_REV" not in os.environ or queued:
            raise
        raise CaptionerError(
            f"{error.message} (what -S has set stays in params.yaml: correct it there, or undo all changes to it with "
            "`git checkout params.yaml`)"
        ) from error
    if queued:
        paths = [
            ("download.root", parameters.download.root),
            ("download.captions", parameters.download.captions),
            ("download.split", parameters.download.split),
            ("extract.weights", parameters.extract.weights),
            ("vocab.vectors", parameters.vocab.vectors),
            ("train.init_from", parameters.train.init_from),
            *(("evaluate.ensemble", folder) for folder in parameters.evaluate.ensemble),
        ]
        for name, value in paths:
            if value and not Path(value).is_absolute() and ".." in Path(value).parts:
                raise CaptionerError(
                    f"params.yaml: {name}={value}: queued and --temp runs work in another folder; give an absolute path"
                )
    return parameters
