"""The report as a PDF: what it says, read back with pypdf."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image
from pypdf import PdfReader

from diffusion_anomaly.io.volume import Scan
from diffusion_anomaly.results.printing import FINDINGS_PRINTED, printed
from diffusion_anomaly.results.report import Shown
from diffusion_anomaly.results.result import Result


@pytest.fixture
def shown(small_result: Result) -> Shown:
    assert small_result.findings
    return Shown.of(small_result)


def text_of(content: bytes) -> str:
    """All of it, with single blanks between words."""
    return " ".join(" ".join(page.extract_text() for page in PdfReader(BytesIO(content)).pages).split())


def test_it_gives_each_finding_with_its_place_in_full(shown: Shown) -> None:
    place = "right basal ganglia or thalamus"
    findings = [replace(finding, place=place) for finding in shown.findings]
    text = text_of(printed(replace(shown, findings=findings)))
    assert text.count(place) == len(findings)
    assert "Place, roughly" in text and "In order of volume times mean score. Places are told from" in text
    for finding in findings:
        assert f"{finding.volume_ml:.2f} {finding.peak_score:.2f} {finding.mean_score:.2f}" in text
    bare = text_of(printed(replace(shown, findings=[replace(finding, place="") for finding in findings])))
    assert "Place, roughly" not in bare and "Places" not in bare  # no column of nothing


def test_what_a_score_means_is_told_in_whole_sentences(shown: Shown) -> None:
    spread = {"heat": [1, 2, 3], "upper": [0.2, 0.03, 0.00412], "scans": 12}
    made = {**shown.provenance, "calibration_spread": spread, "calibration_end": 0.5}
    text = text_of(printed(replace(shown, provenance=made)))
    assert "one healthy voxel in a thousand looks like this. Single scans differ: " in text
    assert (
        "up to one healthy voxel in 240 reaches 3. Scores above 0.50, the threshold among them, are extrapolated: "
        in text
    )
    assert "too few to be counted. " in text


def test_the_smallest_size_of_a_picture_is_its_area_if_that_is_0_too(shown: Shown) -> None:
    options = {**shown.provenance["options"], "min_area": 0.0, "min_volume_ml": 0.05}
    text = text_of(printed(replace(shown, provenance={**shown.provenance, "options": options})))
    assert "of at least 0 " in text and "0.05" not in text.partition("of at least")[2][:12]


def test_what_a_reader_said_is_there_in_full(shown: Shown) -> None:
    comment = "Seen before, " * 20 + "the end."
    said = replace(shown, names={1: "the large one"}, reviews={1: "accepted"}, comments={1: comment})
    text = text_of(printed(said))
    assert "1 · the large one" in text and "accepted" in text and comment in text


def test_every_contrast_is_named_and_shown(small_result: Result) -> None:
    volume = small_result.scan.reference
    several = replace(small_result, scan=Scan({"FLAIR": volume, "T1ce": volume, "T2": volume}))
    one, three = (printed(Shown.of(result)) for result in (small_result, several))
    assert "FLAIR, the same with the anomaly map and the mask's outline, T1ce, T2." in text_of(three)
    # By their shapes: a pair in the one, four side by side in the other; what is longer is the colour bar.
    shapes = [
        [Image.open(BytesIO(image.data)).size for page in PdfReader(BytesIO(pdf)).pages for image in page.images]
        for pdf in (one, three)
    ]
    pair, strip = (max(ratio for w, h in sizes if (ratio := w / h) < 15) for sizes in shapes)
    assert strip == pytest.approx(2 * pair, rel=0.02)


def test_of_a_request_with_one_of_several_contrasts_it_says_which(shown: Shown) -> None:
    """Slicer asks for the first contrast alone."""
    provenance = {**shown.provenance, "channels": {"FLAIR": {}, "T1": {}}}
    assert "left to right: FLAIR, the same" in text_of(printed(replace(shown, channels={}, provenance=provenance)))


def test_many_findings_go_over_pages_each_with_the_tables_head(shown: Shown) -> None:
    finding = shown.findings[0]
    many = [replace(finding, id=number) for number in range(1, FINDINGS_PRINTED + 8)]
    reader = PdfReader(BytesIO(printed(replace(shown, findings=many))))
    heads = [page.extract_text().count("Volume (ml)") for page in reader.pages]
    assert sum(heads) > 2 and max(heads) == 1
    text = " ".join(page.extract_text() for page in reader.pages)
    assert "7 more, of lower rank, are not printed." in text
    assert f"1 / {len(reader.pages)}" in reader.pages[0].extract_text()


def test_the_same_result_gives_the_same_bytes_and_its_own_date(shown: Shown) -> None:
    content = printed(shown)
    assert printed(shown) == content
    created = PdfReader(BytesIO(content)).metadata
    assert created is not None and created.creation_date is not None
    assert created.creation_date.isoformat() == shown.provenance["date_utc"]


def test_fonts_are_cut_alike_whatever_the_hash_seed() -> None:
    """Parts of matplotlib's PDF come from sets."""
    code = (
        "import sys, hashlib; from datetime import datetime, timezone\n"
        "from diffusion_anomaly.results.printing import _Sheets\n"
        "sheets = _Sheets(); sheets.write('Anomaly score −log10 · Ünser', 9)\n"
        "about = {'CreationDate': datetime(2026, 1, 2, tzinfo=timezone.utc)}\n"
        "print(hashlib.sha256(sheets.written('foot', about)).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_the_pictures_tell_the_findings_numbers(shown: Shown) -> None:
    numbered, bare = printed(shown), printed(replace(shown, labels=None))
    told = "Numbers beside outlines are the findings'"
    assert told in text_of(numbered) and told not in text_of(bare)
    drawn, plain = (
        {image.data for page in PdfReader(BytesIO(pdf)).pages for image in page.images} for pdf in (numbered, bare)
    )
    assert drawn != plain


def test_how_it_was_made_is_printed_in_groups_and_nothing_of_it_is_cut(shown: Shown) -> None:
    digest = "0123456789abcdef" * 4
    made = {**shown.provenance, "input": {**shown.provenance["input"], "sha256": digest, "spacing_mm": [1.5, 2, 3]}}
    made["model"] = {**shown.provenance["model"], "sources": {"checkpoint_sha256": digest * 2}}
    text = text_of(printed(replace(shown, provenance=made))).partition("How this was made")[2]
    assert "Input title" in text and "Options " in text and "Timings (seconds) " in text
    assert "spacing (mm) 1.5, 2, 3" in text and "input · " not in text
    found = text.replace(" ", "")
    assert f"SHA256{digest}" in found
    assert found.count(digest) == 3  # broken across lines, and all there
    assert digest * 2 not in text


def test_a_group_that_goes_on_overleaf_has_its_title_there_too(shown: Shown) -> None:
    many = {"min_volume_ml": 0.05, **{f"an_option_{number:03}": number for number in range(120)}}
    reader = PdfReader(BytesIO(printed(replace(shown, provenance={**shown.provenance, "options": many}))))
    pages = [page.extract_text() for page in reader.pages]
    assert (
        all("Options" in page for page in pages if "an option 0" in page) and sum("an option" in p for p in pages) > 1
    )
    assert all(f"an option {number:03}" in "".join(pages) for number in range(120))
