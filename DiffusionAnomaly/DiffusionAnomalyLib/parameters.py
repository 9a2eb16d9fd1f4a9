"""Everything that the user can set, in Slicer's parameter node: saved with the scene, restored with it.

The names are those of the widgets' ``SlicerParameterName`` in ``DiffusionAnomaly.ui``, and those that scenes are saved
with, so they stay as they are. -1 stands for "as the model has it" where a model brings its own default.
"""

from __future__ import annotations

from typing import Annotated, Union

from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper, parameterPack

from diffusion_anomaly.registry import DEFAULT_METHOD

from .detection import Request
from .scene.results import Wanted

MODEL_DEFAULT = -1


@parameterPack
class MethodParameters:
    """The method and its numbers.

    Attributes:
        name: of the method.
        model: folder of the model package; empty for the method's default.
        preset: name of the method's options, such as ``paper``; empty for the model's.
        steps: noise levels that are visited.
        noiseLevel: from or through which level.
        guidanceScale: how strongly the classifier guides the reconstruction.
    """

    name: str = DEFAULT_METHOD
    model: str = ""
    preset: str = ""
    steps: Annotated[int, WithinRange(MODEL_DEFAULT, 1000)] = MODEL_DEFAULT
    noiseLevel: Annotated[int, WithinRange(MODEL_DEFAULT, 1000)] = MODEL_DEFAULT
    guidanceScale: Annotated[float, WithinRange(MODEL_DEFAULT, 10000)] = MODEL_DEFAULT


@parameterPack
class RunParameters:
    """Where it runs and what is kept.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda:0``.
        seed: of all randomness.
        sliceSpacing: in mm.
        minVolumeMl: smaller findings are dropped.
        minArea: the same of a picture, in mm², or pixels where it has no scale.
        peakMargin: findings whose highest score does not exceed the threshold by this much are dropped.
        keepHealed: whether the pseudo-healthy reconstruction becomes a volume.
        keepFiles: whether the working files stay.
        anonymous: whether the scan's name is left out of provenance and report.
        force: whether a scan that the model seems not to know is looked at all the same.
    """

    device: str = "auto"
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0
    sliceSpacing: Annotated[float, WithinRange(MODEL_DEFAULT, 50)] = MODEL_DEFAULT
    minVolumeMl: Annotated[float, WithinRange(0, 100)] = 0.05
    minArea: Annotated[float, WithinRange(MODEL_DEFAULT, 1000000)] = MODEL_DEFAULT
    peakMargin: Annotated[float, WithinRange(MODEL_DEFAULT, 1000)] = MODEL_DEFAULT
    keepHealed: bool = False
    keepFiles: bool = False
    anonymous: bool = False
    force: bool = False


@parameterPack
class OutputParameters:
    """Which nodes are made, and how they are shown.

    Attributes:
        labelMap, segmentation: which forms of the mask are made.
        brain: whether the brain mask becomes a label map.
        opacity: of the anomaly map over the scan.
        colorScale: whether the views show what the colours stand for.
        show3D: whether the segmentation has a surface.
        belowThreshold: whether the map is shown below the threshold too.
        sideBySide: whether the scan is shown alone in one view, beside the map in another.
        eachFinding: whether each finding is a segment of its own as well.
    """

    labelMap: bool = True
    segmentation: bool = True
    brain: bool = True
    opacity: Annotated[float, WithinRange(0, 1)] = 0.5
    colorScale: bool = True
    show3D: bool = False
    belowThreshold: bool = False
    sideBySide: bool = False
    eachFinding: bool = False


@parameterNodeWrapper
class DiffusionAnomalyParameterNode:
    """The panel's state.

    Attributes:
        inputVolume: the scan.
        brainMask: label map or segmentation; None lets the brain be found.
        brainSegment: id of the segment of a segmentation.
        result: anomaly map of the result that is shown.
        prior: that of the prior exam which it is compared with.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    brainMask: Union[vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode, None]  # noqa: UP007 - what the wrapper reads
    brainSegment: str
    method: MethodParameters
    run: RunParameters
    output: OutputParameters
    result: vtkMRMLScalarVolumeNode
    prior: vtkMRMLScalarVolumeNode


def requestOf(parameters: DiffusionAnomalyParameterNode) -> Request:
    """What the panel requests."""
    method, run, output = parameters.method, parameters.run, parameters.output
    return Request(
        method=method.name,
        model=method.model or None,
        preset=method.preset or None,
        steps=_chosen(method.steps),
        noiseLevel=_chosen(method.noiseLevel),
        guidanceScale=_chosen(method.guidanceScale),
        device=run.device,
        seed=run.seed,
        sliceSpacing=_chosen(run.sliceSpacing),
        minVolumeMl=run.minVolumeMl,
        minArea=_chosen(run.minArea),
        peakMargin=_chosen(run.peakMargin),
        wanted=Wanted(labelMap=output.labelMap, segmentation=output.segmentation, brain=output.brain),
        keepReconstruction=run.keepHealed,
        keepFiles=run.keepFiles,
        anonymous=run.anonymous,
        force=run.force,
    )


def _chosen(number: float) -> float | None:
    return None if number < 0 else number
