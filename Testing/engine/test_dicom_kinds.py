"""Images of several kinds, each at a position of its own, under one series UID: no volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

import dicoms
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.volume import read_volume

SLICES = 6


def series(folder: Path, **values: Sequence[Any]) -> Path:
    """Slices of which each has its own value of an element; None is no element."""
    files = dicoms.classic(dicoms.voxels((SLICES, 5, 6)))
    for k, data in enumerate(files):
        dicoms.changed(data, **{name: value[k] for name, value in values.items()})
    return dicoms.write(folder, files)


def image_type(*words: str) -> list[str]:
    return ["ORIGINAL", "PRIMARY", *words]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("EchoTime", ["20"] * 2 + ["100"] * 4, ["echo time", "20 (2 images", "100 (4 images"]),
        ("EchoTime", ["20", "100"] * 3, ["echo time", "20 (3 images"]),
        ("EchoTime", ["0.07"] * 3 + ["2.2"] * 3, ["echo time"]),
        ("EchoTime", [f"{20 * (k + 1)}" for k in range(6)], ["20 (1 image,", "120 (1 image,"]),
        ("InversionTime", ["2500"] * 3 + ["100"] * 3, ["inversion time", "100 (3 images", "2500 (3 images"]),
        ("InversionTime", ["2500"] * 3 + [None] * 3, ["inversion time", "0 (3 images"]),
        ("DiffusionBValue", [0.0] * 3 + [1000.0] * 3, ["b-value", "1000 (3 images"]),
        ("DiffusionBValue", [None] * 3 + [50.0] * 3, ["b-value", "50 (3 images"]),
        ("ImageType", [image_type("M", "ND"), image_type("P", "ND")] * 3, ["image part", "phase (3", "magnitude (3"]),
        ("ImageType", [image_type("M_FFE", "M", "FFE")] * 3 + [image_type("R_FFE", "R", "FFE")] * 3, ["real (3"]),
        ("ImageType", [image_type("WATER")] * 3 + [image_type("FAT")] * 3, ["water (3", "fat (3"]),
        ("ComplexImageComponent", ["MAGNITUDE", "PHASE"] * 3, ["image part"]),
        ("ScanningSequence", ["SE"] * 3 + ["GR"] * 3, ["scanning sequence", "SE (3", "GR (3"]),
        ("ConvolutionKernel", ["H30s"] * 3 + ["H70h"] * 3, ["reconstruction kernel"]),
    ],
)
def test_images_of_several_kinds_are_no_volume(
    tmp_path: Path, name: str, values: Sequence[Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        read_volume(series(tmp_path, **{name: values}))
    assert str(tmp_path) in caught.value.what and ".dcm" in caught.value.what and caught.value.hint
    assert all(word in caught.value.what for word in words)


def test_real_and_phase_images_that_only_a_private_element_tells_apart(tmp_path: Path) -> None:
    files = dicoms.classic(dicoms.voxels((SLICES, 5, 6)), ImageType=image_type("OTHER"))
    for k, data in enumerate(files):
        data.add_new(0x00430010, "LO", "GEMS_PARM_01")
        data.add_new(0x0043102F, "SS", k % 2)
    with pytest.raises(InputError, match=r"magnitude \(3 images.*phase \(3 images"):
        read_volume(dicoms.write(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("SeriesDescription", ["FLAIR"] * 2 + ["T2"] * 4, "series description: FLAIR (2 images"),
        ("AcquisitionDate", ["20200101"] * 3 + ["20210101"] * 3, "acquisition date: 20200101 (3 images"),
        ("RepetitionTime", ["9000"] * 3 + ["4000"] * 3, "repetition time: 4000 (3 images"),
        ("FlipAngle", ["90"] * 3 + ["15"] * 3, "flip angle: 15 (3 images"),
        ("ContrastBolusAgent", [None] * 3 + ["Gadovist"] * 3, "contrast agent: none (3 images"),
        ("SequenceName", ["*tir2d1"] * 3 + ["*tse2d1"] * 3, "sequence name"),
        ("EchoTime", [None] * 3 + ["100"] * 3, "echo time: 100 (3 images"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"]] * 3 + [["ORIGINAL", "PRIMARY", "M", "DIS2D"]] * 3, "image type"),
    ],
)
def test_what_need_not_be_another_kind_is_said(tmp_path: Path, name: str, values: Sequence[Any], words: str) -> None:
    (warning,) = read_volume(series(tmp_path, **{name: values})).warnings
    assert words in warning


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("EchoTime", [f"{100 + 0.003 * k:.3f}" for k in range(6)]),
        ("EchoTime", ["98", "100", "102", "98", "100", "102"]),
        ("InversionTime", ["2500", "2500.1"] * 3),
        ("InversionTime", ["0", None] * 3),
        ("DiffusionBValue", [995.0, 1000.0, 1005.0] * 2),
        ("RepetitionTime", [f"{9000 + 30 * k}" for k in range(6)]),
        ("AcquisitionDate", ["20191231"] * 3 + ["20200101"] * 3),
        ("AcquisitionTime", [f"1200{k:02d}" for k in range(6)]),
        ("AcquisitionNumber", [str(k + 1) for k in range(6)]),
        ("TriggerTime", [str(20 * k) for k in range(6)]),
        ("WindowCenter", [str(k) for k in range(6)]),
    ],
)
def test_what_varies_within_a_scan_is_nothing(tmp_path: Path, name: str, values: Sequence[Any]) -> None:
    volume = read_volume(series(tmp_path, **{name: values}))
    assert volume.image.GetSize()[2] == SLICES and volume.warnings == ()


def test_two_echoes_at_each_position_are_two_volumes_of_one_kind_each(tmp_path: Path) -> None:
    stacks = [dicoms.classic(dicoms.voxels(seed=n), EchoTime=time) for n, time in enumerate(("20", "100"))]
    assert read_volume(dicoms.write(tmp_path, *stacks), frame=1).warnings == ()


def in_group(sequence: str, name: str) -> Callable[[Any], Dataset]:
    return lambda value: dicoms.with_elements(**{sequence: [dicoms.with_elements(**{name: value})]})


@pytest.mark.parametrize(
    ("group", "values", "words"),
    [
        (in_group("MREchoSequence", "EffectiveEchoTime"), (20.0, 100.0), "echo time"),
        (in_group("MRDiffusionSequence", "DiffusionBValue"), (0.0, 1000.0), "b-value"),
        (in_group("MRModifierSequence", "InversionTimes"), (100.0, 2500.0), "inversion time"),
        (in_group("MRImageFrameTypeSequence", "ComplexImageComponent"), ("MAGNITUDE", "PHASE"), "image part"),
        (in_group("CTReconstructionSequence", "ConvolutionKernel"), ("H30s", "H70h"), "reconstruction kernel"),
    ],
)
def test_frames_of_several_kinds_are_no_volume(
    tmp_path: Path, group: Callable[[Any], Dataset], values: tuple[Any, Any], words: str
) -> None:
    positions = np.array([(0, 0, 3 * k) for k in range(SLICES)])

    def saved(frames: int) -> Path:
        data = dicoms.enhanced(
            dicoms.voxels((SLICES, 5, 6)), positions, frame=lambda k, item: item.update(group(values[k >= frames]))
        )
        return dicoms.save(data, tmp_path / "many.dcm")

    with pytest.raises(InputError, match=words) as caught:
        read_volume(saved(2))
    assert "(2 images" in caught.value.what and "(4 images" in caught.value.what and "frame 3" in caught.value.what
    assert read_volume(saved(0)).warnings == ()
