"""What every stage does first: read and check params.yaml."""

from __future__ import annotations

from pathlib import Path

from captioner.errors import CaptionerError
from captioner.parameters import Parameters, load_parameters


def read_parameters() -> Parameters:
    """params.yaml of the current folder, checked.

    DVC runs queued and ``--temp`` experiments in a copy of the repository elsewhere, where a relative path that leaves
    the repository points to nothing; it is refused there with the remedy.
    """
    parameters = load_parameters()
    here = Path.cwd()
    if "/.dvc/tmp/exps/" in f"{here.as_posix()}/":
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
