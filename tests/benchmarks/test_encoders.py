"""The table of encoders."""

from __future__ import annotations

from click.testing import CliRunner

from benchmarks.encoders import main


def test_the_table_has_what_the_papers_and_arithmetic_say() -> None:
    arguments = ["--encoders", "squeezenet1_1,timm/tf_efficientnet_lite0:last_stage", "--count", "96", "--seconds", "0"]
    done = CliRunner().invoke(main, [*arguments, "--device", "cpu", "--precision", "fp32"], catch_exceptions=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:4]]
    # 49 positions of 512 channels, 2 bytes each, and 123,287 images; Iandola et al. 2016: 13 x 13 after fire9
    assert rows[0][:7] == ["`squeezenet1_1`", "224", "512", "13x13", "7x7", "50", "6.2"]
    assert rows[1][:7] == ["`timm/tf_efficientnet_lite0, last_stage`", "224", "320", "7x7", "7x7", "31", "3.9"]
    assert all(int(row[7]) > 0 for row in rows)
