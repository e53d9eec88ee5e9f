"""Penn Treebank tokens of captions, lower case and without punctuation, in pure Python.

Captions are scored on the tokens of Stanford's PTBTokenizer (CoreNLP 3.4.1, ``-lowerCase``) without pycocoevalcap's
punctuation. That tokenizer is a Java program; this one implements the rules that matter for captions, so that the
vocabulary, training, and scoring without Java use the same words. The tests compare the two.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# The punctuation that pycocoevalcap removes. Its list has -LRB- etc. in capitals, which never match lower-case tokens:
# brackets stay.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_BRACKETS = frozenset(["-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"])
_WRITTEN = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    '"': "''",
    ":)": ":-rrb-",
    ":(": ":-lrb-",
    ":-)": ":--rrb-",
    ":-(": ":--lrb-",
    ";)": ";-rrb-",
    ";-)": ";--rrb-",
}

# Normalisation of characters with several forms.
_NORMAL = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b\u0091\u0092"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u0093\u0094\u00ab\u00bb"), '"'),
    **dict.fromkeys(map(ord, "\u2013\u2014\u2015\u0096\u0097"), " -- "),
    **dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\ufeff"), ""),
    **{
        ord(sign): f" {meaning} "
        for sign, meaning in {
            "½": "1/2",
            "¼": "1/4",
            "¾": "3/4",
            "⅓": "1/3",
            "⅔": "2/3",
            "…": "...",
            "¢": "cents",
        }.items()
    },
    **{ord(sign): f" {sign} " for sign in "¹²³"},
    **dict.fromkeys(
        [*range(0x20), 0x7F, *range(0x80, 0x85), *range(0x86, 0x91), *range(0x98, 0xA0)], " "
    ),  # control characters
    ord("£"): "#",
    ord("€"): "$",
}
# emoji, and the replacement character of damaged text; the Java tokenizer drops both
_DROPPED = re.compile("[\ud800-\udfff\ufffd\U00010000-\U0010ffff]")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES), re.IGNORECASE)

# Abbreviations keep their full stop.
_ANY_CASE = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|atty|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres|lieut|hon|brig|comdr|cmdr|pfc|spc|"
    "supts?|det|jr|sr|bros|inc|corp|ltd|cos?|plc|mt|ph|bldg|blvd|rd|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|"
    "etc|vs|cf|est|seq|al|intl|tel|ext|calif|fla|mich|minn|va|conn|ariz|colo|penn|tenn|ga|ky|ind|kan|mo|md|ala|okla|vt|wis|wyo|nev|neb|alex|wm|jos|"
    "rt|sq|ct|ft|dept|univ|assn|natl|ph\\.d"
)
_CAPITALISED = "Miss|MISS|Ill|ILL|Mass|MASS|Wash|WASH|Tex|TEX|Ark|ARK|Pa|PA|La|LA|Ore|ORE|Del|DEL"


def _marks() -> str:
    """Combining marks of the basic plane as ranges for a character class; they belong to words but not to ``\\w``."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x10000):
        if unicodedata.category(chr(code)) in ("Mn", "Mc"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


_MARKS = _marks()
_LETTER = rf"(?:[^\W\d_][{_MARKS}]*)"
_WORD = rf"[\w{_MARKS}]"
_TOKEN = re.compile(
    rf"""
      (?i:https?://|www\.)[^\s"<>|(){{}}]+[^\s"<>|.!?(){{}},-]                    # web addresses
    | [\w.+-]{{1,64}}@[\w-]{{1,64}}(?:\.[\w-]{{1,64}})*                           # mail addresses
    | </?[A-Za-z!?][^<>\s]*>                                                      # mark-up
    | (?i:{_ANY_CASE})\. (?!\w) | (?:{_CAPITALISED})\. (?!\w)
    | (?:[A-Za-z]\.)+ (?:[A-Za-z]\b\.?)? (?!\w)                                   # u.s.  a.m.  j.
    | [A-Z]+(?:&[A-Z]+)+\b | [Cc]\+\+ | [A-Za-z]{{1,2}}\$(?=\d)                   # AT&T
    | [+-]?(?:\d+(?:[.,:]\d+)+|\.\d+) | [+-]\d+ | \d+/\d+(?:-\w+)*                # 1,000  5:30  -1.5  1/2-inch
    | (?i:can(?=not\b) | (?:gon|wan)(?=na\b(?!-)) | got(?=ta\b(?!-)) | (?:gim|lem)(?=me\b(?!-)))
    | (?i:(?<=\bcan)not\b | (?<=\bgon)na\b | (?<=\bwan)na\b | (?<=\bgot)ta\b | (?<=\bgim)me\b | (?<=\blem)me\b)
    | (?i:'t(?=is(?:n't)?\b|was(?:n't)?\b) | 'n' | 'n\b | '\d0s\b | '(?:em|till?|cause)\b)
    | (?i:s'mores|c'mon|li'l|ev'ry|nor'easter|e'er|y'(?=[a-z])|(?:ol|somethin)'(?!\w))
    | (?i:[a-z]+?(?=n't\b) | n't\b | '(?:s|m|d|re|ve|ll)\b)                       # do n't, dog 's
    | (?i:[dol]'{_LETTER}+(?:-\w+)* | [a-z]*[aeiouy]'[aeiou]{_LETTER}*)           # o'clock, ma'am
    | (?:[@\#](?=[^\W\d_]))?{_WORD}(?:(?:[-/!?]|(?<=[^\W\d_])\.(?=[^\W\d_]))?{_WORD})*  # words, also hyphenated
    | [:;]-?[()]
    | \.{{3,4}} | --+ | [?!]+ | ``|'' | <<|>> | \*+ | @+ | \#+ | [^\s]
    """,
    re.VERBOSE,
)
_DASHES, _DOTS = re.compile("--+"), re.compile(r"\.{3,}")


def ptb_tokens(caption: str) -> list[str]:
    """All tokens of a caption in lower case, punctuation included, as ``PTBTokenizer -lowerCase`` writes them."""
    return [
        token
        for chunk in caption.split()
        for token in (_known_chunk(chunk) if len(chunk) < 32 else _chunk_tokens(chunk))
    ]


def _chunk_tokens(chunk: str) -> tuple[str, ...]:
    """Tokens of text without white space. No rule crosses white space, so repeated chunks are tokenized only
    once."""
    text = _ENTITY.sub(lambda match: _ENTITIES[match[0].lower()], chunk)
    text = _DROPPED.sub(" ", text.translate(_NORMAL))
    tokens = []
    for match in _TOKEN.finditer(text):
        token = match[0].lower()
        if _DASHES.fullmatch(token):
            token = "--"
        elif _DOTS.fullmatch(token):
            token = "..."
        tokens.append(_WRITTEN.get(token, token))
    return tuple(tokens)


_known_chunk = lru_cache(maxsize=2**16)(_chunk_tokens)


def scored_tokens(caption: str) -> list[str]:
    """The tokens that captions are scored on: without pycocoevalcap's punctuation, but with brackets."""
    return [token for token in ptb_tokens(caption) if token not in PUNCTUATION]


def tokenize(caption: str) -> list[str]:
    """The words of a caption: Penn Treebank tokens in lower case without punctuation.

    These are ``scored_tokens`` without brackets, which do not belong in generated captions.

    >>> tokenize("A man's dog (black-and-white) can't swim.")
    ['a', 'man', "'s", 'dog', 'black-and-white', 'ca', "n't", 'swim']
    """
    return [token for token in ptb_tokens(caption) if token not in PUNCTUATION and token not in _BRACKETS]
