"""Penn Treebank tokens of captions, lower case and without punctuation, in pure Python.

Image captioning is scored on the tokens of Stanford's PTBTokenizer (CoreNLP 3.4.1, ``-lowerCase``) less the punctuation list of
pycocoevalcap. That tokenizer is a Java program; this one follows its rules as far as captions use them, so that the vocabulary,
training and scoring without Java see the same words. Its tests compare the two.
"""

from __future__ import annotations

import re

# What pycocoevalcap drops. Its list has -LRB- and its sisters in capitals, which lower-cased tokens never match: brackets stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# One character for each of the ways to write it. Characters outside the basic plane (emoji) cannot be tokenized there and vanish.
_NORMAL = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b\u0091\u0092"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u0093\u0094\u00ab\u00bb"), '"'),
    **dict.fromkeys(map(ord, "\u2013\u2014\u2015\u0096\u0097"), " -- "),
    ord("\u2026"): " ... ", ord("\u0085"): " ", ord("\u00ad"): "",
    ord("\u00bd"): " 1/2 ", ord("\u00bc"): " 1/4 ", ord("\u00be"): " 3/4 ", ord("\u2153"): " 1/3 ", ord("\u2154"): " 2/3 ",
    ord("\u00a3"): "#", ord("\u20ac"): "$",
}
_BEYOND_BASIC_PLANE = re.compile("[\U00010000-\U0010ffff]")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES), re.IGNORECASE)

# Abbreviations keep their full stop: titles, companies, months and the like, as they are written.
_ABBREVIATION = (
    "Mr|Mrs|Ms|Drs?|Profs?|Sens?|Reps?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste?|Ave|Pres|Hon|Brig|Jr|Sr|Bros|Inc|Corp|Ltd|Co|"
    "Mt|Ph|Bldg|Blvd|Rd|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tue|Wed|Thu|Fri|mr|mrs|ms|dr|lt|col|gen|gov|sgt|capt|jr|sr|bros|inc|corp|ltd|etc|vs|ca|cf|est|seq"
)
_LETTER = r"[^\W\d_]"
_TOKEN = re.compile(
    rf"""
      (?:https?://|www\.)[^\s"<>|(){{}}]+[^\s"<>|.!?(){{}},-]                     # web addresses
    | [^\s"<>|(){{}}]+@[\w-]+(?:\.[\w-]+)+                                        # mail addresses
    | </?[A-Za-z!?][^<>]*>                                                        # mark-up
    | (?:{_LETTER}\.)+{_LETTER}\.? (?!\w)                                         # u.s., a.m.
    | (?:{_ABBREVIATION})\. (?!\w)
    | \d+(?:[.,:]\d+)+ | \.\d+(?!\w) | \d+/\d+                                    # 1,000  5:30  1.5  1/2
    | (?i:can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b) | 't(?=is\b|was\b) | (?<=can)not | (?<=go[nt]|wan)[nt]a | (?<=gim|lem)me)
    | (?i:[a-z]+?(?=n't\b) | n't\b | '(?:s|m|d|re|ve|ll)\b)                       # do n't, dog 's
    | (?i:'n'?(?![^\W_]) | 'em\b | [dol]'{_LETTER}+(?:-\w+)* | [a-z]*[aeiouy]'[aeiou]{_LETTER}*)
    | [\w@\#]*\w(?:[-./_&]?\w)*                                                   # words, also hyphenated
    | \.\.\.+ | --+ | [?!]+ | ``|'' | [^\s]
    """,
    re.VERBOSE,
)


def ptb_tokens(caption: str) -> list[str]:
    """All tokens of a caption in lower case, punctuation included, as ``PTBTokenizer -lowerCase`` writes them."""
    text = _ENTITY.sub(lambda match: _ENTITIES[match[0].lower()], caption)
    text = _BEYOND_BASIC_PLANE.sub(" ", text.translate(_NORMAL))
    return [_BRACKETS.get(token, token) for token in (match[0].lower() for match in _TOKEN.finditer(text))]


def tokenize(caption: str) -> list[str]:
    """The words of a caption: Penn Treebank tokens in lower case without punctuation.

    >>> tokenize("A man's dog, black-and-white, can't swim.")
    ['a', 'man', "'s", 'dog', 'black-and-white', 'ca', "n't", 'swim']
    """
    return [token for token in ptb_tokens(caption) if token not in PUNCTUATION and token != '"']
