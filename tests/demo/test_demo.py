"""``captioner demo`` in a real headless Chromium."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.chromium import MISSING, find_chromium, launch
from captioner.captioning import Captioner
from captioner.cli import main
from captioner.errors import CaptionerError
from tests.captioning.conftest import captioner, run  # noqa: F401

CHROMIUM = find_chromium()
pytest.importorskip("gradio", reason="Gradio is not installed: pip install '.[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from captioner.demo.app import HOST, rows, serve, title, words  # noqa: E402  needs Gradio


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def test_rows_and_heat_maps_are_the_captioners(run: dict[str, Path], captioner: Captioner) -> None:
    [result] = captioner.caption(run["files"] / "00.jpg", 3, 3, attention=True)
    assert rows(result) == [[row.text, f"{row.log_probability:.2f}"] for row in result.captions]
    found = words(result, (4, 4))
    assert [word for _, word in found] == list(result.captions[0].words)
    assert all(image.size == result.image.size for image, _ in found)
    assert any(not np.array_equal(np.asarray(image), np.asarray(result.image)) for image, _ in found)


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_an_image_is_captioned_and_nothing_leaves_the_machine(
    run: dict[str, Path], captioner: Captioner, tmp_path: Path
) -> None:
    port, other = free_port(), title(captioner) + " (again)"
    server = serve({title(captioner): captioner, other: captioner}, port)
    asked: list[str] = []
    try:
        with pytest.raises(CaptionerError, match=f"port {port} is taken"):
            serve({"x": captioner}, port)
        with playwright.sync_playwright() as running:
            browser = launch(running, CHROMIUM)
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.on("request", lambda request: asked.append(request.url))
            page.goto(f"http://{HOST}:{port}")
            path = run["files"] / "00.jpg"
            page.locator("input[type=file]").first.set_input_files(str(path))
            [result] = captioner.caption(path, 5, 5)
            page.locator("button.thumbnail-item").first.wait_for(timeout=60_000)
            page.screenshot(path=tmp_path / "page.png", full_page=True)
            shown = page.locator("body").inner_text()
            for caption in result.captions:
                assert caption.text in shown and f"{caption.log_probability:.2f}" in shown
            assert page.locator("button.thumbnail-item").count() >= len(result.captions[0].words)
            broken = tmp_path / "broken.jpg"
            broken.write_bytes(path.read_bytes()[:-2000])
            page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
            page.locator("input[type=file]").first.set_input_files(str(broken))
            page.get_by_text("This image cannot be captioned").first.wait_for(timeout=60_000)
            browser.close()
    finally:
        server.close()
    hosts = {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {HOST}


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    done = CliRunner().invoke(main, ["demo"])
    assert done.exit_code == 1 and done.stderr.startswith("Error: captioner demo needs Gradio")
    assert "pip install '.[demo]'" in done.stderr and len(done.stderr.splitlines()) == 1
