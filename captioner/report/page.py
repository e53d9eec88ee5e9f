"""One self-contained HTML page: style, script and data stand in it, and its policy forbids everything else.

The data lie in a ``<script type="application/json">`` block, from which ``read_page`` reads them again: a page is also
the file from which several experiments are put side by side. The script makes elements and sets their text, never
markup, so that a caption is only ever text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError
from captioner.metrics.diversity import DIVERSITY
from captioner.metrics.registry import percentages, titles
from captioner.report.heat import heat_settings

FORMAT_VERSION = 4  # 4: percentages
_FOLDER = Path(__file__).parent
_SCRIPTS = ("charts.js", "words.js", "fragment.js", "cards.js", "viewer.js", "gallery.js", "page.js")
_BLOCK = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.S)
# Within a script block only these could end it, begin a comment, or break a line of JavaScript.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render(data: dict[str, Any]) -> str:
    """The page; the same bytes for the same data.

    Args:
        data: ``title``; ``images``: every scored one, ``id``, ``name``, ``references``, and of the sample, which comes
            first, ``webp`` (base64), ``width``, ``height``; ``experiments``: what ``captioner.evaluation.page_data``
            gathers of each, with a caption for every image; ``pairs``: differences of two experiments by metric. Titles
            of the metrics and the colours of the attention maps are added.
    """
    style = (_FOLDER / "style.css").read_text(encoding="utf-8")
    script = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    text = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            **data,
            "titles": {"scores": titles(), "diversity": DIVERSITY},
            "percent": percentages(),
            "heat": heat_settings(),
        },
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    for sign, escaped in _ESCAPES.items():
        text = text.replace(sign, escaped)
    parts = {
        "TITLE": html.escape(data["title"]),
        "STYLE": style,
        "STYLE_HASH": _hash(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _hash(script),
        "DATA": text,
    }
    template = (_FOLDER / "index.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def read_page(page: str, name: str) -> dict[str, Any]:
    """The data of a page that ``render`` made.

    Args:
        name: of the page's file, for messages.

    Raises:
        CaptionerError: it is no such page, or one of another version.
    """
    found = _BLOCK.search(page)
    try:
        data = json.loads(found[1]) if found else None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise CaptionerError(f"{name}: no report; run the evaluate stage again")
    for key in ("titles", "percent", "heat"):  # those of the page that is made now count
        data.pop(key, None)
    if data.pop("format_version", None) != FORMAT_VERSION:
        raise CaptionerError(f"{name}: a report of another version of this program; run the evaluate stage again")
    return data


def _hash(text: str) -> str:
    """For the content security policy, which lets only this style and this script in."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
