"""A method of one's own comes in with one file and one entry, as the documentation says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffusion_anomaly import registry
from diffusion_anomaly.detection.detector import Detector
from diffusion_anomaly.detection.planning import Options
from diffusion_anomaly.errors import InputError, ModelError
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.models.package import open_bundle
from diffusion_anomaly.models.verification import verify
from diffusion_anomaly.models.writing import write_bundle
from diffusion_anomaly.registry import METHODS, MethodEntry, get_method, register

FILE = """
from diffusion_anomaly.methods.base import SliceResult, confine


class Contrast:
    def run(self, batch, model, options, progress):
        raw = confine((batch.images.float() * options.gain).sum(dim=1), batch.brain)
        progress(0)
        return SliceResult(raw, raw.amax(dim=(1, 2)))

    def network_calls(self, options):
        return 0
"""
ENTRY = """
from dataclasses import dataclass

from diffusion_anomaly.options import MethodOptions, number
from diffusion_anomaly.registry import MethodEntry


@dataclass(frozen=True)
class ContrastOptions(MethodOptions):
    gain: float = number(2.0, 0.0, 10.0, "what intensities are multiplied by")


ENTRY = MethodEntry(
    name="contrast",
    title="Brightness itself",
    does="Shows what is bright.",
    learnt_from="nothing",
    implementation="own_contrast:Contrast",
    options_type=ContrastOptions,
    default_model="flair-contrast",
    score_title="highest score",
)
"""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MethodEntry]:
    (tmp_path / "own_contrast.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "own_contrast_entry.py").write_text(ENTRY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "METHODS", METHODS)
    import own_contrast_entry  # type: ignore[import-not-found]

    yield register(own_contrast_entry.ENTRY)
    del METHODS["contrast"]


def write_package(folder: Path) -> Path:
    """The baseline's package, made for the other method."""
    base = open_bundle("flair-intensity")
    keys = ("modality", "grid", "normalisation", "calibration", "threshold", "postprocess")
    metadata = ("task", "description", "authors", "copyright", "license", "intended_use", "data_source")
    bundle = write_bundle(
        folder / "flair-contrast",
        name="flair-contrast",
        version="0.1.0",
        method="contrast",
        networks={},
        anomaly={key: base.anomaly[key] for key in keys if key in base.anomaly},
        metadata={key: base.metadata[key] for key in metadata if key in base.metadata},
        model_card=base.model_card,
        data_license=base.data_license,
        license_text=base.license_text,
    )
    verify(bundle)
    return bundle.path


def test_one_file_and_one_entry_make_a_method(
    entry: MethodEntry, tmp_path: Path, flair_like_volume: Volume, flair_like_brain: sitk.Image
) -> None:
    package = write_package(tmp_path)
    result = Detector(Options("contrast", str(package), device="cpu"))(flair_like_volume, brain=flair_like_brain)
    scores = sitk.GetArrayFromImage(result.anomaly_map)
    assert scores.max() > 0 and not scores[sitk.GetArrayFromImage(flair_like_brain) == 0].any()
    assert result.provenance["method"] == "contrast" and result.provenance["options"]["gain"] == 2.0
    assert result.save(tmp_path / "out")["report"].read_text(encoding="utf-8").count("Brightness itself")
    with pytest.raises(InputError, match="gain is 11"):
        Detector(Options("contrast", str(package), overrides={"gain": 11.0}))
    with pytest.raises(InputError, match="no option side"):
        Detector(Options("contrast", str(package), overrides={"side": "dark"}))


def test_what_reads_the_registry_knows_it(entry: MethodEntry, capsys: pytest.CaptureFixture[str]) -> None:
    assert get_method("contrast").title == "Brightness itself"
    with pytest.raises(InputError, match="contrast"):
        get_method("contrst")


def test_without_its_entry_its_package_is_refused_by_name(entry: MethodEntry, tmp_path: Path) -> None:
    package = write_package(tmp_path)
    held = METHODS.pop("contrast")
    try:
        with pytest.raises(ModelError, match="contrast"):
            verify(open_bundle(package))
    finally:
        METHODS["contrast"] = held


def test_two_methods_of_one_name_are_refused(entry: MethodEntry) -> None:
    assert register(entry) is METHODS["contrast"]
    with pytest.raises(InputError, match="already a method"):
        register(replace(entry, title="Another"))


def test_an_array_is_not_changed_by_a_detection(flair_like_volume: Volume, flair_like_brain: sitk.Image) -> None:
    array = sitk.GetArrayFromImage(flair_like_volume.image)
    before = array.copy()
    Detector(Options("intensity"))(
        array, spacing=flair_like_volume.image.GetSpacing(), brain=sitk.GetArrayFromImage(flair_like_brain)
    )
    assert np.array_equal(array, before)
