"""The page in a real headless Chromium, opened from disk."""

from __future__ import annotations

import re
import time

import pytest

from benchmarks.chromium import MISSING, find_chromium, launch
from captioner.report import render
from tests.report import making

CHROMIUM = find_chromium()
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        found = launch(running, CHROMIUM)
        yield found
        found.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of some data; at the end no error was logged and nothing was asked of a network."""
    opened = []

    def open_page(data, width=1400, **options):
        file = tmp_path / "index.html"
        file.write_text(render(data), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: (
                said.append(request.url) if not request.url.startswith(("file://" + str(file), "data:")) else None
            ),
        )
        page.goto(file.as_uri())
        opened.append((page, said))
        return page

    yield open_page
    for page, said in opened:
        assert said == []
        page.close()


def shown(page) -> list[str]:
    """The captions of the visible cards in their order; cards off the screen are not laid out, so it is not what
    innerText has."""
    return page.locator(".card:not([hidden]) .words").all_text_contents()


def test_captions_are_text_whatever_they_say(show):
    page = show(making.data())
    assert page.title() == f"photos: {making.SCRIPT}"
    assert page.locator("h1").inner_text() == f"photos: {making.SCRIPT}"
    assert making.CAPTIONS[2] in shown(page)
    assert page.locator(".card img").count() == 3 and page.locator("img").count() == 3
    assert page.locator(".notice").inner_text() == "Mind the <b>gap</b>."
    assert [image.get_attribute("alt") for image in page.locator(".card img").all()] == making.CAPTIONS


def test_sorts(show):
    page = show(making.data())
    one, two, three = making.CAPTIONS
    expected = {
        "random": [one, two, three],
        "best": [two, three, one],
        "worst": [one, three, two],
        "novel": [three, two, one],
    }
    expected["longest"] = sorted(making.CAPTIONS, key=lambda caption: -len(caption.split()))
    assert {option.get_attribute("value") for option in page.locator("#sort option").all()} == set(expected)
    for order, captions in expected.items():
        page.get_by_label("Order").select_option(order)
        assert shown(page) == captions, order
    page.get_by_label("Order").select_option("best")
    page.get_by_label("Score", exact=True).select_option("bleu_4")
    assert shown(page) == [one, three, two]
    assert page.locator(".figure").first.text_content() == "BLEU-4 87.5"


def test_searches_words_of_captions_and_references(show):
    page = show(making.data())
    for sought, found in (
        ("dog", [0, 2]),
        ("DOG runs", [0]),
        ("horse", [0, 1, 2]),
        ("og", []),
        ("reference 2", [1]),
        ("", [0, 1, 2]),
    ):
        page.get_by_label("Search").fill(sought)
        assert shown(page) == [making.CAPTIONS[index] for index in found], sought
        assert page.locator("#count").inner_text() == (f"{len(found)} of 3 images match" if sought else "")


def light(page, card: int, corner: tuple[float, float]) -> float:
    """How much of the image the overlay of a card leaves visible at a place, 0..1."""
    return page.evaluate(
        """([card, x, y]) => {
            const canvas = document.querySelectorAll(".card")[card].querySelector("canvas");
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true
            }); copy.drawImage(canvas, 0, 0);
            const at = copy.getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1);
            return 1 - at.data[3] / 255;
        }""",
        [card, *corner],
    )


def test_pointing_at_a_word_shows_where_the_decoder_looked(show):
    page = show(making.data())
    card = page.locator(".card").first
    assert card.locator(".shaded").count() == 0
    for word, corner in enumerate([(0.05, 0.05), (0.95, 0.05), (0.05, 0.95)]):  # cells 0, 1, 2 of 2 x 2
        card.locator(".word").nth(word).hover()
        assert card.locator(".shot").get_attribute("data-word") == str(word)
        assert light(page, 0, corner) > 0.95 and light(page, 0, (1 - corner[0], 1 - corner[1])) < 0.3
    page.mouse.move(0, 0)
    assert card.locator(".shaded").count() == 0 and card.locator(".word.on").count() == 0


def test_keys_go_from_word_to_word(show):
    page = show(making.data())
    words = page.locator(".card").first.locator(".word")
    shot = page.locator(".card").first.locator(".shot")
    page.locator("#metric").focus()
    page.keyboard.press("Tab")
    for key, word in (("", 0), ("ArrowRight", 1), ("End", 2), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        if key:
            page.keyboard.press(key)
        assert shot.get_attribute("data-word") == str(word)
        assert words.nth(word).evaluate("word => word === document.activeElement")
    page.keyboard.press("Escape")
    assert page.locator(".shaded").count() == 0


def test_a_tap_shows_a_word_and_a_second_hides_it(show):
    page = show(making.data(), width=390, has_touch=True, is_mobile=True)
    word = page.locator(".card").nth(1).locator(".word").nth(1)
    word.tap()
    assert page.locator(".card").nth(1).locator(".shot").get_attribute("data-word") == "1"
    word.tap()
    assert page.locator(".shaded").count() == 0


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_screen_and_can_be_read(show, width, scheme):
    page = show(beside(), width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
    )
    assert (sum(ink) < sum(paper)) == (scheme == "light")
    assert contrast(ink, paper) > 7
    for image in page.locator("svg[role=img]").all():
        assert len(image.get_attribute("aria-label")) > 20
    assert all(page.locator(f"label[for={name}]").count() == 1 for name in ("search", "sort", "metric"))


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.1's contrast ratio of two colours."""

    def luminance(colour):
        linear = [
            value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4
            for value in colour[:3]
        ]
        return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear))

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def beside() -> dict:
    other = making.experiment(["a dog runs", "a bird", f"a {making.SCRIPT} dog"], [50.0, 10.0, 70.0])
    pair = {
        "first": 0,
        "second": 1,
        "differences": {"cider_d": {"value": -50.0, "low": -90.0, "high": -10.0, "p": 0.012}},
    }
    return making.data(experiments=[making.experiment(), other], pairs=[pair])


