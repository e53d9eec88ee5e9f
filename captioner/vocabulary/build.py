"""The vocab stage: the words of the training captions and their vectors."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import click
import numpy as np

from captioner.errors import CaptionerError
from captioner.images.captions import CaptionSet
from captioner.parameters import RuntimeParameters, VocabParameters
from captioner.sidecar import write_atomically
from captioner.vocabulary.tokenizers import TOKENIZERS, unspaced_letters
from captioner.vocabulary.vectors import load_vectors
from captioner.vocabulary.vocabulary import PAD, SPECIALS, Vocabulary, vocabulary_of_counts

# Standard deviation of random vectors if there are no pre-trained ones to match: about that of GloVe 6B.
_STD = 0.7
# Below either the default vocab.min_count, meant for thousands of captions, leaves out words that matter.
_LOW_COVERAGE, _FEW_IMAGES = 0.5, 50
# A caption of fewer tokens on average was not split
_FEW_TOKENS = 1.5


def build(
    parameters: VocabParameters, runtime: RuntimeParameters, captions: Path, vocab: Path, embeddings: Path
) -> None:
    """Write ``vocab`` (JSON) and ``embeddings`` (npy, float32 (V, D), row i = word i) of the training captions.

    Both are written atomically; the same captions and parameters give the same bytes.

    Raises:
        CaptionerError: no training caption, no word frequent enough, unknown vectors, another dimension, or a file that
            cannot be written.
    """
    caption_set = CaptionSet.load(captions)
    vocabulary = read_words(parameters, caption_set)
    words = vocabulary.words[len(SPECIALS) :]
    vectors, known = load_vectors(
        parameters.vectors,
        parameters.dimension,
        words,
        download_cache=Path(runtime.download_cache).expanduser(),
        retries=runtime.retries,
        timeout=runtime.timeout,
    )
    if vectors.shape != (len(words), parameters.dimension):
        raise CaptionerError(
            f"vocab.vectors={parameters.vectors}: vectors of {vectors.shape[1]} numbers, "
            f"vocab.dimension={parameters.dimension}; set one to the other"
        )
    seen = sum(vocabulary.counts)
    vocabulary.facts["coverage"] = {
        "words_with_vector": int(known.sum()),
        "words": len(words),
        "tokens_with_vector": round(
            sum(count for count, has in zip(vocabulary.counts[len(SPECIALS) :], known) if has) / seen, 6
        ),
        "tokens_in_vocabulary": round(seen / vocabulary.facts["tokens"], 6),
    }
    _write(embeddings, _npy(fill_vectors(vectors, known, parameters.seed)))
    try:
        vocabulary.save(vocab)
    except OSError as error:
        raise _unwritable(vocab, error) from error
    _report(vocabulary, vocab)
    _warn_about_coverage(vocabulary, len(caption_set.image_ids("train")), vocab)
    _warn_about_tokens(vocabulary, caption_set)


def read_words(parameters: VocabParameters, captions: CaptionSet) -> Vocabulary:
    """The vocabulary of the training captions, each truncated to ``max_length`` tokens as in training.

    Raises:
        CaptionerError: no training caption contains a word, no word is frequent enough, or a package that the
            tokenizer needs is missing.
    """
    counts: Counter[str] = Counter()
    tokenizer = TOKENIZERS[parameters.tokenizer]
    number = longest = cut = 0
    for image_id in captions.image_ids("train"):
        for caption in captions.captions(image_id):
            found = tokenizer.tokenize(caption)
            number += bool(found)
            longest = max(longest, len(found))
            cut += len(found) > parameters.max_length
            counts.update(found[: parameters.max_length])
    tokens = sum(counts.values())
    if not tokens:
        raise CaptionerError(
            f"{captions.path}: no caption with a word in the training split; check the data set, its split and "
            "download.limit"
        )
    facts = {
        "tokenizer": tokenizer.name,
        "min_count": parameters.min_count,
        "max_length": parameters.max_length,
        "seed": parameters.seed,
        # only the name: paths differ between machines
        "vectors": parameters.vectors if parameters.vectors in ("glove", "none") else Path(parameters.vectors).name,
        "dimension": parameters.dimension,
        "captions": number,
        "captions_cut": cut,
        "longest": longest,
        "tokens": tokens,
    }
    vocabulary = vocabulary_of_counts(counts, parameters.min_count, facts)
    if len(vocabulary) == len(SPECIALS):
        most = counts.most_common(1)[0][1]
        raise CaptionerError(
            f"{captions.path}: no word occurs {parameters.min_count} times in the training captions (the most "
            "frequent: "
            f"{most}); lower vocab.min_count"
        )
    return vocabulary


def fill_vectors(vectors: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """The embedding matrix: special words first, random vectors for words without a pre-trained one.

    Random rows are normally distributed with the mean (per dimension) and the standard deviation of the known rows, so
    that all rows have the same scale. The row of <pad> is zero.

    Args:
        vectors: (W, D) vectors of the words after the special ones.
        known: bool (W,), True where ``vectors`` has a pre-trained vector.
        seed: seed of the random rows.

    Returns:
        float32 (4 + W, D).
    """
    dimension = vectors.shape[1]
    table = np.concatenate([np.zeros((len(SPECIALS), dimension), np.float32), vectors.astype(np.float32)])
    have = np.concatenate([np.zeros(len(SPECIALS), bool), known])
    mean, std = np.zeros(dimension), _STD
    if known.sum() > 1:
        mean = vectors[known].mean(axis=0, dtype=np.float64)  # (D,)
        std = float((vectors[known] - mean).std()) or _STD
    sampled = np.random.default_rng(seed).normal(
        mean, std, table.shape
    )  # for all rows, so that a row does not depend on which others are known
    table[~have] = sampled[~have]
    table[PAD] = 0
    return table


def _npy(table: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> CaptionerError:
    return CaptionerError(
        f"{path}: cannot be written ({error.strerror}); free the disk or fix its permissions and run again"
    )


def _report(vocabulary: Vocabulary, path: Path) -> None:
    facts, coverage = vocabulary.facts, vocabulary.facts["coverage"]
    click.echo(
        f"{path}: {coverage['words']:,} words that occur at least {facts['min_count']} times in {facts['captions']:,} "
        "captions; "
        f"they cover {coverage['tokens_in_vocabulary']:.2%} of the captions' tokens",
        err=True,
    )
    click.echo(
        f"vectors {facts['vectors']} ({facts['dimension']}d): {coverage['words_with_vector']:,} of "
        f"{coverage['words']:,} words known, "
        f"{coverage['tokens_with_vector']:.2%} of their occurrences; the others are random",
        err=True,
    )
    if facts["captions_cut"]:
        click.echo(
            f"{facts['captions_cut']:,} captions are longer than {facts['max_length']} tokens (the longest: "
            f"{facts['longest']}) and will be truncated",
            err=True,
        )


def _warn_about_coverage(vocabulary: Vocabulary, images: int, path: Path) -> None:
    covered, min_count = vocabulary.facts["coverage"]["tokens_in_vocabulary"], vocabulary.facts["min_count"]
    if covered < _LOW_COVERAGE or (images < _FEW_IMAGES and min_count > 1 and covered < 1):
        click.echo(
            f"warning: {path}: with vocab.min_count={min_count}, {1 - covered:.1%} of the words of {images:,} training "
            "images are unknown to the model; lower it: -S vocab.min_count=1, or add captions",
            err=True,
        )


def _warn_about_tokens(vocabulary: Vocabulary, captions: CaptionSet) -> None:
    """Say so where the tokenizer does not split the captions: the model would learn whole sentences as words."""
    tokens, number = vocabulary.facts["tokens"], vocabulary.facts["captions"]
    letters = sum(
        unspaced_letters(caption) for image in captions.image_ids("train") for caption in captions.captions(image)
    )
    unspaced = letters > tokens and vocabulary.tokenizer.name != "characters"  # commas may split sentences into clauses
    if unspaced or tokens < _FEW_TOKENS * number:
        remedy = (
            "split them: -S '++vocab.tokenizer=characters' (Chinese, Japanese, Thai)"
            if unspaced
            else "write captions of several words, with spaces between them"
        )
        click.echo(
            f"warning: {captions.path}: with vocab.tokenizer={vocabulary.tokenizer.name} its captions have "
            f"{tokens / number:.1f} tokens each; {remedy}",
            err=True,
        )
