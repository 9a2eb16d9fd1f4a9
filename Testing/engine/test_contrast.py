"""Which contrast a name says: suffixes and words do, labels of subjects, sessions and acquisitions do not."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_anomaly.detection.input_checks import stated_contrast

# Suffixes and modality words, written as people write them.
SUFFIXES = {
    "T1w": "T1",
    "t1": "T1",
    "MPRAGE": "T1",
    "T1ce": "T1",
    "T2w": "T2",
    "FLAIR": "FLAIR",
    "flair": "FLAIR",
    "PDw": "PD",
    "dwi": "diffusion-weighted",
    "SWI": "SWI",
    "CT": "CT",
    "pet": "PET",
}
ENTITIES = ("sub", "ses", "acq", "run", "space", "desc", "rec", "ce", "dir", "part", "mod", "trc", "label", "echo")
# Values that look like contrasts, and others. What acq-FLAIR does is told apart below.
VALUES = ("t1", "T2", "T1w", "ct", "CT", "pet", "pt", "PD", "pd012", "swi", "01", "baseline", "mni152")
ENDINGS = (".nii.gz", ".nrrd", ".mha", "")
NO_CONTRAST = ("", "bold", "scan", "brain", "mask", "correct1", "petra", "ctrl", "flairy")


@given(
    entities=st.lists(st.tuples(st.sampled_from(ENTITIES), st.sampled_from(VALUES)), max_size=5),
    suffix=st.sampled_from(sorted(SUFFIXES)),
    ending=st.sampled_from(ENDINGS),
)
def test_the_suffix_alone_says_the_contrast(entities: list[tuple[str, str]], suffix: str, ending: str) -> None:
    name = "_".join([*(f"{key}-{value}" for key, value in entities), suffix])
    assert stated_contrast(f"/data/T2/{name}{ending}", {}) == SUFFIXES[suffix]


@given(
    entities=st.lists(
        st.tuples(st.sampled_from(ENTITIES), st.sampled_from([*VALUES, "FLAIR", "flair3d"])), min_size=1, max_size=5
    ),
    suffix=st.sampled_from(NO_CONTRAST),
    ending=st.sampled_from(ENDINGS),
)
def test_without_such_a_suffix_nothing_is_said(entities: list[tuple[str, str]], suffix: str, ending: str) -> None:
    name = "_".join([*(f"{key}-{value}" for key, value in entities), *([suffix] if suffix else [])])
    assert stated_contrast(f"{name}{ending}", {}) is None


@pytest.mark.parametrize(
    "code", ["pt-007", "PT-007", "pt_007", "pt007", "PT012", "Pt 3", "pt", "PD-012", "pd_7", "PD012"]
)
def test_the_code_of_a_patient_is_no_contrast(code: str) -> None:
    assert stated_contrast(f"{code}.nii.gz", {}) is None
    assert stated_contrast("scan.nii.gz", {"description": code}) is None
    for separator, (suffix, contrast) in product("_- ", SUFFIXES.items()):
        assert stated_contrast(f"{code}{separator}{suffix}.nii.gz", {}) == contrast


@pytest.mark.parametrize("time", ["visit_t1", "timepoint-T2", "session t1", "Visit2", "timepointT1"])
def test_a_time_is_no_contrast(time: str) -> None:
    assert stated_contrast(f"{time}.nii.gz", {}) is None
    assert stated_contrast(f"{time}_flair.nii.gz", {}) == "FLAIR"
    assert stated_contrast(f"T1w_{time}.nii.gz", {}) == "T1"


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("open-ms-patient26-FLAIR.nii.gz", "FLAIR"),
        ("patient-FLAIR.nii.gz", "FLAIR"),
        ("BraTS-GLI-00000-000-t1c.nii.gz", "T1"),
        ("sub-01-FLAIR.nii.gz", "FLAIR"),
        ("3: AX T1 post", "T1"),
        ("t2_flair_tra.nii", "FLAIR"),
        ("t2_tirm_tra_dark-fluid", "FLAIR"),
        ("t2_spc_da-fl_dark_fluid_sag", "FLAIR"),
        ("t2_tirm_tra_dark.nii", "T2"),
        ("T1-FLAIR.nii", "FLAIR"),
        ("T1_and_CT.nii", None),
        ("PD_T2.nii", None),
        ("PD.nii", "PD"),
        ("CT-012.nii.gz", "CT"),
        ("sub-01_ses-t1_PD.nii.gz", "PD"),
    ],
)
def test_names_without_entities_say_what_their_words_say(name: str, contrast: str | None) -> None:
    assert stated_contrast(name, {}) == contrast


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("sub-01_acq-FLAIR_T2w.nii.gz", None),
        ("sub-01_acq-3DFlair_T2w.nii.gz", None),
        ("sub-01_acq-FLAIR_FLAIR.nii.gz", "FLAIR"),
        ("sub-01_acq-T2_FLAIR.nii.gz", "FLAIR"),
        ("sub-01_acq-mprage_T1w.nii.gz", "T1"),
        ("sub-01_acq-FLAIR.nii.gz", None),
    ],
)
def test_an_acquisition_that_contradicts_the_suffix_leaves_it_open(name: str, contrast: str | None) -> None:
    assert stated_contrast(name, {}) == contrast


def test_pt_is_pet_as_a_modality_only() -> None:
    assert stated_contrast("scan.nii", {"modality": "PT"}) == "PET"
    assert stated_contrast("scan.nii", {"modality": "PT", "description": "Head"}) == "PET"
    assert stated_contrast("scan.nii", {"modality": "MR", "description": "pt 12"}) is None
    assert stated_contrast("scan.nii", {"modality": "MR", "description": "pt 12 FLAIR"}) == "FLAIR"


def test_the_header_goes_before_the_name() -> None:
    assert stated_contrast("flair.nii", {"description": "AX T1 post"}) == "T1"
    assert stated_contrast("sub-01_FLAIR.nii", {"description": "ses-t1"}) == "FLAIR"
