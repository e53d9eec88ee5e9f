"""Stage ``train``: an attention decoder on cached features into models/ and results/train/.

With several GPUs, or ``runtime.processes``, it starts one process for each; it also runs under ``torchrun``.
"""

from __future__ import annotations

import click

from captioner import paths
from captioner.launch import launch, launched_by_torchrun, process_count
from captioner.training import read_inputs, train
from stages.common import read_parameters


@click.command(help=__doc__)
def main() -> None:
    parameters = read_parameters()
    dataset = parameters.dataset
    files = {
        "features": paths.features(dataset, parameters.encoder),
        "captions": paths.captions(dataset),
        "vocab": paths.vocab(dataset),
        "embeddings": paths.embeddings(dataset),
        "models": paths.MODELS,
    }
    processes = process_count(parameters.runtime)
    if processes > 1 and not launched_by_torchrun():
        read_inputs(parameters, **files)  # a mistake is shown once, not by every process
        launch("stages.train", processes)
    else:
        train(parameters, **files, results=paths.TRAIN_RESULTS)


if __name__ == "__main__":
    main()
