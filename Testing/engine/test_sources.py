"""Whatever a caller has becomes a scan, and no option that was given is passed over in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.sources import read
from diffusion_anomaly.io.volume import Scan, Volume

ARRAY = np.arange(4 * 8 * 8, dtype=np.float32).reshape(4, 8, 8)
SPACING = (1.0, 1.0, 3.0)


def volume(**options: Any) -> Volume:
    found = read(ARRAY, spacing=SPACING, **options)
    assert isinstance(found, Volume)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    image = sitk.GetImageFromArray(ARRAY)
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    return tmp_path / "scan.nrrd"


SOURCES: dict[str, Any] = {
    "array": lambda: ARRAY,
    "image": lambda: sitk.GetImageFromArray(ARRAY),
    "volume": volume,
    "scan": lambda: Scan({"FLAIR": volume()}),
    "arrays": lambda: {"FLAIR": ARRAY, "T1": ARRAY},
    "images": lambda: {"FLAIR": sitk.GetImageFromArray(ARRAY)},
    "volumes": lambda: {"FLAIR": volume()},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("option", [{"series": "1.2.3"}, {"frame": 0}, {"frame": 7}, {"spacing": SPACING}])
def test_an_option_that_a_source_takes_not_is_refused(source: str, option: dict[str, Any]) -> None:
    takes_spacing = source.startswith("array")
    if takes_spacing and "spacing" in option:
        assert read(SOURCES[source](), **option)
        return
    with pytest.raises(InputError, match=f"{next(iter(option))} was given for .* takes none"):
        read(SOURCES[source](), **option, **({"spacing": SPACING} if takes_spacing else {}))


def test_a_file_takes_no_spacing(file: Path) -> None:
    for source in (file, str(file), {"FLAIR": file}):
        with pytest.raises(InputError, match=r"spacing was given for .* takes none"):
            read(source, spacing=SPACING)


def test_of_files_and_arrays_each_takes_what_is_its_own(file: Path) -> None:
    scan = read({"FLAIR": file, "T1": ARRAY, "T2": volume()}, spacing=SPACING, frame=0)
    assert isinstance(scan, Scan) and list(scan.channels) == ["FLAIR", "T1", "T2"]


def test_a_title_is_given_to_every_source(file: Path) -> None:
    sources = (file, sitk.GetImageFromArray(ARRAY), volume(title="before"), {"FLAIR": file}, Scan({"FLAIR": volume()}))
    for source in sources:
        found = read(source, title="Case 7")
        assert (found.reference if isinstance(found, Scan) else found).title == "Case 7"
    assert read(kept := volume(title="before")) is kept
