"""The report as DICOM Encapsulated PDF, for viewers that show neither segmentations nor parametric maps."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from highdicom.base import SOPClass
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from ...text import printable
from ..printing import printed
from ..report import Shown
from .context import PURPOSE, reference

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from .context import Context

MIME_TYPE = "application/pdf"


class EncapsulatedPdf(SOPClass):
    """A PDF that belongs to a patient's study.

    Args:
        context: of the result.
        content: the PDF.
    """

    def __init__(self, context: Context, content: bytes) -> None:
        source = context.source.header
        super().__init__(
            study_instance_uid=source.StudyInstanceUID,
            sop_class_uid=EncapsulatedPDFStorage,
            modality="DOC",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set=source.get("SpecificCharacterSet"),
            **context.common("report", 4, "Anomaly report"),
        )
        self.copy_patient_and_study_information(context.stand_ins(in_space=False)[0])
        self._add_contributing_equipment()
        self.ConversionType = "WSD"
        self.AcquisitionDateTime = None  # of which of the images it would be
        # The pages are headed by patient ID and study date, and by what the scan is called, which may be a name.
        self.BurnedInAnnotation = "YES"
        self.SourceInstanceSequence = [reference(image) for image in context.instances()]
        self.DocumentTitle = f"Anomaly report. {PURPOSE}"
        self.ConceptNameCodeSequence = []  # its titles are those of clinical documents
        self.VerificationFlag = "UNVERIFIED"
        self.MIMETypeOfEncapsulatedDocument = MIME_TYPE
        self.EncapsulatedDocumentLength = len(content)
        self.EncapsulatedDocument = content + b"\0" * (len(content) % 2)


def make_encapsulated_pdf(context: Context) -> Dataset:
    """The printed report on a result, headed by whose scan it is."""
    shown = replace(Shown.of(context.result), exam=exam_lines(context))
    return context.finished(EncapsulatedPdf(context, printed(shown)))


def exam_lines(context: Context) -> list[str]:
    """Patient ID, study date and series description, as far as they are stated; of an anonymous result nothing."""
    given = context.result.provenance["input"]
    if not given.get("path", True):
        return []
    header = context.source.header
    patient, date = str(header.get("PatientID") or ""), _day(str(header.get("StudyDate") or ""))
    description = str(given.get("metadata", {}).get("description", ""))
    told = (f"Patient ID {patient}" if patient else "", f"study of {date}" if date else "", description)
    return [printable(text) for text in told if text]


def _day(date: str) -> str:
    """A date as DICOM writes it, in words."""
    try:
        return datetime.strptime(date, "%Y%m%d").strftime("%d %B %Y")
    except ValueError:  # as of standards before DICOM
        return date
