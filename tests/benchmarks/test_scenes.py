"""What captions say of left and right, judged by the scenes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.scenes import OPPOSITE, main, sides, statement
from captioner.images import scenes


@pytest.mark.parametrize(
    "caption, left, right",
    [
        ("a dog to the left of two cats on the grass .", "dog", "cat"),
        ("a dog to the right of two cats on the grass .", "cat", "dog"),
        ("two bunnies are on the right of a lady in the snow .", "woman", "rabbit"),
        ("on the street there is a man left of a bike .", "man", "bicycle"),
        ("A dog right of", None, "dog"),
        ("left of a dog", None, "dog"),
    ],
)
def test_statements(caption: str, left: str | None, right: str | None) -> None:
    assert statement(caption) == (left, right)


@pytest.mark.parametrize("caption", ["a dog near a cat .", "a dog above a cat on the left", "a leftover of a cat", ""])
def test_no_statement(caption: str) -> None:
    assert statement(caption) is None


def every(seed: int, relation: str, count: int) -> list[int]:
    return [index for index in range(1000) if scenes.describe(seed, index).relation == relation][:count]


def test_the_grammars_own_captions_are_true_and_turned_ones_false() -> None:
    indices = {index + 7: index for relation in ("left", "right", "above", "near") for index in every(1, relation, 20)}
    told = {
        image: [text for text in scenes.captions(scenes.describe(1, index)) if statement(text)]
        for image, index in indices.items()
    }
    assert sum(map(bool, told.values())) == 40  # every left and right scene has such a caption, no other one has
    for number in range(2):
        results = [
            {"image_id": image, "caption": texts[number] if len(texts) > number else ""}
            for image, texts in told.items()
        ]
        counts = sides(1, indices, results)
        assert counts["scenes"] == 40 and counts["true"] == counts["stated"] == counts["everywhere"] > 30
        turned = [
            {**row, "caption": re.sub("left|right", lambda side: OPPOSITE[side[0]], row["caption"])} for row in results
        ]
        assert sides(1, indices, turned) == {**counts, "true": 0}


def test_other_kinds_and_other_scenes_do_not_count_as_stated() -> None:
    left, above = every(1, "left", 1)[0], every(1, "above", 1)[0]
    scene = scenes.describe(1, left)
    other = next(kind.name for kind in scenes.KINDS if kind.name not in (scene.first.kind, scene.second.kind))
    results = [
        {"image_id": 1, "caption": f"a {scene.first.kind} left of a {other}"},
        {"image_id": 2, "caption": "a dog left of a cat"},
    ]
    assert sides(1, {1: left, 2: above}, results) == {"everywhere": 2, "scenes": 1}


def test_the_command_tells_the_share(tmp_path: Path) -> None:
    indices = [*every(3, "left", 3), *every(3, "right", 1), *every(3, "below", 2)]
    (tmp_path / "data" / "scenes").mkdir(parents=True)
    (tmp_path / "results" / "evaluate").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("download:\n  seed: 3\n")
    images = [{"id": index, "split": "test", "file_name": f"scene-{index:06d}.jpg"} for index in indices]
    (tmp_path / "data" / "scenes" / "captions.json").write_text(json.dumps({"images": images}))
    always_left = []
    for index in indices:
        scene = scenes.describe(3, index)
        always_left.append(
            {"image_id": index, "caption": f"a {scene.first.kind} to the left of a {scene.second.kind} on the grass ."}
        )
    (tmp_path / "results" / "evaluate" / "captions.json").write_text(json.dumps(always_left))
    (tmp_path / "results" / "evaluate" / "metrics.json").write_text(json.dumps({"bleu_4": 50.0}))
    done = CliRunner().invoke(main, ["--root", str(tmp_path)], catch_exceptions=False)
    both, bleu, side = json.loads(done.output.splitlines()[-1])
    assert both["ratio"] == 1 and both["met"] and bleu["ratio"] == 50 and not bleu["met"]
    assert (side["ratio"], side["captions"], side["chance"], side["met"]) == (0.75, 4, 0.5, None)
    assert "in all 6 captions say" in done.output and "always the more frequent order 0.750" in done.output
