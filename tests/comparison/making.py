"""Statistics of imagined systems, and a small project under a real git and DVC whose experiments are such systems."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from captioner.metrics import MetricValues, bleu, meteor_statistics
from captioner.metrics.statistics import Statistics, make_statistics
from tests.data import ROOT
from tests.pipeline.workspace import Workspace


def system(images: int, quality: float, seed: int, hardness: np.ndarray | None = None) -> Statistics:
    """A system's captions, drawn: of ten words ``quality`` are right on average, more or fewer as each image is
    ``hard``.

    Args:
        hardness: (images,) subtracted from the quality; the same for two systems makes them correlated, as real ones
            are.
    """
    generator = np.random.default_rng(seed)
    share = np.clip(quality - (0 if hardness is None else hardness), 0.02, 0.98)
    length = generator.integers(8, 13, images)
    right = generator.binomial(length, share)
    chunks = np.minimum(right, 1 + generator.poisson(2, images))
    counts, lines = [], []
    for words, correct, parts in zip(length.tolist(), right.tolist(), chunks.tolist(), strict=True):
        guess = [words - n for n in range(4)]
        counts.append(
            {
                "guess": guess,
                "correct": [max(0, min(g, correct - 2 * n)) for n, g in enumerate(guess)],
                "testlen": words,
                "reflen": [10],
            }
        )
        lines.append([words, 10, 3, 3, correct, min(correct, 10), *[0] * 14, parts, correct, min(correct, 10)])
    cider = np.clip(5 * right / length + generator.normal(0, 0.5, images), 0, 10)
    values = {
        "bleu_1": MetricValues(0, [], bleu.statistics(counts)),
        "meteor": MetricValues(0, [], meteor_statistics.statistics(lines)),
        "rouge_l": MetricValues(0, right / length),
        "cider_d": MetricValues(0, cider),
    }
    return make_statistics(range(images), values)


_STAGES = """\
import hashlib, json, pathlib, sys, zlib
import yaml
sys.path.insert(0, {root!r})
from tests.comparison.making import system
parameters = yaml.safe_load(open("params.yaml"))
if sys.argv[1] == "train":
    pathlib.Path("models").write_text(json.dumps(parameters))
else:
    quality = {{"gru": 0.7, "lstm": 0.5}}[parameters["decoder"]]
    split = parameters["evaluate"]["split"]
    folder = pathlib.Path("results/evaluate")
    folder.mkdir(parents=True, exist_ok=True)
    statistics = system(200, quality, parameters["seed"])
    (folder / "statistics.json").write_text(statistics.to_json())
    signature = {{"tool": "pycocoevalcap", "version": "1.2", "tokenizer": "PTB", "meteor": "METEOR 1.5",
                 "java": "17", "images": 200, "references": 1000,
                 "fingerprint": hashlib.sha256(split.encode()).hexdigest(), "split": split, "beam": 3}}
    (folder / "signature.json").write_text(json.dumps(signature))
    (folder / "metrics.json").write_text(json.dumps(statistics.overall()))
"""
_DVC = """\
stages:
  train:
    cmd: python stages.py train
    deps: [code.txt]
    params: [encoder, decoder, attention, seed, train]
    outs: [models]
  evaluate:
    cmd: python stages.py evaluate
    deps: [models]
    params: [encoder, evaluate]
    metrics:
      - results/evaluate/metrics.json: {cache: false}
    plots:
      - results/evaluate/signature.json: {cache: false}
      - results/evaluate/statistics.json: {cache: false}
"""
_PARAMETERS = """\
encoder: squeezenet1_1
decoder: gru
attention: soft
seed: 1
train: {epochs: 3}
evaluate: {split: test}
"""


def project(folder: Path) -> Workspace:
    """A repository in which the pipeline, imagined systems in the place of real ones, has run once and is committed on
    ``main``."""
    folder.mkdir(parents=True)
    files = {
        "stages.py": _STAGES.format(root=str(ROOT)),
        "dvc.yaml": _DVC,
        "params.yaml": _PARAMETERS,
        "code.txt": "one\n",
    }
    files |= {".gitignore": "/models\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    workspace = Workspace(folder)
    workspace.run("git", "init", "-q", "-b", "main")
    workspace.run("git", "config", "user.email", "test@example.org")
    workspace.run("git", "config", "user.name", "test")
    workspace.dvc("init", "-q")
    workspace.dvc("config", "core.autostage", "true")
    workspace.dvc("repro", "-q")
    workspace.commit("reference run")
    return workspace
