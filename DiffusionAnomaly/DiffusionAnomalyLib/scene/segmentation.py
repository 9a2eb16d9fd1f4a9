"""The mask as MRML knows it: a label map volume, and a segmentation whose segment has the codes that DICOM wants."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..translation import tr as _
from .livethreshold import LiveThreshold, Thresholded
from .volumes import ijkToRas

SEGMENT = "anomaly"
COLOR = (0.20, 0.90, 0.35)  # green stands out from scan (grey) and anomaly map (purple to yellow)

# SNOMED CT codes of DICOM PS3.16, CID 7150 and CID 7159; the region is the brain.
TERMINOLOGY = (
    "Segmentation category and type - 3D Slicer General Anatomy list"
    "~SCT^49755003^Morphologically Abnormal Structure"
    "~SCT^52988006^Lesion"
    "~^^"
    "~Anatomic codes - DICOM master list"
    "~SCT^12738006^Brain"
    "~^^"
)


# As many as one sees apart; at the lowest threshold there may be thousands.
MOST_SEGMENTS = 200

LONGEST_ALGORITHM_NAME = 64  # DICOM's value representation LO


def makeLabelMap(scene: Any, name: str, inputNode: Any) -> Any:
    """An empty label map on the scan's grid, in the scene."""
    node = slicer.vtkMRMLLabelMapVolumeNode()
    node.SetName(name)
    node.SetAndObserveImageData(_zeros(inputNode.GetImageData().GetDimensions()))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijkToRas(inputNode)))
    node = scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    return node


def makeEmpty(scene: Any, name: str, inputNode: Any) -> Any:
    """A segmentation without a segment on the scan's grid, in the scene, to be seen as an outline."""
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName(name)
    node = scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(inputNode)
    node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), inputNode.GetID())
    display = node.GetDisplayNode()
    display.SetOpacity2DFill(0.0)  # the outline shows where, the colours under it show how much
    display.SetVisibility2DOutline(True)
    return node


def makeSegmentation(scene: Any, name: str, segmentName: str, inputNode: Any, live: LiveThreshold) -> Any:
    """A segmentation with one empty segment over the anomaly map's box, in the scene."""
    node = makeEmpty(scene, name, inputNode)
    segment = slicer.vtkSegment()
    segment.SetName(segmentName)
    segment.SetColor(*COLOR)
    segment.SetTerminology(TERMINOLOGY)
    segment.AddRepresentation(_binary(), _boxImage(live, inputNode))
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(_binary())
    segmentation.AddSegment(segment, SEGMENT)
    return node


def nameAlgorithm(node: Any, name: str) -> None:
    """Say what made the segment; without it, a DICOM SEG would call it drawn by hand."""
    _say(node.GetSegmentation().GetSegment(SEGMENT), name)


def fillLabelMap(node: Any, live: LiveThreshold, found: Thresholded) -> None:
    """Write a mask into the label map, in place; one that was cropped or resampled by hand is left alone."""
    if node.GetImageData() is None or slicer.util.arrayFromVolume(node).shape != live.shape:
        return
    slicer.util.arrayFromVolume(node)[live.box] = found.mask
    slicer.util.arrayFromVolumeModified(node)


def fillSegmentation(node: Any, anomalyMap: Any, live: LiveThreshold, found: Thresholded) -> None:
    """Write a mask into the segment, in place, on the anomaly map's grid whatever grid it is edited on."""
    segmentation = node.GetSegmentation()
    segment = segmentation.GetSegment(SEGMENT)
    if segment is None:  # the user has deleted it
        return
    image = segment.GetRepresentation(_binary())
    scalars = image.GetPointData().GetScalars() if image else None
    isOurs = scalars is not None and image.GetExtent() == _extent(live) and _isOnGrid(image, anomalyMap)
    if not isOurs or _isShared(segmentation, image):
        # The segment was edited, or was stored with a smaller extent, or together with others.
        image = _boxImage(live, anomalyMap)
        segment.AddRepresentation(_binary(), image)
        scalars = image.GetPointData().GetScalars()
    segment.SetLabelValue(1)
    vtk_to_numpy(scalars).reshape(found.mask.shape)[:] = found.mask
    scalars.Modified()
    image.Modified()


