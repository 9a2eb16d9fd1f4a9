"""Volume nodes and images: the same voxels and the same place, whatever the axes, in both directions.

MRML keeps a 4 x 4 matrix from voxel index to RAS, ITK keeps spacing, origin and direction in LPS. Here is the one place
where they meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

from diffusion_anomaly.detection.input_checks import contrast_doubt, stated_contrast
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.contrasts import contrast_of

from ..progresstext import shortened
from ..translation import tr as _
from . import attributes
from .sequences import frameOf

LPS = np.diag([-1.0, -1.0, 1.0])

# Cosine of the angle between two axes; a header in single precision stays below.
SHEAR = 1e-3


def ijkToRas(node: Any) -> np.ndarray:
    """The node's own matrix from voxel index to RAS, 4 x 4; a parent transform is not in it."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def problemWith(node: Any) -> str:
    """Why a volume cannot be analysed; empty when it can."""
    if node is None:
        return _("Choose a volume.")
    name = shortened(node.GetName() or "")
    if not node.IsA("vtkMRMLScalarVolumeNode") or node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("{name} is not a scalar volume.").format(name=name)
    if node.GetAttribute(attributes.ROLE) is not None:
        return _("{name} is a result of this module. Choose the scan itself.").format(name=name)
    image = node.GetImageData()
    if image is None or not image.GetNumberOfPoints() or image.GetPointData().GetScalars() is None:
        return _("{name} holds no voxels.").format(name=name)
    if image.GetNumberOfScalarComponents() != 1:
        return _("{name} has {count} values a voxel; expected one. Extract a channel first.").format(
            name=name, count=image.GetNumberOfScalarComponents()
        )
    if not _isOrthogonal(ijkToRas(node)):
        return _("The axes of {name} are not at right angles. Resample it first, for example with Crop Volume.").format(
            name=name
        )
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        return _("{name} is under a transform that bends. Harden it first, in the module Transforms.").format(name=name)
    return ""


