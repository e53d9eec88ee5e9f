"""A PNG an image: its best caption, and where the decoder looked for each word."""

from __future__ import annotations

from pathlib import Path

from captioner.captioning.paths import Names, printable
from captioner.captioning.results import ImageCaptions
from captioner.drawing import Example, attention_or_none, draw_sheet, to_bytes
from captioner.errors import CaptionerError
from captioner.sidecar import write_atomically


class Overlays:
    """Writes them into a folder, made where it is not there.

    Args:
        grid: (rows, columns) of the model.
        title: stands above each.

    Raises:
        CaptionerError: the folder cannot be made.
    """

    def __init__(self, folder: Path, grid: tuple[int, int], title: str) -> None:
        self._folder, self._grid, self._title, self._names = folder, grid, title, Names(".attention.png")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaptionerError(
                f"{printable(str(folder))}: no folder for attention images can be made there ({error.strerror}); "
                "name another one"
            ) from error

    def write(self, result: ImageCaptions) -> Path:
        """The file, named after the image; no two of one run have one name.

        Raises:
            CaptionerError: it cannot be written.
        """
        path = self._folder / self._names.of(Path(result.name).name)
        write_sheet(path, [example(result, self._grid)], self._title)
        return path


def example(result: ImageCaptions, grid: tuple[int, int]) -> Example:
    """An image with its best caption and attention, which were asked for."""
    assert result.image is not None
    best, name = result.captions[0], printable(Path(result.name).name)
    return Example(result.image, best.words, attention_or_none(best.attention), grid, result.box, None, name, best.text)


def write_sheet(path: Path, examples: list[Example], title: str) -> None:
    """One PNG of some images, their captions, and where the decoder looked for each word.

    Raises:
        CaptionerError: it cannot be written.
    """
    try:
        write_atomically(path, to_bytes(draw_sheet(examples, title)))
    except OSError as error:
        raise CaptionerError(
            f"{printable(str(path))}: cannot be written ({error.strerror}); free the disk or mend its permissions"
        ) from error
