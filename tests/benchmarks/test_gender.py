"""The table of men and women."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.gender import main

MAN, WOMAN, DOG = ["A man runs ."] * 3 + ["Somebody runs ."], ["A girl sings ."] * 4, ["A dog runs ."] * 4
MIXED = ["A man and a woman walk ."] * 4


def test_counts_images_whose_references_agree(tmp_path: Path) -> None:
    references = [MAN, MAN, WOMAN, DOG, MIXED, MAN[2:]]  # one man's word of the last: too few
    said = ["a man runs", "a woman runs", "a person sings", "a man runs", "a man walks", "a man"]
    rows = [{"image_id": image, "caption": text} for image, texts in enumerate(references) for text in texts]
    (tmp_path / "c.json").write_text(json.dumps({"annotations": rows}))
    table = "image_id,caption\n" + "".join(f"{image},{text}\n" for image, text in enumerate(said))
    (tmp_path / "p.csv").write_text(table)
    done = CliRunner().invoke(main, [str(tmp_path / "p.csv"), str(tmp_path / "c.json")], catch_exceptions=False)
    assert done.stdout.splitlines()[2:] == [
        "| man | 2 | 1 (50%) | 1 (50%) | 0 (0%) | 0 (0%) |",
        "| woman | 1 | 0 (0%) | 0 (0%) | 1 (100%) | 0 (0%) |",
    ]
