"""The reward of self-critical training: its part of a step, and against pycocoevalcap on the same tokens.

    python -m benchmarks.reward [--threads N] [--repeats R]

16 images of 49x2048 features, 5 sampled captions of at most 20 words and 5 references each, a vocabulary of 9,500
words, 512 hidden units. Document frequencies are those of as many captions as COCO's training split has, drawn by
Zipf's law. The reward's part of the step is given as a ratio of rates: 5 means a fifth of the time.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass

import click
import numpy as np
import torch

from benchmarks import coco
from benchmarks.loops import training_step
from benchmarks.report import measure, print_results, result
from captioner.batches import CaptionTable
from captioner.device import prepare_device
from captioner.metrics.reward import CaptionReward
from captioner.parameters import TrainParameters
from captioner.training.data import GlobalBatch
from captioner.training.distributed import Group
from captioner.training.objectives import SelfCritical
from captioner.training.objectives.sampling import sample_captions
from captioner.training.phases import Learner, Phase
from captioner.vocabulary.vocabulary import END, PAD, START

STEP_TARGET = 5.0


@dataclass(frozen=True)
class Sizes:
    """What the issue of the benchmark fixes."""

    images: int = 16
    samples: int = 5
    references: int = 5
    positions: int = 49
    channels: int = 2048
    vocabulary: int = 9500
    hidden: int = 512
    longest: int = 20
    documents: int = 82_783


def make_table(sizes: Sizes) -> CaptionTable:
    """Training captions of 6 to 15 words, the same number for every image; the k-th word's frequency is proportional
    to 1 / k."""
    generator = np.random.default_rng(0)
    captions = sizes.documents * sizes.references
    passed = np.cumsum(1 / np.arange(1, sizes.vocabulary - 3))
    words = 4 + np.searchsorted(passed, generator.random((captions, 15)) * passed[-1])
    lengths = generator.integers(6, 16, captions)
    tokens = np.full((captions + 1, 17), PAD, dtype=np.int64)
    tokens[:-1, 0], tokens[:-1, 1:16] = START, np.where(np.arange(15) < lengths[:, None], words, PAD)
    tokens[np.arange(captions), lengths + 1] = END
    return CaptionTable(np.arange(sizes.documents), tokens, np.repeat(np.arange(sizes.documents), sizes.references))


def run(sizes: Sizes, device: torch.device, repeats: int) -> list[dict]:
    """Measure the step, the reward alone and pycocoevalcap in turn."""
    table = make_table(sizes)
    start = time.perf_counter()
    reward = CaptionReward(table)
    facts = {
        "threads": torch.get_num_threads(),
        "device": str(device),
        "documents": sizes.documents,
        "preparation_seconds": round(time.perf_counter() - start, 1),
        "megabytes": round((reward.frequencies.numbers.nbytes + reward.frequencies.counts.nbytes) / 1e6),
    }

    # learning rates of 0, which ``Learner`` sets, keep the captions as long as they are
    options = TrainParameters(hidden_size=sizes.hidden, scst_samples=sizes.samples, optimizer="sgd")
    shapes = coco.Sizes(
        positions=sizes.positions, channels=sizes.channels, vocabulary=sizes.vocabulary, hidden=sizes.hidden
    )
    decoder = coco.make_decoder(shapes, options, device)
    decoder.vocabulary.bias.data[END] = np.log(sizes.vocabulary / 10)  # captions of about ten words
    objective = SelfCritical(decoder, options, reward, sizes.longest)
    phase = Phase("self-critical", objective, 1, (0.0, 0.0), "scst_learning_rate", "val_cider_d", (), 0)
    learner = Learner(phase, decoder, options, Group(device=device))
    features = torch.rand(sizes.images, sizes.positions, sizes.channels).half().to(device)
    references = table.tokens[: sizes.images * sizes.references].reshape(sizes.images, sizes.references, -1)
    truth = torch.from_numpy(references)
    counts = GlobalBatch(int((truth[..., 1:] != PAD).sum()), sizes.images * sizes.references, sizes.images)
    captions = sample_captions(decoder.eval(), features, sizes.samples, sizes.longest).cpu().numpy()
    count = sizes.images * sizes.samples
    texts, truths = ([[_text(row) for row in group] for group in groups] for groups in (captions, references))

    def step() -> int:
        training_step(learner, options, features, truth, counts).item()
        return count

    def ours() -> int:
        reward(captions, references)
        return count

    def theirs() -> int:
        from pycocoevalcap.cider.cider_scorer import CiderScorer  # absent where only extraction and training run

        scorer = CiderScorer()
        for group, truth in zip(texts, truths):
            for one in group:
                scorer += (one, truth)
        scorer.compute_score()
        return count

    steps = {"step": step, "ours": ours} | ({"theirs": theirs} if importlib.util.find_spec("pycocoevalcap") else {})
    rates = measure(steps, repeats)
    rows = [result("reward / whole step", rates["ours"], rates["step"], STEP_TARGET, "captions/s", **facts)]
    if "theirs" in rates:
        rows.append(
            result("reward / pycocoevalcap's CiderScorer", rates["ours"], rates["theirs"], None, "captions/s", **facts)
        )
    return rows


def _text(row: np.ndarray) -> str:
    return " ".join(str(token) for token in row[1:].tolist() if token != PAD)


@click.command(help=__doc__)
@click.option("--threads", default=0, help="threads of arithmetic; 0: all cores")
@click.option("--repeats", default=7, help="rounds")
@click.option("--device", default="cpu")
@click.option("--small", is_flag=True, help="tiny sizes, to try the benchmark itself")
def main(threads: int, repeats: int, device: str, small: bool) -> None:
    sizes = Sizes(4, 2, 3, 9, 32, 50, 16, 6, 100) if small else Sizes()
    print_results(run(sizes, prepare_device(device, threads), repeats))


if __name__ == "__main__":
    main()
