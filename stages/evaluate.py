"""Stage ``evaluate``: beam search and scores of the trained model into results/evaluate/, and the report."""

from __future__ import annotations

import click

from captioner import paths
from captioner.evaluation import evaluate
from stages.common import read_parameters


@click.command(help=__doc__)
def main() -> None:
    parameters = read_parameters()
    dataset = parameters.dataset
    evaluate(
        parameters,
        models=paths.MODELS,
        features=paths.features(dataset, parameters.encoder),
        captions=paths.captions(dataset),
        images=paths.images(dataset),
        results=paths.EVALUATE_RESULTS,
        report=paths.REPORT,
        history=paths.HISTORY,
    )


if __name__ == "__main__":
    main()
