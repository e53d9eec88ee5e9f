"""``sources/<dataset>.yaml``: the manifest of a data set, with its layout, addresses, sizes and checksums."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError

LAYOUTS = ("scenes", "coco", "flickr", "custom")


@dataclass(frozen=True)
class Archive:
    """A file on the network: URL, size in bytes, and checksums where they are published.

    Attributes:
        member: the file of interest inside the archive.
    """

    url: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    member: str | None = None

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Manifest:
    """A data set: its layout, sources and settings of its reader; the fields are the keys of the YAML file."""

    name: str
    layout: str
    description: str = ""
    homepage: str = ""
    licence: str = ""
    parts: tuple[dict[str, str], ...] = ()
    annotations: str = ""
    archives: dict[str, Archive] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    splits: dict[str, str] = field(default_factory=dict)
    shares: dict[str, int] = field(default_factory=dict)
    karpathy: Archive | None = None


Fetcher = Callable[[Archive], Path]


def dataset_names(dataset: str) -> list[str]:
    """The data sets of ``a+b``; CaptionerError if a name is empty or repeated."""
    names = [name.strip() for name in dataset.split("+")]
    if not all(names) or len(set(names)) != len(names):
        raise CaptionerError(
            f"params.yaml: dataset={dataset!r}: give different data sets joined with +, for example flickr8k+coco2017"
        )
    return names


def read_manifest(name: str, sources: Path) -> Manifest:
    """The manifest of a data set; ``custom`` needs none.

    Raises:
        CaptionerError: no such data set (the message has the nearest name), or an invalid manifest.
    """
    if name == "custom":
        return Manifest(name="custom", layout="custom", description="own images and captions")
    path = sources / f"{name}.yaml"
    if not path.is_file() or Path(name).name != name:
        raise _unknown(name, sources)
    content = _load(path)
    if content.get("layout") not in LAYOUTS:
        raise _unknown(name, sources)
    known = set(Manifest.__dataclass_fields__)
    unknown = sorted(set(content) - known)
    if unknown or content.get("name") != name:
        raise CaptionerError(
            f"{path}: {'unknown key ' + unknown[0] if unknown else 'its name is not ' + name}; known keys: "
            f"{', '.join(sorted(known))}"
        )
    try:
        content["archives"] = {key: Archive(**value) for key, value in content.get("archives", {}).items()}
        content["karpathy"] = Archive(**content["karpathy"]) if content.get("karpathy") else None
        for key in ("parts", "images", "tables"):
            content[key] = tuple(content.get(key, ()))
        return Manifest(**content)
    except (TypeError, AttributeError) as error:
        raise CaptionerError(
            f"{path}: not a valid manifest ({error}); compare it with the others in its folder"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped,unused-ignore]

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CaptionerError(f"{path}: cannot be read as YAML ({error}); fix it or restore it from git") from error
    if not isinstance(content, dict):
        raise CaptionerError(f"{path}: not a mapping; fix it or restore it from git")
    return content


def _unknown(name: str, sources: Path) -> CaptionerError:
    names = ["custom", *sorted(path.stem for path in sources.glob("*.yaml") if _load(path).get("layout") in LAYOUTS)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "it must be one of these, or several joined with +"
    return CaptionerError(
        f"params.yaml: dataset={name!r}: there is no {sources / name}.yaml; {hint} (known: {', '.join(names)})"
    )
