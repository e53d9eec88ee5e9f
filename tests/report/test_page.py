"""The page as a file: what it carries, what it forbids, and that its data read back."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from captioner.comparison.experiments import in_order
from captioner.errors import CaptionerError
from captioner.metrics import score
from captioner.report import read_page, render
from captioner.report.beside import Source, side_by_side
from tests.report import making


class _Tags(HTMLParser):
    """Elements as a browser finds them: the text of a script ends at the first </script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_data_read_back_and_no_text_becomes_markup():
    data = making.data()
    data["images"][0]["references"][0] = "line\u2028break <!-- comment --> {{DATA}} &amp;"
    page = render(data)
    assert read_page(page, "page") == data
    tags = _Tags(page).found
    assert [tag for tag, _ in tags].count("script") == 2 and "img" not in [tag for tag, _ in tags]
    assert "onerror=" not in re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S).replace(
        "onerror=&quot;", ""
    )
    assert render(data) == page


def test_without_javascript_the_page_says_why_it_is_empty():
    """Outside noscript and the two scripts there is no text but the headings that the script fills."""
    page = render(making.data())
    [reason] = re.findall("<noscript>(.*?)</noscript>", page, re.S)
    assert "JavaScript is off" in reason and "fetches nothing" in reason
    assert '<main id="main" hidden>' in page


def test_the_policy_lets_in_only_what_the_page_carries():
    page = render(making.data())
    tags = _Tags(page).found
    [policy] = [
        attributes["content"] for tag, attributes in tags if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    for name, text in (("script-src", script), ("style-src", style)):
        assert f"{name} 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert not [
        attributes
        for _, attributes in tags
        if (attributes.get("src") or attributes.get("href") or "data:").startswith(("http", "//", "/"))
    ]
    assert "innerHTML" not in page and "document.write" not in page and "insertAdjacentHTML" not in page


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html></html>",
        '<script type="application/json" id="data">{</script>',
        '<script type="application/json" id="data">[1]</script>',
    ],
)
def test_another_file_is_no_report(text):
    with pytest.raises(CaptionerError, match="x.html: no report; run"):
        read_page(text, "x.html")


def test_a_page_of_another_version_is_refused():
    with pytest.raises(CaptionerError, match="^x.html: a report of another version"):
        read_page(render(making.data()).replace('"format_version":4', '"format_version":3'), "x.html")


REFERENCES = {
    number: [text, "a red car stands on a road"]
    for number, text in enumerate(["a dog runs fast", "two cats sleep on a bed", "a man rides a horse"], 1)
}


def source(name: str, captions: list[str], order: tuple[str, ...] | None = None, **changes) -> Source:
    scores = score(REFERENCES, dict(enumerate(captions, 1)), meteor=False)
    page = making.data(
        experiments=[
            making.experiment(captions, [scores.per_image[number]["cider_d"] for number in (1, 2, 3)]) | changes
        ]
    )
    return Source(name, page, in_order(scores.statistics, order) if order else scores.statistics)


GOOD, BAD = (
    ["a dog runs fast", "two cats sleep on a bed", "a man rides a horse"],
    ["a dog runs", "cats", "a man rides a horse"],
)


def test_side_by_side_pairs_captions_by_image_and_differences_by_score():
    second = source("b", BAD, order=("3", "1", "2"))
    page = second.page
    page["images"].reverse()
    page["experiments"][0]["captions"].reverse()
    del page["images"][2]["webp"]
    beside = side_by_side([source("a", GOOD), second])
    assert [image["id"] for image in beside["images"]] == [2, 3, 1]
    assert [
        [" ".join(caption["words"]) for caption in experiment["captions"]] for experiment in beside["experiments"]
    ] == [[*GOOD[1:], GOOD[0]], [*BAD[1:], BAD[0]]]
    # the first image is shown on one page alone: only its text is on both
    assert [set(image) for image in beside["images"]] == [
        {"id", "name", "references", "webp", "width", "height"}
    ] * 2 + [{"id", "name", "references"}]
    for experiment in beside["experiments"]:
        assert [caption["attention"] is None for caption in experiment["captions"]] == [False, False, True]
    assert [experiment["name"].split(":")[0] for experiment in beside["experiments"]] == ["a", "b"]
    [pair] = beside["pairs"]
    found = pair["differences"]["cider_d"]
    means = [
        score(REFERENCES, dict(enumerate(captions, 1)), meteor=False).overall["cider_d"] for captions in (GOOD, BAD)
    ]
    assert (
        found["value"] == pytest.approx(100 * (means[1] - means[0]), abs=1e-4)
        and found["low"] <= found["value"] <= found["high"]
        and 0 < found["p"] <= 1
    )
    assert read_page(render(beside), "beside") == beside


def test_one_source_is_its_own_page_and_twins_do_not_differ():
    alone = source("a", GOOD)
    assert side_by_side([alone]) == alone.page
    [pair] = side_by_side([alone, source("b", GOOD)])["pairs"]
    assert all(found["value"] == 0 and found["p"] == 1 for found in pair["differences"].values())


def test_what_cannot_stand_side_by_side_is_refused():
    other = source("b", BAD, signature={**making.experiment()["signature"], "fingerprint": "g"})
    with pytest.raises(CaptionerError, match="b: other images or references, as a has"):
        side_by_side([source("a", GOOD), other])
    ours, theirs = source("a", GOOD), source("b", BAD)
    for page, shown in ((ours.page, (1, 2)), (theirs.page, (3,))):
        page["images"] = [
            {name: value for name, value in image.items() if name != "webp" or image["id"] in shown}
            for image in page["images"]
        ]
    with pytest.raises(CaptionerError, match="report_images"):
        side_by_side([ours, theirs])
    with pytest.raises(CaptionerError, match="7 experiments"):
        side_by_side([source(str(number), GOOD) for number in range(7)])
