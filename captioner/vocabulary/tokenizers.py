"""How a caption becomes tokens, and how tokens become a caption again: the values of ``vocab.tokenizer``.

* ``english``: Penn Treebank tokens (``captioner.vocabulary.tokenizer``), which published scores are computed on.
* ``words``: the words of Unicode Standard Annex 29, section 4, for languages that put spaces between words.
* ``characters``: letters of scripts written without spaces, one grapheme cluster (UAX 29, section 3) each; words of
  other scripts, and numbers, stay whole. For Chinese, Japanese and Thai.

Punctuation and symbols are left out, and letters are lower case. Splitting a joined caption gives its tokens again, so
generated captions are scored on the tokens that the model chose. The package ``regex`` finds the boundaries; joining
does without it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from captioner.errors import CaptionerError
from captioner.vocabulary.tokenizer import tokenize as penn_treebank

# Letters of scripts written without spaces between words, by Unicode block
_NO_SPACES = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf"  # Tai Le, New Tai Lue, Tai Tham
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese
    "\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # kana, Bopomofo
    "\ua000-\ua4cf"  # Yi
    "\U00020000-\U0003fffd"  # rarer Chinese characters
)
_UNSPACED = re.compile(f"[{_NO_SPACES}]")
# Variation selectors and joiners belong to the letter before them
_UNSPACED_RUN = re.compile(f"([{_NO_SPACES}](?:[{_NO_SPACES}\ufe00-\ufe0f\u200c\u200d\U000e0100-\U000e01ef])*)")


@dataclass(frozen=True)
class Tokenizer:
    """One value of ``vocab.tokenizer``.

    Attributes:
        name: the value.
        tokenize: a caption as written -> its tokens. Raises CaptionerError where a package is missing.
        join: tokens -> the caption for people.
        english: whether scores are those of English captions: PTBTokenizer's tokens, METEOR and SPICE included.
    """

    name: str
    tokenize: Callable[[str], list[str]]
    join: Callable[[Sequence[str]], str]
    english: bool = False


def unspaced_letters(caption: str) -> int:
    """How many letters of the caption are of scripts written without spaces."""
    return len(_UNSPACED.findall(caption))


@cache
def _regex() -> Any:
    try:
        import regex  # type: ignore[import-untyped]
    except ImportError as error:
        raise CaptionerError(
            "vocab.tokenizer: words and characters need the package regex, which is not installed here; pip install "
            "regex"
        ) from error
    return regex


@cache
def _patterns() -> tuple[Any, ...]:
    """Word boundaries, grapheme clusters, a token in a segment, and what is invisible."""
    regex = _regex()
    # (?w): \b is UAX 29's boundary; (?V1) splits at matches without text and has set differences.
    # A token begins with a letter or digit and ends with one or its marks: damaged text has segments like "a:".
    token = r"[\p{L}\p{N}](?:.*[\p{L}\p{N}\p{M}])?"
    sources = (r"(?V1w)\b", r"\X", f"(?s){token}", r"(?V1)[\p{Cf}--[\u200c\u200d]]")
    return tuple(regex.compile(source) for source in sources)


def _normalised(caption: str) -> str:
    """NFC in lower case, with one apostrophe, without invisible characters other than the joiners of letters."""
    *_, invisible = _patterns()
    # Zero-width spaces separate words; surrogates are damaged text; UAX 29 takes an underscore for a letter
    text = re.sub("[\u200b\ud800-\udfff_]", " ", caption).replace("\u2019", "'")
    return unicodedata.normalize("NFC", invisible.sub("", text).lower())


def _words(text: str) -> list[str]:
    boundary, _, token, _ = _patterns()
    return [found[0] for segment in boundary.split(text) if (found := token.search(segment))]


def words(caption: str) -> list[str]:
    """The words of UAX 29 in lower case; segments without a letter or digit are left out.

    >>> words("Ein schwarz-weißer Hund, z.B. l'été: 3,5 m!")
    ['ein', 'schwarz', 'weißer', 'hund', 'z.b', "l'été", '3,5', 'm']
    """
    return _words(_normalised(caption))


def characters(caption: str) -> list[str]:
    """Letters of scripts written without spaces one by one, the rest as ``words``.

    >>> characters("一个人穿着NBA球衣，12号。")
    ['一', '个', '人', '穿', '着', 'nba', '球', '衣', '12', '号']
    """
    _, cluster, token, _ = _patterns()
    tokens: list[str] = []
    for number, part in enumerate(_UNSPACED_RUN.split(_normalised(caption))):
        if number % 2:
            tokens += [found[0] for letter in cluster.findall(part) if (found := token.search(letter))]
        else:
            tokens += _words(part)
    return tokens


def _join_words(tokens: Sequence[str]) -> str:
    return " ".join(tokens)


def _join_characters(tokens: Sequence[str]) -> str:
    """A space only between two tokens that are both of scripts with spaces."""
    text, spaced = "", False
    for token in tokens:
        before, spaced = spaced, not _UNSPACED.match(token)
        text += f" {token}" if before and spaced else token
    return text


ENGLISH = Tokenizer("english", penn_treebank, _join_words, english=True)
TOKENIZERS = {
    tokenizer.name: tokenizer
    for tokenizer in (
        ENGLISH,
        Tokenizer("words", words, _join_words),
        Tokenizer("characters", characters, _join_characters),
    )
}
