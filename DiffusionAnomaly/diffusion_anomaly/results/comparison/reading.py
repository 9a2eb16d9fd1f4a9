"""Exams from files: the result folder of a detection with its scan, and what Slicer writes for a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...io.records import DIGESTS, content_of, is_whole
from ...io.sources import read_brain
from ...io.volume import Volume, read_anomaly_map
from ...options import check_threshold, margin_of
from ...text import printable
from ..redrawing import read_request
from ..saving import PROVENANCE
from .compare import Comparison, Exam, compare, model_of


def read_exam(folder: Path, scan: Volume) -> Exam:
    """A scan with the result that a detection wrote.

    Args:
        folder: of the result.
        scan: what the detection looked at; of several contrasts the first.

    Raises:
        InputError: when the folder holds no whole result, or that of another scan, or a picture's.
    """
    content = content_of(folder / PROVENANCE)
    if content is None:
        raise InputError(f"{printable(folder)} holds no result of a detection.", "Give the folder that detect wrote.")
    about = content.get("input")
    if not isinstance(about, Mapping) or about.get("sha256") != scan.sha256:
        raise InputError(
            f"{printable(folder)} holds the result of another scan ({_title_of(content)}) than {scan.name}.",
            "Give the scan's own result, or leave it out to have it made.",
        )
    names = {name.partition(".")[0]: name for name in content[DIGESTS]}
    needed = [names.get(kind, kind) for kind in ("heat", "brain")]
    if not is_whole(folder, content, *needed):
        raise InputError(f"{printable(folder)} holds a damaged result: files are missing or changed.", "Run it again.")
    try:
        options, threshold = content["options"], float(content["threshold"]["heat"])
        least, is_picture = float(options["min_volume_ml"]), options.get("min_area") is not None
        check_threshold(threshold)
        margin = margin_of(options)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{printable(folder)} holds a damaged record of its result.", "Run it again.") from error
    except InputError as error:
        raise InputError(f"{printable(folder / PROVENANCE)} is damaged: {error.what}", "Run it again.") from error
    if is_picture:
        raise InputError(f"{scan.name} is a picture, and pictures are not compared.", "Give two volumes.")
    return Exam(
        _title_of(content),
        scan.image,
        read_anomaly_map(folder / needed[0]).image,
        read_brain(folder / needed[1], scan),
        threshold,
        least,
        model_of(content),
        scan.identity,
        [str(warning) for warning in content.get("warnings", [])],
        margin,
    )


def compare_requests(prior: Path, current: Path) -> Comparison:
    """Compare what two folders hold, each as ``redrawing.write_request`` makes it.

    Raises:
        InputError: when something is missing or damaged, or the two cannot be compared.
    """
    return compare(_requested(prior), _requested(current))


def _requested(folder: Path) -> Exam:
    request, scan, anomaly_map, brain = read_request(folder)
    made = request.provenance
    if made["options"].get("min_area") is not None:
        raise InputError(f"{request.title} is a picture, and pictures are not compared.", "Choose two volumes.")
    return Exam(
        request.title,
        scan,
        anomaly_map,
        brain,
        request.threshold,
        request.min_volume_ml,
        model_of(made),
        request.identity,
        warnings=[str(warning) for warning in made["warnings"]],
        peak_margin=margin_of(made["options"]),
    )


def _title_of(content: Mapping[str, Any]) -> str:
    about = content.get("input")
    return str(about.get("title", "")) if isinstance(about, Mapping) else ""
