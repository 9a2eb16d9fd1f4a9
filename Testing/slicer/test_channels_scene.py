"""Several volumes of a scene as the channels of one scan: chosen by name, checked, and run together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="needs MRML: pip install slicer-core")

import jobs
import mrmlscene
import packages
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.models.package import Bundle
from DiffusionAnomalyLib import choices
from DiffusionAnomalyLib.detection import Detection, Request, channelsOf
from DiffusionAnomalyLib.scene import attributes
from DiffusionAnomalyLib.scene.channels import chooseChannel, chosenChannels, fillChannels, problemWithChannels
from DiffusionAnomalyLib.settings import MemorySettings

OTHERS = ("T1", "T1C")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("models") / "three-contrasts"
    return packages.intensity(folder, channels=["FLAIR", *OTHERS], modality="FLAIR + T1 + T1C")


@pytest.fixture
def owner(scene: Any) -> Any:
    return scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "parameters")


def add(scene: Any, folder: Path, name: str, factor: float = 1.0) -> Any:
    image = jobs.scan()
    values = np.where(sitk.GetArrayFromImage(image) > 0, 400.0 - factor * sitk.GetArrayFromImage(image), 0.0)
    other = sitk.GetImageFromArray(values.astype(np.float32))
    other.CopyInformation(image)
    return mrmlscene.addScan(scene, other, folder, name)


@pytest.fixture
def scans(scene: Any, tmp_path: Path) -> dict[str, Any]:
    flair = mrmlscene.addScan(scene, jobs.scan(), tmp_path, "p1_FLAIR")
    return {"FLAIR": flair, "T1": add(scene, tmp_path, "p1_t1"), "T1C": add(scene, tmp_path, "p1_T1c", 1.2)}


def test_a_models_channels_are_those_that_it_declares(bundle: Bundle) -> None:
    assert choices.channels(bundle.path) == ("FLAIR", *OTHERS)
    assert channelsOf(Request("intensity", str(bundle.path))) == ("FLAIR", OTHERS)
    assert channelsOf(Request("intensity")) == ("", ())


def test_channels_are_filled_by_name_and_what_was_chosen_stays(
    scene: Any, owner: Any, scans: dict[str, Any], tmp_path: Path
) -> None:
    fillChannels(owner, OTHERS, scans["FLAIR"])
    assert chosenChannels(owner, OTHERS) == {"T1": scans["T1"], "T1C": scans["T1C"]}
    second = add(scene, tmp_path, "p1_t1_again")
    chooseChannel(owner, "T1", second)
    fillChannels(owner, OTHERS, scans["FLAIR"])
    assert chosenChannels(owner, OTHERS)["T1"] is second
    scene.RemoveNode(second)
    assert chosenChannels(owner, OTHERS)["T1"] is None


def test_two_volumes_of_one_contrast_and_results_are_left_to_the_user(
    scene: Any, owner: Any, scans: dict[str, Any], tmp_path: Path
) -> None:
    add(scene, tmp_path, "p2_t1")
    scans["T1C"].SetAttribute(attributes.ROLE, "heat")
    fillChannels(owner, OTHERS, scans["FLAIR"])
    assert chosenChannels(owner, OTHERS) == {"T1": None, "T1C": None}


def test_volumes_that_cannot_be_channels_are_named(scene: Any, scans: dict[str, Any]) -> None:
    flair, t1, t1c = scans.values()
    assert problemWithChannels(flair, "FLAIR", {"T1": t1, "T1C": t1c}) == ""
    assert "Choose the volume of the channel T1C" in problemWithChannels(flair, "FLAIR", {"T1": t1, "T1C": None})
    assert "p1_FLAIR is chosen for both FLAIR and T1" in problemWithChannels(flair, "FLAIR", {"T1": flair})
    assert "p1_t1 is chosen for both T1 and T1C" in problemWithChannels(flair, "FLAIR", {"T1": t1, "T1C": t1})
    t1.SetAndObserveTransformNodeID(mrmlscene.addTransform(scene, np.diag([1.0, 1.0, 1.0, 1.0])).GetID())
    assert "p1_t1 is under another transform than p1_FLAIR" in problemWithChannels(flair, "FLAIR", {"T1": t1})


@pytest.fixture
def detection(scene: Any, tmp_path: Path) -> Iterator[Detection]:
    made = Detection(
        scene, tmp_path / "work", settings=MemorySettings(), command=list(jobs.WORKER), environment=jobs.environment()
    )
    yield made
    made.close()


def test_three_volumes_are_run_together_and_the_result_lies_on_the_first(
    scene: Any, detection: Detection, scans: dict[str, Any], bundle: Bundle
) -> None:
    flair = scans["FLAIR"]
    brain = mrmlscene.addLabels(scene, jobs.brain(), flair, "brain")
    others = {name: scans[name] for name in OTHERS}
    nodes = detection.wait(detection.add(flair, Request("intensity", str(bundle.path)), brain, channels=others))
    made = attributes.document(nodes.anomalyMap)
    assert list(made["channels"]) == ["FLAIR", *OTHERS]
    assert made["input"]["title"] == "p1_FLAIR" and nodes.inputNode is flair
    assert "From left to right: FLAIR" in nodes.report.GetText()
    assert json.dumps(made)


def test_a_model_of_several_contrasts_is_not_run_on_one(
    detection: Detection, scans: dict[str, Any], bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="Choose the volume of the channel T1"):
        detection.add(scans["FLAIR"], Request("intensity", str(bundle.path)))
    assert not list((tmp_path / "work").glob("*"))
