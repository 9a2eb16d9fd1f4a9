"""What the objects of one result have in common: whose they are, what they refer to, and their UIDs.

highdicom takes the images that an object is derived from as a series of one kind or one multi-frame image. Scans come
in more shapes: some frames of a file, or many multi-frame files. So it is given a stand-in of one image a slice, with
the place of the true one, and what refers to a stand-in is then made to refer to the image it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import PYDICOM_ROOT_UID, generate_uid
from pydicom.valuerep import format_number_as_ds

from ... import __version__
from ...errors import InputError
from ...io.dicom.source import SourceImage, SourceSeries, read_source
from ...models.declaration import BRAIN, HEAD, INTRACRANIAL
from ...options import margin_of

if TYPE_CHECKING:
    from ..result import Result

MAKER = "DiffusionAnomaly"
PURPOSE = "For research use only. Not for diagnosis."
RESEARCH = "research use only"
SCHEME = "99DIFFANOMALY"
SCORE = Code("score", SCHEME, "Anomaly score: -log10 of the healthy tail probability")
CATEGORY, TYPE = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion
FAMILY = codes.cid7162.ArtificialIntelligence
_REGIONS = {BRAIN: codes.SCT.Brain, HEAD: codes.cid4031.Head, INTRACRANIAL: codes.cid4031.Head}
_MR, _CR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.1"
_STAND_IN = "2.25."
# Longest values of the representations LO and IS.
_LONGEST_TEXT, _HIGHEST_NUMBER = 64, 2**31 - 1


@dataclass(frozen=True)
class Context:
    """A result, and the series that it was made of.

    Attributes:
        result: of a detection.
        source: the series.
        labels: ``(slices, rows, columns)``, a finding's id in its voxels.
        frame_of_reference: UID of the space that the slices lie in; one of their own where the source names none.
        when: the result was made, by this machine's clock.
        region: code of the part of the body that was looked at; None where nothing states it.
    """

    result: Result
    source: SourceSeries
    labels: np.ndarray
    frame_of_reference: str
    when: datetime
    region: Code | None

    @classmethod
    def of(cls, result: Result) -> Context:
        """The context of a result.

        Raises:
            InputError: when the source's files are gone or changed, or the result's mask is none of its map.
        """
        volume = result.scan.reference
        source = read_source(volume.planes, volume.sha256, volume.source)
        header = source.header
        return cls(
            result,
            source,
            _labels(result),
            str((source.has_place and header.get("FrameOfReferenceUID")) or _own_space(header)),
            datetime.fromisoformat(result.provenance["date_utc"]).astimezone(),
            _region(result.provenance.get("region", BRAIN), header),
        )

    @property
    def model(self) -> dict[str, Any]:
        return self.result.provenance["model"]

    @property
    def parameters(self) -> dict[str, str]:
        """What identifies the algorithm beside its name and version."""
        margin = margin_of(self.result.provenance["options"])
        return {
            "method": self.result.provenance["method"],
            "threshold": f"{self.result.threshold:.6g}",
            **({"peak_margin": f"{margin:.6g}"} if margin else {}),
            "weights_sha256": self.model["sha256"],
            "engine": f"{MAKER} {__version__}",
        }

    def uid(self, what: str) -> str:
        """A UID of the result's: the same for the same source, model, options and device."""
        provenance = self.result.provenance
        named = {
            name: provenance[name] for name in ("method", "model", "options", "threshold", "device", "calibration")
        }
        # What fits into memory at a time changes rounding at most.
        named["options"] = {name: value for name, value in named["options"].items() if name != "batch_size"}
        if provenance["brain"]["source"] == "given by the user":
            named["brain"] = sitk.Hash(self.result.brain)
        images = [image.uid for image in self.source.images]
        about = [what, __version__, self.result.scan.reference.sha256, images, named]
        channels = {name: volume.sha256 for name, volume in self.result.scan.channels.items()}
        return str(generate_uid(PYDICOM_ROOT_UID, [json.dumps([*about, channels], sort_keys=True, default=str)]))

    def tracking(self, finding: int) -> tuple[str, str]:
        """UID and name by which a finding is the same in all objects."""
        return self.uid(f"finding {finding}"), f"Finding {finding}"

    def common(self, kind: str, number: int, description: str) -> dict[str, Any]:
        """Arguments of every object of highdicom.

        Args:
            kind: of the object.
            number: which of the result's series it is, from 1.
            description: of its series.
        """
        series_number = 100 * int(self.source.header.get("SeriesNumber") or 0) + number
        return {
            "series_instance_uid": self.uid(f"series of {kind}"),
            "sop_instance_uid": self.uid(kind),
            "series_number": series_number if 100 < series_number <= _HIGHEST_NUMBER else 9000 + number,
            "instance_number": 1,
            "manufacturer": MAKER,
            "manufacturer_model_name": short(f"{self.model['name']} {self.model['version']}"),
            "software_versions": short(__version__),
            "device_serial_number": short(self.model["sha256"]),
            "series_description": short(f"{description}, {RESEARCH}"),
        }

    def stand_ins(self, in_space: bool) -> list[Dataset]:
        """An image a slice, for highdicom.

        Args:
            in_space: whether they lie in the frame of reference, or as a lone picture in none.
        """
        source, distance = self.source, self.result.anomaly_map.GetSpacing()[2]
        made = []
        for number, image in enumerate(source.images, start=1):
            data = deepcopy(source.header) if number == 1 else Dataset()
            plane = image.plane
            data.SOPClassUID = _MR if in_space else _CR
            data.SOPInstanceUID = f"{_STAND_IN}{number}"
            data.StudyInstanceUID = source.header.StudyInstanceUID
            data.SeriesInstanceUID = source.header.SeriesInstanceUID
            data.Rows, data.Columns = plane.size
            data.pop("FrameOfReferenceUID", None)
            if in_space:
                data.FrameOfReferenceUID = self.frame_of_reference
                data.ImagePositionPatient = [format_number_as_ds(value) for value in plane.position]
                data.ImageOrientationPatient = [format_number_as_ds(value) for value in plane.axes]
                data.SliceThickness = format_number_as_ds(plane.thickness or distance)
                if len(source.images) > 1:
                    data.SpacingBetweenSlices = format_number_as_ds(distance)
            if in_space or source.has_scale:
                data.PixelSpacing = [format_number_as_ds(value) for value in plane.spacing]
            made.append(data)
        return made

    def finished(self, made: Dataset) -> Dataset:
        """An object with the true images in place of the stand-ins, without anything that differs from run to run."""
        data = Dataset(made)  # highdicom's own keep tables of the stand-ins
        data.file_meta, data.preamble = made.file_meta, made.preamble
        for start in ("InstanceCreation", "Content", "Series"):
            setattr(data, f"{start}Date", self.when.strftime("%Y%m%d"))
            setattr(data, f"{start}Time", self.when.strftime("%H%M%S"))
        for item in data.ContributingEquipmentSequence:
            item.ContributionDateTime = self.when.strftime("%Y%m%d%H%M%S")
        if "DimensionOrganizationSequence" in data:
            self._finish_image(data)
        return data

    def _finish_image(self, data: Dataset) -> None:
        header, region = self.source.header, self.result.provenance.get("region", BRAIN)
        if header.get("BodyPartExamined"):
            data.BodyPartExamined = header.BodyPartExamined
        elif region in _REGIONS:
            data.BodyPartExamined = _REGIONS[region].meaning.upper()
        if "FrameOfReferenceUID" not in data:
            data.PatientOrientation = header.get("PatientOrientation")
        uid = self.uid(f"dimensions of {data.Modality}")
        for item in (*data.DimensionOrganizationSequence, *data.DimensionIndexSequence):
            item.DimensionOrganizationUID = uid
        data.SourceImageSequence = [reference(image) for image in self.instances()]
        data.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [reference(image) for image in self.instances()]
        images = {f"{_STAND_IN}{number}": image for number, image in enumerate(self.source.images, start=1)}
        groups = (*data.SharedFunctionalGroupsSequence, *data.PerFrameFunctionalGroupsSequence)
        for item in (item for group in groups for item in group.get("DerivationImageSequence", ())):
            for named in item.SourceImageSequence:
                image = images.get(str(named.ReferencedSOPInstanceUID))  # segments share their references
                if image is not None:
                    named.update(reference(image, with_frame=True))

    def instances(self) -> Iterator[SourceImage]:
        """An image of every file of the source."""
        yield from {image.uid: image for image in self.source.images}.values()