def test_side_by_side_begins_with_the_largest_difference(show):
    page = show(beside())
    assert page.get_by_label("Order").input_value() == "differ"
    assert shown(page) == [
        making.CAPTIONS[1],
        "a bird",
        making.CAPTIONS[2],
        making.CAPTIONS[2],
        making.CAPTIONS[0],
        making.CAPTIONS[0],
    ]
    first = page.locator(".card").first
    assert first.locator(".chip").all_text_contents() == ["A", "B"]
    first.locator(".words").nth(1).locator(".word").nth(1).hover()
    assert first.locator(".word.on").all_text_contents() == ["bird"]
    row = page.get_by_role("region", name="Differences").locator("tbody tr").first.inner_text().split("\t")
    assert row == ["B − A, CIDEr-D", "−50.00", "−90.00 to −10.00", "0.012"]


def test_curves_are_drawn(show):
    page = show(making.data())
    titles = page.locator("figcaption").all_inner_texts()
    assert titles == [
        "Cross entropy",
        "Token accuracy on validation",
        "CIDEr-D by beam size",
        "BLEU-4 by beam size",
        "Length of captions, share of each",
    ]
    assert page.locator(".chart").first.locator("circle").count() == 6


def test_500_images_load_only_where_they_are_seen(show):
    data = making.data()
    images = [{**data["images"][index % 3], "id": index} for index in range(500)]
    captions = [data["experiments"][0]["captions"][index % 3] for index in range(500)]
    page = show(making.data(images=images, total=500, experiments=[{**data["experiments"][0], "captions": captions}]))
    page.locator(".card img[src]").first.wait_for()
    assert 0 < page.locator(".card img[src]").count() < 200
    begin = time.monotonic()
    page.get_by_label("Order").select_option("worst")
    assert len(shown(page)) == 500 and time.monotonic() - begin < 10
    page.locator(".card").last.scroll_into_view_if_needed()
    last = page.locator(".card img").last
    playwright.expect(last).to_have_attribute("src", re.compile("^data:image/jpeg"))
    assert last.evaluate("image => image.decode().then(() => image.naturalWidth)") == 60


def test_a_report_without_images_says_so(show):
    page = show(making.data(images=[], experiments=[{**making.experiment(), "captions": []}]))
    assert "without images" in page.locator("#images").inner_text() and page.locator("#sort").count() == 0
