"""What several tests of training share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.runs import Runs
from tests.training.small import make_data
from tests.training.watching import Watch, Words


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two views an image; where the views do not matter, test files make their own with one."""
    return make_data(tmp_path_factory.mktemp("data"), views=2)


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Looks into every step of the runs of a test."""
    watch = Watch()
    yield watch
    watch.close()


@pytest.fixture
def words(watch: Watch) -> Words:
    found = Words([], [])
    watch.before.append(lambda decoder, _: found.before.append(decoder.word.weight.detach().clone()))
    watch.after.append(lambda decoder, _: found.after.append(decoder.word.weight.detach().clone()))
    return found


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have validation find these metrics, epoch after epoch."""

    def validate(cross_entropy: list[float], accuracy: list[float] | None = None) -> None:
        rows = iter(zip(cross_entropy, accuracy or [0.5] * len(cross_entropy)))
        found = lambda *_: dict(zip(("val_cross_entropy", "val_token_accuracy"), next(rows)))  # noqa: E731
        monkeypatch.setattr("captioner.training.validation.Validator.metrics", found)

    return validate