def fillFindings(
    node: Any, anomalyMap: Any, live: LiveThreshold, found: Thresholded, names: Mapping[int, str], algorithm: str
) -> None:
    """Make a segment of each finding that is left in the mask, in place of those that were there."""
    segmentation = node.GetSegmentation()
    modifying = node.StartModify()
    segmentation.RemoveAllSegments()
    segmentation.SetSourceRepresentationName(_binary())
    start = np.array([part.start for part in live.box])
    for finding in found.findings[:MOST_SEGMENTS]:
        low, high = (np.array(corner[::-1]) - start for corner in finding.bounding_box)
        box = tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))
        mask = ((found.labels[box] == finding.id) & (found.mask[box] != 0)).astype(np.uint8)
        if not mask.any():  # rejected
            continue
        segment = slicer.vtkSegment()
        segment.SetName(names.get(finding.id) or _("Finding {number}").format(number=finding.id))
        segment.SetColor(*_colorOf(finding.id))
        segment.SetTerminology(TERMINOLOGY)
        first = [int(index) for index in (low + start)[::-1]]
        segment.AddRepresentation(_binary(), _orientedImage(mask, first, anomalyMap))
        segmentation.AddSegment(segment, f"finding-{finding.id}")
        _say(segment, algorithm)
    node.EndModify(modifying)


def _colorOf(number: int) -> tuple[float, float, float]:
    """Colours of findings: neighbours in rank lie far apart on the circle, by the golden ratio."""
    return colorsys.hsv_to_rgb((0.35 + 0.618034 * (number - 1)) % 1.0, 0.75, 0.95)


def _say(segment: Any, algorithm: str) -> None:
    segment.SetTag("DICOM.SegmentAlgorithmType", "AUTOMATIC")
    segment.SetTag("DICOM.SegmentAlgorithmName", algorithm[:LONGEST_ALGORITHM_NAME])


def patchLabelMap(node: Any, live: LiveThreshold, before: np.ndarray, after: np.ndarray) -> None:
    """Change the label map where two masks of the box differ, and nowhere else: what was edited by hand stays."""
    if node.GetImageData() is None or slicer.util.arrayFromVolume(node).shape != live.shape:
        return
    changed = before != after
    slicer.util.arrayFromVolume(node)[live.box][changed] = after[changed]
    slicer.util.arrayFromVolumeModified(node)


def patchSegmentation(node: Any, anomalyMap: Any, live: LiveThreshold, before: np.ndarray, after: np.ndarray) -> None:
    """The same of the segment, on whatever grid it is edited."""
    segmentation = node.GetSegmentation()
    segment = segmentation.GetSegment(SEGMENT)
    if segment is None:
        return
    mask = maskOf(node, anomalyMap)
    changed = before != after
    mask[live.box][changed] = after[changed]
    segment.SetLabelValue(1)
    segment.AddRepresentation(_binary(), _orientedImage(mask, (0, 0, 0), anomalyMap))


def isEdited(node: Any, anomalyMap: Any, live: LiveThreshold, mask: np.ndarray) -> bool:
    """Whether the segment is another one than the mask of the box that was last written: somebody has edited it."""
    if node.GetSegmentation().GetSegment(SEGMENT) is None:
        return False
    expected = np.zeros(live.shape, dtype=bool)
    expected[live.box] = mask != 0
    return not np.array_equal(maskOf(node, anomalyMap) != 0, expected)