def voxelsOf(node: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A volume's voxels, not copied, with its axes and its origin in LPS, without its parent transform.

    Raises:
        InputError: when it cannot be analysed, see ``problemWith``.
    """
    if problem := problemWith(node):
        raise InputError(problem, _("Choose another volume."))
    matrix = ijkToRas(node)
    return slicer.util.arrayFromVolume(node), LPS @ matrix[:3, :3], LPS @ matrix[:3, 3]


def imageOf(node: Any) -> sitk.Image:
    """A volume as an image of its own memory, see ``voxelsOf``."""
    voxels, _axes, _origin = voxelsOf(node)
    return onGrid(voxels, ijkToRas(node))


def onGrid(array: np.ndarray, matrix: np.ndarray) -> sitk.Image:
    """An image of voxels, k j i, in the place that a matrix from voxel index to RAS gives."""
    image = sitk.GetImageFromArray(array)
    axes = LPS @ matrix[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    image.SetOrigin((LPS @ matrix[:3, 3]).tolist())
    return image


def maskOf(node: Any, segmentId: str, volumeNode: Any) -> sitk.Image:
    """A brain mask on a volume's grid.

    Args:
        node: label map on the volume's grid, or segmentation.
        segmentId: which segment of a segmentation; empty for the first one.
        volumeNode: the scan.

    Raises:
        InputError: when it lies on another grid, or marks nothing.
    """
    if problem := problemWithMask(node):
        raise InputError(problem, _("Choose the mask of this scan, or none."))
    if node.IsA("vtkMRMLSegmentationNode"):
        marked = _segmentOn(node, segmentId, volumeNode)
    else:
        marked = _labelsOn(node, volumeNode)
    if not marked.any():
        raise InputError(
            _("The brain mask {name} marks no voxel of {volume}.").format(
                name=node.GetName(), volume=volumeNode.GetName()
            ),
            _("Choose the mask of this scan, or none."),
        )
    return onGrid(marked.astype(np.uint8), ijkToRas(volumeNode))


def problemWithMask(node: Any) -> str:
    """Why a node cannot be the brain mask at all; empty when it can, or when there is none."""
    if node is not None and node.GetAttribute(attributes.ROLE) not in (None, "brain"):
        return _("{name} marks what was found, not the brain. Choose another brain mask, or none.").format(
            name=node.GetName()
        )
    return ""


def notListed(scene: Any) -> dict[str, str]:
    """Why volumes of the scene are not offered as scans, by name; what the module made itself is left out."""
    reasons = {}
    for node in slicer.util.getNodesByClass("vtkMRMLVolumeNode", scene):
        if node.GetClassName() == "vtkMRMLScalarVolumeNode" or node.GetAttribute(attributes.ROLE) is not None:
            continue
        if node.IsA("vtkMRMLLabelMapVolumeNode"):
            reason = _("a label map; it can be the brain mask")
        elif node.IsA("vtkMRMLVectorVolumeNode"):
            reason = _("several values a voxel, such as colours; Vector to Scalar Volume makes a scan of it")
        else:
            reason = _("not a scalar volume; extract one first")
        reasons[node.GetName() or ""] = reason
    return reasons


def describe(node: Any) -> str:
    """A line on a volume: size, spacing, orientation, the contrast that its name or header gives away, the frame."""
    image = node.GetImageData()
    size = " × ".join(str(length) for length in image.GetDimensions())
    spacing = " × ".join(f"{edge:.3g}" for edge in node.GetSpacing())
    form = _("{size} voxels, {spacing} mm, {orientation}, {contrast}")
    if isPicture(node):
        form = _("{size} voxels, {spacing} mm, a single picture, {contrast}")
    line = form.format(
        size=size,
        spacing=spacing,
        orientation=orientationOf(ijkToRas(node)),
        contrast=contrastOf(node) or _("contrast unknown"),
    )
    frame = frameOf(node)
    return line if frame is None else _("{line}; {frame}, which alone is analysed").format(line=line, frame=frame)


def contrastOf(node: Any) -> str:
    """The contrast that a volume's name or header gives away; empty when neither does."""
    name = node.GetName() or ""
    return contrast_of(name) or stated_contrast(name, _header(node)) or ""


def contrastDoubt(node: Any, modality: str) -> str:
    """Why a volume may be of a contrast that a model does not know; empty when nothing says so."""
    return contrast_doubt(node.GetName() or "", _header(node), modality)


def isPicture(node: Any) -> bool:
    """Whether a volume is a single slice, as an X-ray film is."""
    return min(node.GetImageData().GetDimensions()) == 1


def orientationOf(matrix: np.ndarray) -> str:
    """How the slices of a volume lie: axial, coronal or sagittal, and by how many degrees they are tilted."""
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    normal = np.abs(axes[:, 2])
    name = (_("sagittal"), _("coronal"), _("axial"))[int(np.argmax(normal))]
    tilt = float(np.degrees(np.arccos(min(1.0, normal.max()))))
    return name if tilt < 1 else _("{orientation}, tilted by {degrees:.0f}°").format(orientation=name, degrees=tilt)


def axialSlices(node: Any, apart: float) -> int:
    """How many slices a model that wants them ``apart`` mm will see at most, for an estimate of time."""
    matrix = ijkToRas(node)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    axis = int(np.argmax(np.abs(matrix[2, :3]) / spacing))
    thickness = max(1, int(apart / spacing[axis] + 1e-3))
    return -(-node.GetImageData().GetDimensions()[axis] // thickness)


def _isOrthogonal(matrix: np.ndarray) -> bool:
    axes = matrix[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(matrix).all() or not (lengths > 0).all():
        return False
    axes = axes / lengths
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < SHEAR)


def _segmentOn(node: Any, segmentId: str, volumeNode: Any) -> np.ndarray:
    segmentation = node.GetSegmentation()
    if not segmentId and segmentation.GetNumberOfSegments():
        segmentId = segmentation.GetNthSegmentID(0)
    if segmentation.GetSegment(segmentId) is None:
        raise InputError(
            _("The segmentation {name} has no segment {segment!r}.").format(name=node.GetName(), segment=segmentId),
            _("Choose a segment, or no brain mask."),
        )
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volumeNode) != 0


def _labelsOn(node: Any, volumeNode: Any) -> np.ndarray:
    image, expected = node.GetImageData(), volumeNode.GetImageData()
    agrees = (
        image is not None
        and image.GetDimensions() == expected.GetDimensions()
        and np.allclose(ijkToRas(node), ijkToRas(volumeNode), atol=1e-3)
        and node.GetTransformNodeID() == volumeNode.GetTransformNodeID()
    )
    if not agrees:
        raise InputError(
            _("The brain mask {name} does not lie on the grid of {volume}.").format(
                name=node.GetName(), volume=volumeNode.GetName()
            ),
            _("Resample it onto the scan, or import it into a segmentation and choose that."),
        )
    return slicer.util.arrayFromVolume(node) != 0


def _header(node: Any) -> dict[str, str]:
    """What the DICOM header says of the contrast, as far as Slicer kept it."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene()) if node.GetScene() else None
    item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
    return {"series": hierarchy.GetItemName(item)} if item else {}
