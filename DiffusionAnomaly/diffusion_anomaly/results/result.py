"""What a detection gives: what was found, and what it tells on the way."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..io.volume import Scan
from ..models.declaration import BRAIN
from ..options import margin_of
from ..text import counted
from .findings import Finding, reached, segment, size_unit, sized
from .places import with_places

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True)
class Progress:
    """How far a detection is.

    Attributes:
        stage: ``brain``, ``load``, ``detect`` or ``findings``, in this order.
        done, total: units of this stage.
        elapsed: seconds since the detection began.
        remaining: seconds the stage will still take; None when there is nothing to tell it from.
    """

    stage: str
    done: int
    total: int
    elapsed: float
    remaining: float | None


@dataclass(frozen=True)
class Started:
    """The model is ready: what runs where. See ``worker.protocol.Started``."""

    device: str
    model: str | None
    version: str | None
    slices: int


@dataclass(frozen=True, repr=False)
class Result:
    """What was found in a scan.

    Attributes:
        scan: what was looked at.
        anomaly_map: float32 on the scan's grid, ``-log10`` of the healthy tail probability, 0 outside the brain.
        mask: uint8, where the anomaly score reaches ``threshold``, without findings that are too small or too low.
        findings: the mask's components.
        brain: uint8 mask that everything was confined to.
        score: whole-image score; see ``score_title`` in the provenance.
        score_warning: set when the score says that the model does not know such scans.
        threshold: anomaly score from which a voxel is in the mask.
        provenance: what was run on what, JSON-ready.
        warnings: reasons to doubt the result, ``score_warning`` among them.
        timings: seconds by stage.
        reconstruction: float32, each channel with its brain as the model would have it in health; None unless asked
            for, or where the method has no such thing.
        slice_scores: ``(slices,)`` what ``score`` is the median of, from below; NaN for slices that were not looked at.
    """

    scan: Scan
    anomaly_map: sitk.Image
    mask: sitk.Image
    findings: list[Finding]
    brain: sitk.Image
    score: float
    score_warning: str | None
    threshold: float
    provenance: dict[str, Any]
    warnings: list[str]
    timings: dict[str, float]
    reconstruction: dict[str, sitk.Image] | None = None
    slice_scores: np.ndarray | None = None

    @property
    def name(self) -> str:
        """What the scan is called in headings."""
        return str(self.provenance["input"]["title"])

    @property
    def is_picture(self) -> bool:
        """Whether findings have areas: one slice, of which the model looks at the whole image."""
        return self.provenance["options"].get("min_area") is not None

    @property
    def peak_margin(self) -> float:
        """By how much a finding's highest score exceeds the threshold at least."""
        return margin_of(self.provenance["options"])

    @property
    def unit(self) -> str:
        """What findings' sizes are counted in."""
        return size_unit(self.anomaly_map.GetSpacing(), self.is_picture)

    def at(self, threshold: float, min_volume_ml: float | None = None, peak_margin: float | None = None) -> Result:
        """The same with another threshold: mask and findings follow, nothing is run again.

        Args:
            threshold: anomaly score from which a voxel is in the mask, above 0.
            min_volume_ml: smaller findings are dropped; None keeps what was in force.
            peak_margin: so are findings whose highest score does not exceed the threshold by this much; None likewise.

        Raises:
            InputError: for a number that cannot be.
        """
        options = self.provenance["options"]
        least = options["min_volume_ml"] if min_volume_ml is None else min_volume_ml
        margin = self.peak_margin if peak_margin is None else peak_margin
        mask, _, findings = segment(self.anomaly_map, threshold, least, self.brain, options.get("min_area"), margin)
        findings = with_places(findings, self.brain, self.provenance.get("region", BRAIN))
        provenance = {
            **self.provenance,
            "threshold": {"heat": threshold, "source": "chosen by the user after the run"},
            "options": {**options, "threshold": threshold, "min_volume_ml": least, "peak_margin": margin},
        }
        return replace(self, mask=mask, findings=findings, threshold=threshold, provenance=provenance)

    def labels(self) -> sitk.Image:
        """Each finding's id in its voxels, 0 elsewhere, on the scan's grid."""
        options = self.provenance["options"]
        least, area = options["min_volume_ml"], options.get("min_area")
        return segment(self.anomaly_map, self.threshold, least, self.brain, area, self.peak_margin)[1]

    def save(
        self, directory: Path | str, overwrite: bool = False, dicom: bool = False, dicom_pdf: bool = False
    ) -> dict[str, Path]:
        """Write all files of a detection, see ``saving.save``.

        Args:
            directory: where to; made if it does not exist.
            overwrite: whether the result of another scan may make room; one of this scan always does.
            dicom: whether the mask, the anomaly map and the findings are written as DICOM objects too, for a scan that
                was read from DICOM.
            dicom_pdf: whether they are, and the report as a PDF in DICOM with them.

        Raises:
            InputError: when something else is in the way, or something cannot be written. Also when no DICOM objects
                can be made; all other files are written then.
        """
        from .saving import save

        return save(self, directory, overwrite, dicom, dicom_pdf)

    def to_dicom(self, pdf: bool = False) -> dict[str, Dataset]:
        """Segmentation, parametric map and structured report, see ``dicom.to_dicom``.

        Args:
            pdf: whether the report is made too, as an encapsulated PDF.

        Raises:
            InputError: when the scan was not read from DICOM, or its files are gone or changed.
        """
        from .dicom import to_dicom

        return to_dicom(self, pdf)

    def __repr__(self) -> str:
        total = sized(sum(finding.size for finding in self.findings), self.unit)
        model = self.provenance["model"]
        return (
            f"<Result of {self.name}: {counted(len(self.findings), 'finding')}, {total} at an anomaly score of "
            f"{reached(self.threshold, self.peak_margin)}; {model['name']} {model['version']}>"
        )

    def _repr_html_(self) -> str:
        """How a notebook shows it: slices with the anomaly map, and the findings."""
        from .notebook import render_notebook

        return render_notebook(self)


def statistics(result: Result) -> dict[str, Any]:
    """The result's numbers: the findings in order of rank, and what they add up to."""
    return {
        "findings": [_record(finding) for finding in result.findings],
        "volume_ml": sum(finding.volume_ml for finding in result.findings),
        "size": sum(finding.size for finding in result.findings),
        "unit": result.unit,
        "peak_heat": max((finding.peak_score for finding in result.findings), default=_peak(result.anomaly_map)),
        "threshold": result.threshold,
        "score": result.score,
        "score_warning": result.score_warning,
    }


def _peak(anomaly_map: sitk.Image) -> float:
    return float(sitk.GetArrayViewFromImage(anomaly_map).max())


def _record(finding: Finding) -> dict[str, Any]:
    """A finding with the keys of the first version of the event."""
    record = asdict(finding)
    record["peak_heat"], record["mean_heat"] = record.pop("peak_score"), record.pop("mean_score")
    del record["centroid_pixel" if finding.centroid_pixel is None else "centroid_ras"]
    return record