def maskOf(node: Any, anomalyMap: Any, name: str = SEGMENT) -> np.ndarray:
    """A segment on the anomaly map's grid, uint8, 0 or 1, k j i, whatever grid it was edited on; 0 where there is none.

    Slicer's own function for it leaves a display node in the scene each time.
    """
    mask = np.zeros(slicer.util.arrayFromVolume(anomalyMap).shape, dtype=np.uint8)
    segment = node.GetSegmentation().GetSegment(name)
    image = None if segment is None else segment.GetRepresentation(_binary())
    if image is None or image.IsEmpty():
        return mask
    if not _isOnGrid(image, anomalyMap):
        onto, resampled = _orientedImage(mask, (0, 0, 0), anomalyMap), slicer.vtkOrientedImageData()
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(image, onto, resampled)
        image = resampled
    extent = image.GetExtent()
    bounds = [(max(extent[2 * axis], 0), min(extent[2 * axis + 1] + 1, mask.shape[2 - axis])) for axis in range(3)]
    if any(start >= stop for start, stop in bounds):
        return mask
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    values = values.reshape([extent[2 * axis + 1] - extent[2 * axis] + 1 for axis in (2, 1, 0)])
    within = tuple(slice(bounds[a][0] - extent[2 * a], bounds[a][1] - extent[2 * a]) for a in (2, 1, 0))
    mask[tuple(slice(*bounds[axis]) for axis in (2, 1, 0))] = values[within] == segment.GetLabelValue()
    return mask


def versionOf(node: Any) -> int:
    """Changes when the segment may have been edited."""
    segment = node.GetSegmentation().GetSegment(SEGMENT)
    image = None if segment is None else segment.GetRepresentation(_binary())
    scalars = None if image is None else image.GetPointData().GetScalars()
    return 0 if scalars is None else max(image.GetMTime(), scalars.GetMTime())


def copyOf(node: Any, name: str) -> Any:
    """A copy that belongs to no result, so that nothing changes it any more, beside the node in the hierarchy."""
    scene = node.GetScene()
    copy = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
    copy.GetSegmentation().DeepCopy(node.GetSegmentation())
    reference = node.GetReferenceImageGeometryReferenceRole()
    copy.SetNodeReferenceID(reference, node.GetNodeReferenceID(reference))
    copy.SetAndObserveTransformNodeID(node.GetTransformNodeID())
    copy.CreateDefaultDisplayNodes()
    copy.GetDisplayNode().SetVisibility(False)
    return copy


def _isShared(segmentation: Any, image: Any) -> bool:
    """Slicer stores segments that do not overlap in one image; writing into it would write into the others too."""
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    others = (segmentation.GetSegment(name) for name in ids if name != SEGMENT)
    return any(other.GetRepresentation(_binary()) is image for other in others)


def _isOnGrid(image: Any, anomalyMap: Any) -> bool:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return bool(np.allclose(slicer.util.arrayFromVTKMatrix(matrix), ijkToRas(anomalyMap), atol=1e-6))


def showSurface(node: Any, shown: bool) -> None:
    """Make the surface when it is to be shown, and take it away again: each new threshold would make it anew."""
    if shown:
        node.CreateClosedSurfaceRepresentation()
    else:
        node.RemoveClosedSurfaceRepresentation()
    node.GetDisplayNode().SetVisibility3D(shown)


def isSurfaceShown(node: Any) -> bool:
    """Whether the segmentation carries a surface."""
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return node.GetSegmentation().ContainsRepresentation(name)


def _binary() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _zeros(dimensions: tuple[int, int, int]) -> Any:
    image = vtk.vtkImageData()
    image.SetDimensions(dimensions)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.GetPointData().GetScalars().Fill(0)
    return image


def _extent(live: LiveThreshold) -> tuple[int, ...]:
    return tuple(bound for part in reversed(live.box) for bound in (part.start, part.stop - 1))


def _boxImage(live: LiveThreshold, inputNode: Any) -> Any:
    """An empty oriented image over the anomaly map's box, in the scan's own indices."""
    shape = tuple(part.stop - part.start for part in live.box)
    return _orientedImage(np.zeros(shape, dtype=np.uint8), [part.start for part in live.box][::-1], inputNode)


def _orientedImage(mask: np.ndarray, first: Sequence[int], inputNode: Any) -> Any:
    """A mask, k j i, whose first voxel has these indices i, j, k of the scan's grid."""
    image = slicer.vtkOrientedImageData()
    ends = zip(first, mask.shape[::-1], strict=True)
    image.SetExtent([bound for start, count in ends for bound in (start, start + count - 1)])
    scalars = numpy_to_vtk(mask.ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(ijkToRas(inputNode)))
    return image
