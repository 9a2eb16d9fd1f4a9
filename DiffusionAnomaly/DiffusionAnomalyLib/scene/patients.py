"""Whose scan a volume is, as far as Slicer knows: only volumes from its DICOM database lie under a patient.

Two exams are compared on the word of whoever chose them. Where both say whose they are, that is checked.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import slicer

from ..translation import tr as _

PATIENT_ID, BIRTH_DATE = "PatientID", "PatientBirthDate"  # DICOM keywords


def identityOf(node: Any) -> dict[str, str]:
    """What tells the patient of a volume from others, by DICOM keyword; empty for a volume that is not from DICOM."""
    scene = node.GetScene()
    hierarchy = None if scene is None else slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if hierarchy is None or not item:
        return {}
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    patient = hierarchy.GetItemAncestorAtLevel(item, constants.GetDICOMLevelPatient())
    if not patient:
        return {}
    said = {
        PATIENT_ID: hierarchy.GetItemAttribute(patient, constants.GetDICOMPatientIDAttributeName())
        or hierarchy.GetItemUID(patient, constants.GetDICOMUIDName()),
        BIRTH_DATE: hierarchy.GetItemAttribute(patient, constants.GetDICOMPatientBirthDateAttributeName()),
    }
    return {keyword: value.strip().upper() for keyword, value in said.items() if value and value.strip()}


def digests(node: Any, key: bytes) -> dict[str, str]:
    """The same as digests, which tell the patients of one comparison apart.

    Without the key nobody can find a date of birth by trying all dates.

    Args:
        node: the volume.
        key: random, the same for the volumes that are compared, and kept nowhere.
    """
    return {
        keyword: hmac.new(key, value.encode(), hashlib.sha256).hexdigest()
        for keyword, value in identityOf(node).items()
    }


def doubt(prior: Any, current: Any) -> str:
    """Why two volumes may be of two patients; empty where nothing says so."""
    one, other = identityOf(prior), identityOf(current)
    differ = {keyword for keyword in one.keys() & other.keys() if one[keyword] != other[keyword]}
    if not differ:
        return ""
    if differ == {PATIENT_ID}:
        said = _("{prior} and {current} are of two patients by their patient ID.")
    elif differ == {BIRTH_DATE}:
        said = _("{prior} and {current} are of two patients by their date of birth.")
    else:
        said = _("{prior} and {current} are of two patients by their patient ID and date of birth.")
    return said.format(prior=prior.GetName(), current=current.GetName())
