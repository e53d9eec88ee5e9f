"""The page in a real headless Chromium, opened from disk."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qs

import pytest

from benchmarks.chromium import MISSING, find_chromium, launch
from captioner.report import render
from tests.report import making

CHROMIUM = find_chromium()
WRITTEN = 1_790_000_000  # 2026-09-21 14:13:20 UTC: when the page's file was written
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
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

    def open_page(data, width=1400, height=900, fragment="", **options):
        file = tmp_path / "index.html"
        file.write_text(render(data), encoding="utf-8")
        os.utime(file, (WRITTEN, WRITTEN))
        page = browser.new_page(viewport={"width": width, "height": height}, timezone_id="UTC", **options)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: (
                said.append(request.url) if not request.url.startswith(("file://" + str(file), "data:")) else None
            ),
        )
        page.goto(file.as_uri() + fragment)
        opened.append((page, said))
        return page

    yield open_page
    for page, said in opened:
        assert said == []
        page.close()


def shown(page) -> list[str]:
    """The captions of the cards in their order."""
    return [text.strip() for text in page.locator(".card .words").all_text_contents()]


def choices(page) -> dict[str, str]:
    """What the page keeps in its address."""
    return {name: values[0] for name, values in parse_qs(page.url.partition("#")[2]).items()}


def test_captions_are_text_whatever_they_say(show):
    page = show(making.data())
    assert page.title() == f"photos: {making.SCRIPT}"
    assert page.locator("h1").inner_text() == f"photos: {making.SCRIPT}"
    assert making.CAPTIONS[2] in shown(page)
    assert page.locator("img").count() == 3
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


def overlaid(page, corner: tuple[float, float]) -> list[int]:
    """Red, green, blue and opacity, 0..255, of the heat map of the first card at a place."""
    return page.evaluate(
        """([x, y]) => {
            const canvas = document.querySelector(".card canvas");
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
            copy.drawImage(canvas, 0, 0);
            return [...copy.getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data];
        }""",
        corner,
    )


def test_pointing_at_a_word_shows_where_the_decoder_looked(show):
    page = show(making.data())
    card = page.locator(".card").first
    assert card.locator(".heated").count() == 0
    for word, corner in enumerate([(0.05, 0.05), (0.95, 0.05), (0.05, 0.95)]):  # cells 0, 1, 2 of 2 x 2
        card.locator(".word").nth(word).hover()
        assert card.locator(".shot").get_attribute("data-word") == str(word)
        assert overlaid(page, corner) == pytest.approx([240, 249, 33, 0.65 * 255], abs=2)  # plasma's last colour
        assert overlaid(page, (1 - corner[0], 1 - corner[1]))[3] == 0  # nothing lies over the rest of the image
    page.mouse.move(0, 0)
    assert card.locator(".heated").count() == 0 and card.locator(".word.on").count() == 0


def test_keys_go_from_word_to_word(show):
    page = show(making.data())
    words = page.locator(".card").first.locator(".word")
    shot = page.locator(".card").first.locator(".shot")
    page.locator(".frame").first.focus()
    page.keyboard.press("Tab")
    for key, word in (("", 0), ("ArrowRight", 1), ("End", 2), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        if key:
            page.keyboard.press(key)
        assert shot.get_attribute("data-word") == str(word)
        assert words.nth(word).evaluate("word => word === document.activeElement")
    page.keyboard.press("Escape")
    assert page.locator(".heated").count() == 0


def test_a_tap_shows_a_word_and_a_second_hides_it(show):
    page = show(making.data(), width=390, has_touch=True, is_mobile=True)
    word = page.locator(".card").nth(1).locator(".word").nth(1)
    word.tap()
    assert page.locator(".card").nth(1).locator(".shot").get_attribute("data-word") == "1"
    word.tap()
    assert page.locator(".heated").count() == 0


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
        "Token accuracy on validation, percent",
        "CIDEr-D by beam size",
        "BLEU-4 by beam size",
        "Length of captions, share of each",
    ]
    assert page.locator(".chart").first.locator("circle").count() == 6


def test_a_word_without_attention_is_no_button(show):
    data = making.data()
    for caption in data["experiments"][0]["captions"]:
        caption["attention"] = None
    page = show(data)
    assert shown(page) == making.CAPTIONS and page.locator("button.word").count() == 0
    assert "no attention" in page.locator("#images").inner_text() and page.locator(".scale").count() == 0


def test_captions_without_spaces_are_shown_and_found(show):
    """Words are buttons of their own, with nothing between them; a search finds what begins anywhere."""
    data = making.data()
    captions, texts = data["experiments"][0]["captions"], ["一只狗在跑", "nike air帽子", "两只猫"]
    for caption, text, words in zip(captions, texts, ([*texts[0]], ["nike", "air", "帽", "子"], [*texts[2]])):
        cells = captions[1]["attention"] if text == texts[1] else None
        caption |= {"text": text, "words": words, "attention": cells}
    data["images"][2]["references"] = ["กำลังวิ่งบนหญ้า", "另一只狗"]
    page = show(data)
    assert shown(page) == texts and page.locator("button.word").all_text_contents() == ["nike", "air", "帽", "子"]
    assert [image.get_attribute("alt") for image in page.locator(".card img").all()] == texts
    assert page.locator(".words[role=group]").get_attribute("aria-label") == "Generated caption: nike air帽子"
    for sought, found in (("狗", [0, 2]), ("只狗在", [0]), ("nike 帽子", [1]), ("วิ่ง", [2]), ("ir", [])):
        page.get_by_label("Search").fill(sought)
        assert shown(page) == [texts[index] for index in found], sought


def test_twelve_images_come_first_and_more_on_demand(show):
    page = show(making.repeated(100, sample=80))
    assert page.locator("section h2").first.inner_text() == "Images"
    assert page.locator(".card").count() == page.locator(".card img").count() == 12
    page.get_by_role("button", name="Show 48 more of 80").click()
    assert page.locator(".card").count() == 60
    assert page.locator(".frame").nth(12).evaluate("frame => frame === document.activeElement")
    page.get_by_role("button", name="Show 20 more of 80").click()
    assert page.locator(".card").count() == 80 and not page.locator(".more").is_visible()
    last = page.locator(".card img").last
    assert last.evaluate("image => image.decode().then(() => image.naturalWidth)") == 60


def test_search_covers_the_images_outside_the_sample(show):
    data = making.repeated(9, sample=4)
    data["images"][7]["references"] = ["an unheard-of aardvark"]
    page = show(data)
    assert "4 of 9 images, sampled at random" in page.locator("#images").inner_text() and len(shown(page)) == 4
    page.get_by_label("Search").fill("aardvark")
    assert shown(page) == [making.CAPTIONS[1]] and page.locator(".card img").count() == 0
    assert page.locator("#count").inner_text() == "1 of 9 images match, 0 of them in the sample"
    page.get_by_label("Search").fill("cats")
    assert len(shown(page)) == 3 and page.locator(".card img").count() == 1
    page.locator(".frame").last.click()
    assert "text only" in page.locator(".viewer").inner_text() and choices(page)["image"] == "7"


def test_the_address_keeps_what_was_chosen(show):
    page = show(making.data())
    assert choices(page) == {}
    page.get_by_label("Search").fill("a dog")
    page.get_by_label("Order").select_option("worst")
    page.get_by_label("Score", exact=True).select_option("bleu_4")
    assert choices(page) == {"q": "a dog", "sort": "worst", "metric": "bleu_4"}
    page.locator(".frame").first.click()
    assert choices(page) == {"q": "a dog", "sort": "worst", "metric": "bleu_4", "image": "3"}
    again = show(making.data(), fragment="#" + page.url.partition("#")[2])
    assert shown(again) == [making.CAPTIONS[2], making.CAPTIONS[0]]
    assert (
        again.get_by_label("Search").input_value() == "a dog" and again.get_by_label("Order").input_value() == "worst"
    )
    assert again.locator("dialog[open]").count() == 1 and f"{making.SCRIPT}.jpg" in again.locator("dialog").inner_text()
    again.evaluate("location.hash = 'sort=novel'")
    playwright.expect(again.locator("dialog[open]")).to_have_count(0)
    assert shown(again) == [making.CAPTIONS[index] for index in (2, 1, 0)]


@pytest.mark.parametrize("fragment", ["#sort=nonsense&metric=__proto__&image=99", "#images", "#%", "#q="])
def test_an_address_of_something_else_shows_the_page_as_it_is(show, fragment):
    page = show(making.data(), fragment=fragment)
    assert shown(page) == making.CAPTIONS and page.locator("dialog[open]").count() == 0


@pytest.mark.parametrize("how", ["click", "Enter"])
def test_an_image_is_enlarged(show, how):
    page = show(making.data())
    frame = page.locator(".frame").nth(1)
    if how == "click":
        frame.click()
    else:
        frame.focus()
        page.keyboard.press("Enter")
    viewer = page.locator("dialog[open]")
    assert viewer.locator(".words").inner_text() == making.CAPTIONS[1] and choices(page) == {"image": "2"}
    assert viewer.locator("img").bounding_box()["width"] > 2 * frame.locator("img").bounding_box()["width"]
    assert viewer.locator(".references").first.locator("li").all_inner_texts() == [
        "reference 2",
        "a horse </script> & more",
    ]
    row = viewer.locator("tbody tr", has_text="CIDEr-D").inner_text().split("\t")
    assert row == ["CIDEr-D", "200.0"] and viewer.locator(".place").inner_text() == "2 of 3"
    viewer.locator(".word").first.click()
    assert viewer.locator(".heated").count() == 1 and page.locator(".card .heated").count() == 0
    page.keyboard.press("Escape")
    playwright.expect(page.locator("dialog[open]")).to_have_count(0)
    playwright.expect(page).to_have_url(re.compile("index.html$"))
    assert frame.evaluate("frame => frame === document.activeElement")


def test_enlarged_images_follow_one_another_and_back_closes_them(show):
    page = show(making.data())
    page.get_by_label("Order").select_option("best")
    page.locator(".frame").first.click()
    viewer = page.locator("dialog[open]")
    seen = [viewer.locator(".words").inner_text()]
    assert viewer.get_by_label("Previous image").is_disabled()
    page.keyboard.press("ArrowRight")
    seen.append(viewer.locator(".words").inner_text())
    viewer.get_by_label("Next image").click()
    seen.append(viewer.locator(".words").inner_text())
    assert seen == [making.CAPTIONS[index] for index in (1, 2, 0)] and viewer.get_by_label("Next image").is_disabled()
    page.go_back()
    playwright.expect(page.locator("dialog[open]")).to_have_count(0)
    assert choices(page) == {"sort": "best"} and len(shown(page)) == 3


def test_the_first_image_is_on_a_phones_first_screen(show):
    experiment = making.experiment()
    experiment["warnings"] = ["The reader of the scores must know this. " * 8]
    page = show(
        making.data(title="flickr8k: timm/tf_efficientnet_lite0 + gru, soft attention", experiments=[experiment]),
        width=390,
        height=844,
        has_touch=True,
        is_mobile=True,
    )
    box = page.locator(".card img").first.bounding_box()
    assert box["width"] > 350 and box["y"] + box["height"] < 844
    page.locator(".jumps a", has_text="Scores").tap()
    assert abs(page.locator("#scores").bounding_box()["y"]) < 2 and choices(page) == {}


def test_on_a_wide_screen_the_scores_stand_beside_the_images_and_the_curves_below(show):
    page = show(making.data())
    images, scores, curves = (page.locator(f"#{name}").bounding_box() for name in ("images", "scores", "curves"))
    assert scores["x"] > images["x"] + images["width"] and scores["y"] == images["y"]
    assert curves["y"] >= images["y"] + images["height"] and curves["x"] == images["x"]


def test_commit_and_date(show):
    page = show(making.data())
    said = "commit 0123456 of 2026-11-28 with uncommitted changes in params.yaml · page written 2026-09-21 14:13"
    assert page.locator(".origin").inner_text() == said
    data = beside()
    data["experiments"][1]["commit"] = None
    page = show(data)
    assert "commit unknown" in page.locator(".experiments li").nth(1).inner_text()
    assert "commit 0123456" in page.locator(".experiments li").nth(0).inner_text()


def test_a_warning_of_all_experiments_stands_once(show):
    data = beside()
    data["experiments"][1]["warnings"] = [*data["experiments"][0]["warnings"], "METEOR is absent."]
    assert show(data).locator(".notice").all_inner_texts() == ["Mind the <b>gap</b>.", "B: METEOR is absent."]


def test_without_javascript_the_page_says_so(browser, tmp_path):
    (tmp_path / "index.html").write_text(render(making.data()), encoding="utf-8")
    page = browser.new_page(java_script_enabled=False)
    page.goto((tmp_path / "index.html").as_uri())
    assert (
        "JavaScript is off" in page.locator("body").inner_text() and "Scores" not in page.locator("body").inner_text()
    )
    page.close()


def test_a_report_without_images_shows_the_text(show):
    page = show(making.repeated(3, sample=0))
    assert "without images" in page.locator("#images").inner_text()
    assert shown(page) == making.CAPTIONS and page.locator("img").count() == 0
