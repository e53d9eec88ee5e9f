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
        best, name = result.captions[0], Path(result.name).name
        assert result.image is not None  # asked for with attention
        example = Example(
            result.image, best.words, attention_or_none(best.attention), self._grid, result.box, None, printable(name)
        )
        path = self._folder / self._names.of(name)
        try:
            write_atomically(path, to_bytes(draw_sheet([example], self._title)))
        except OSError as error:
            raise CaptionerError(
                f"{printable(str(path))}: cannot be written ({error.strerror}); free the disk or mend its permissions"
            ) from error
        return path
