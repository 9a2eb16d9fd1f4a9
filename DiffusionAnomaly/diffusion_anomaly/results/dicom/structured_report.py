"""The findings as a structured report: template TID 1500, a group a finding, which refers to its segment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    ReferencedSegmentationFrame,
    RelationshipTypeValues,
    SourceImageForMeasurement,
    SourceImageForSegmentation,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import PYDICOM_ROOT_UID, generate_uid

from .context import CATEGORY, FAMILY, MAKER, PURPOSE, SCHEME, SCORE, TYPE, Context, short

if TYPE_CHECKING:
    from ..findings import Finding
    from ..result import Result

_ML, _PIXELS = Code("ml", "UCUM", "milliliter"), Code("{pixels}", "UCUM", "pixels")
_COUNT, _FINDINGS = Code("findings", SCHEME, "Number of findings"), Code("{findings}", "UCUM", "findings")
_CENTRE = [
    Code(f"centre-{axis}", SCHEME, f"Centre, {axis} to the patient's {to}")
    for axis, to in (("x", "left"), ("y", "back"), ("z", "head"))
]
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
_CENTRE_PIXEL = [Code(f"centre-{axis}", SCHEME, f"Centre, {axis} of the image, from 0") for axis in ("column", "row")]


def make_structured_report(context: Context, anomaly_map: Dataset, segmentation: Dataset | None) -> Dataset:
    """The report on a result.

    Args:
        context: of the result.
        anomaly_map: its parametric map, which the scores are read from.
        segmentation: of its findings; None where there are none.
    """
    model = context.model
    device = DeviceObserverIdentifyingAttributes(
        str(generate_uid(PYDICOM_ROOT_UID, ["device", model["name"], model["version"], model["sha256"]])),
        name=short(f"{MAKER} {model['name']}"),
        manufacturer_name=MAKER,
        model_name=short(f"{model['name']} {model['version']}"),
        serial_number=short(model["sha256"]),
    )
    groups: list = [_whole(context)]
    if segmentation is not None:
        groups += [_group(context, finding, anomaly_map, segmentation) for finding in context.result.findings]
    content = MeasurementReport(
        ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device)),
        codes.cid100.ImagingProcedure,
        groups,
    )
    for text in (PURPOSE, *context.result.warnings):
        content[0].ContentSequence.append(TextContentItem(codes.DCM.Comment, text, RelationshipTypeValues.CONTAINS))
    evidence = [anomaly_map, *([] if segmentation is None else [segmentation]), *_instances(context)]
    made = Comprehensive3DSR(
        evidence,
        content,
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name=f"{MAKER} codes", responsible_organization=MAKER)],
        **context.common("findings", 3, "Anomaly findings"),
    )
    return context.finished(made)


def _whole(context: Context) -> MeasurementsAndQualitativeEvaluations:
    """On the scan as a whole, so that there is a report without findings too; says what made them, once for all."""
    result = context.result
    total = sum(finding.size for finding in result.findings)
    return MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(context.uid("whole scan"), "Whole scan"),
        finding_sites=_sites(context),
        algorithm_id=_algorithm(context),
        measurements=[
            Measurement(_COUNT, len(result.findings), _FINDINGS),
            _size(context, total),
            Measurement(_whole_score(result), result.score, codes.UCUM.NoUnits),
        ],
    )


def _whole_score(result: Result) -> Code:
    """The name of the method's score of the scan as a whole."""
    return Code("whole-image-score", SCHEME, short(f"Whole-image score: {result.provenance['score']['title']}"))


def _group(
    context: Context, finding: Finding, anomaly_map: Dataset, segmentation: Dataset
) -> PlanarROIMeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations:
    uid, name = context.tracking(finding.id)
    about = {
        "tracking_identifier": TrackingIdentifier(uid, name),
        "finding_category": CATEGORY,
        "finding_type": TYPE,
        "finding_sites": _sites(context, finding.place),
        "measurements": list(_measurements(context, finding, anomaly_map)),
    }
    where = (str(segmentation.SOPClassUID), str(segmentation.SOPInstanceUID))
    if context.result.is_picture:
        image = context.source.images[0]
        source = SourceImageForSegmentation(image.sop_class, image.uid, [image.frame] if image.frame else None)
        frame = _frame(segmentation, finding.id)
        segment = ReferencedSegmentationFrame(*where, frame, finding.id, source)
        del segment[0].ReferencedSOPSequence[0].ReferencedSegmentNumber  # the standard has one of the two alone
        return PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **about)
    series = SourceSeriesForSegmentation(str(context.source.header.SeriesInstanceUID))
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=ReferencedSegment(*where, finding.id, source_series=series), **about
    )


def _measurements(context: Context, finding: Finding, anomaly_map: Dataset) -> Iterator[Measurement]:
    yield _size(context, finding.size)
    scores = [SourceImageForMeasurement(str(anomaly_map.SOPClassUID), str(anomaly_map.SOPInstanceUID))]
    for derivation, value in ((codes.SCT.Maximum, finding.peak_score), (codes.SCT.Mean, finding.mean_score)):
        yield Measurement(SCORE, value, codes.UCUM.NoUnits, derivation=derivation, referenced_images=scores)
    right, anterior, superior = finding.centroid_ras
    place = (-right, -anterior, superior)
    if context.source.has_place:
        for name, value in zip(_CENTRE, place, strict=True):
            yield Measurement(name, value, codes.UCUM.Millimeter)
    else:
        index = context.result.anomaly_map.TransformPhysicalPointToContinuousIndex(place)
        for name, value in zip(_CENTRE_PIXEL, index[:2], strict=True):
            yield Measurement(name, value, _PIXELS)


def _size(context: Context, size: float) -> Measurement:
    if not context.result.is_picture:
        return Measurement(codes.SCT.Volume, round(size, 3), _ML)
    unit = codes.UCUM.SquareMillimeter if context.result.unit == "mm²" else _PIXELS
    return Measurement(codes.SCT.Area, round(size, 3), unit)


def _algorithm(context: Context) -> AlgorithmIdentification:
    parameters = [f"{name}={value}" for name, value in context.parameters.items()]
    return AlgorithmIdentification(
        short(context.model["name"]), short(context.model["version"]), parameters, FAMILY, MAKER
    )


def _sites(context: Context, place: str = "") -> list[FindingSite]:
    """The region, with the side that a finding's place names."""
    side = _SIDES.get(place.partition(" ")[0])
    return [FindingSite(context.region, side)] if context.region else []


def _frame(segmentation: Dataset, segment: int) -> int:
    """The only frame of a segment of a picture."""
    groups = (*segmentation.SharedFunctionalGroupsSequence, *segmentation.PerFrameFunctionalGroupsSequence)
    found = [
        max(1, number)
        for number, group in enumerate(groups)
        for item in group.get("SegmentIdentificationSequence", ())
        if item.ReferencedSegmentNumber == segment
    ]
    return found[0]


def _instances(context: Context) -> Iterator[Dataset]:
    for image in context.instances():
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = image.sop_class, image.uid
        data.StudyInstanceUID = context.source.header.StudyInstanceUID
        data.SeriesInstanceUID = context.source.header.SeriesInstanceUID
        yield data
