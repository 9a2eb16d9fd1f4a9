"""What the tests of the training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from Testing.training.fakes import Session, random_slices
from training.data.slices import Slices


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactness is expected for one kind of arithmetic, so a GPU of the machine must not join in."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    """Processes to be ended with the test, whatever becomes of it."""
    started: list[Session] = []
    yield started
    for session in started:
        session.destroy()


@pytest.fixture(scope="session")
def slices_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train.npz`` and ``val.npz`` of round heads with squares of both labels, 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("slices")
    for number, split in enumerate(("train", "val")):
        random_slices(count=24, size=16, seed=number).save(folder / f"{split}.npz")
    return folder


@pytest.fixture
def slices(slices_folder: Path) -> Slices:
    return Slices.load(slices_folder / "train.npz")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums of several threads are rounded in the order they arrive; one thread makes "the same" mean every bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
