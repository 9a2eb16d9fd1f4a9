"""A model package under its name is a whole one, whatever happens to the process that writes it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

import packages
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.models import writing
from diffusion_anomaly.models.package import available, open_bundle
from diffusion_anomaly.models.verification import verify

needs_fork = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="exchanges folders in one step")


@needs_fork
def test_a_kill_at_any_moment_leaves_the_old_package_or_the_new_one(tmp_path: Path) -> None:
    place = tmp_path / "toy"
    known = {packages.intensity(place, threshold={"heat": heat}).sha256 for heat in (2.0, 3.0)}
    seen = set()
    for number in range(24):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for turn in range(1000):
                    packages.intensity(place, threshold={"heat": 2.0 + turn % 2})
                    os.write(write_end, b".")
            finally:
                os._exit(0)
        # By its own pace, so that it is at work on either package, on a busy machine too.
        begin = time.monotonic()
        for _ in range(1 + number % 2):
            os.read(read_end, 1)
        time.sleep(number / 24 * (time.monotonic() - begin) / (1 + number % 2))
        os.kill(child, signal.SIGKILL)
        os.close(read_end)
        os.close(write_end)
        os.waitpid(child, 0)
        bundle = open_bundle(place)
        verify(bundle)
        assert bundle.sha256 in known
        seen.add(bundle.sha256)
        assert [summary.name for summary in available([tmp_path]) if summary.path.parent == tmp_path] == ["toy"]
    packages.intensity(place)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"], "what killed runs left is gone"
    assert seen == known


def test_a_package_at_work_is_not_written_twice(tmp_path: Path) -> None:
    with writing.outputs_beside(tmp_path / "toy"), pytest.raises(InputError, match="Another run"):
        packages.intensity(tmp_path / "toy")


@pytest.mark.parametrize("theirs", ["beside", "changed", "manifest alone", "link"])
def test_what_the_user_put_into_a_package_is_not_replaced(theirs: str, tmp_path: Path) -> None:
    place = tmp_path / "toy"
    packages.intensity(place)
    if theirs == "beside":
        (place / "docs" / "thesis.txt").write_text("years of work")
    elif theirs == "changed":
        (place / "docs" / "README.md").write_text("my own card")
    elif theirs == "manifest alone":
        (place / "manifest.json").write_text('{"name": "my web page"}')
    else:
        place.rename(tmp_path / "real")
        place.symlink_to(tmp_path / "real")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ModelError, match="something else than a model package"):
        packages.intensity(place, threshold={"heat": 3.0})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