def short(text: str) -> str:
    """Text as long as most elements take it, and in letters that none refuses."""
    return "".join(letter if letter.isprintable() and letter != "\\" else "?" for letter in text)[:_LONGEST_TEXT]


def reference(image: SourceImage, with_frame: bool = False) -> Dataset:
    """An item that refers to an image, or to its frame where it is one of several."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class, image.uid
    if with_frame and image.frame is not None:
        item.ReferencedFrameNumber = image.frame
    return item


def _own_space(header: Dataset) -> str:
    return str(generate_uid(PYDICOM_ROOT_UID, ["frame of reference", str(header.SeriesInstanceUID)]))


def _labels(result: Result) -> np.ndarray:
    values = sitk.GetArrayFromImage(result.labels())
    if not np.array_equal(values > 0, sitk.GetArrayViewFromImage(result.mask) > 0):
        raise InputError(
            "The result's mask is not the one that its threshold gives of its anomaly map.",
            "Give a result as a detector returned it, or as its at() gives it for another threshold.",
        )
    return values


def _region(region: str, header: Dataset) -> Code | None:
    if region in _REGIONS:
        return _REGIONS[region]
    for item in header.get("AnatomicRegionSequence") or ():
        stated = [item.get(name) for name in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")]
        if all(stated):
            return Code(*map(str, stated))
    names = {name.upper(): name for name in codes.cid4031.dir()}
    name = names.get(str(header.get("BodyPartExamined", "")).upper())
    return getattr(codes.cid4031, name) if name else None
