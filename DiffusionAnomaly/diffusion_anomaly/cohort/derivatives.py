"""A scan's result as BIDS derivatives, beside the results of the scans that it was made of.

The engine's result stays what it is; this is a copy under the names of the standard, made of its files alone, so that a
run which was stopped in between finds what is missing. The mask's sidecar is written last and is the record of it.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import InputError
from ..io.files import Writer, write_text
from ..io.outputs import OutputFolder
from ..io.records import BIDS_RECORD, DIGESTS, content_of, record, sha256_of
from ..io.tables import csv_text
from ..models.declaration import BRAIN
from ..options import margin_of
from ..results.saving import PROVENANCE
from .bids import DESCRIPTION
from .scans import BidsSource
from .state import FINDINGS

BIDS_VERSION = "1.10.0"
PROGRAM = "DiffusionAnomaly"
CODE = "https://github.com/DiffusionAnomaly/SlicerDiffusionAnomaly"
SOURCE = "raw"
"""How sidecars call the data set of the scans."""
MAP = "anomalymap"
IGNORED = (
    *("results", "results/**", "subjects", "subjects/**", f"*_{MAP}.nii.gz", f"*_{MAP}.json"),
    *("*.html", "*.csv", "*.parquet", "cohort.json"),
)
"""What the standard has no names for."""
_PATIENCE = 60.0  # seconds for another scan of the session that is written just now
_COLUMNS = {
    "volume_ml": ("Volume of the finding", "mL"),
    "area_mm2": ("Area of the finding", "mm^2"),
    "area_pixels": ("Area of the finding in pixels", ""),
    "peak_heat_neg_log10_p": ("Highest anomaly score, -log10 of the healthy tail probability", ""),
    "mean_heat_neg_log10_p": ("Mean anomaly score", ""),
    **{f"centroid_{axis}_mm": (f"Centre of the finding, {axis.upper()} of RAS", "mm") for axis in "ras"},
    **{
        f"centroid_{axis}_index": (f"Centre of the finding in a picture, {axis} from 0", "")
        for axis in ("column", "row")
    },
    **{f"slice_{end}_index": (f"The {end} slice that it touches, from 0", "") for end in ("first", "last")},
    **{
        f"{axis}_{end}_index": (f"The {end} voxel along {axis}, from 0", "")
        for axis in "ijk"
        for end in ("first", "last")
    },
    "place": ("Roughly where in the brain the centre lies, by the brain's outline", ""),
}
_README = """# Anomalies found by DiffusionAnomaly

For research use only. Not for diagnosis.

- `sub-*/**/anat/*_desc-anomaly_mask.nii.gz`: where the anomaly score reaches the threshold of the sidecar, without
  findings that are too small or whose highest score does not exceed it by `PeakMargin`, the peak margin.
- `*_desc-anomaly_dseg.nii.gz`, `.tsv`: the same, each finding with a label of its own, and what is known of it.
- `*_anomalymap.nii.gz`: the anomaly score, -log10 of the healthy tail probability. The standard has no name for it.
- `*_desc-brain_mask.nii.gz`: what was looked at.
- `results/`: the program's own results with a record of how each was made and, unless left out, a report.
- `quality.html`, `scans.csv`, `findings.csv`: over all scans.
- `failures.csv`: the scans without a result, what happened and what to do.
"""


@dataclass(frozen=True)
class Export:
    """What is exported and where to.

    Attributes:
        output: root of the derivatives.
        source: where the scan comes from.
    """

    output: Path
    source: BidsSource

    @property
    def folder(self) -> Path:
        return self.output / self.source.folder

    @property
    def sidecar(self) -> str:
        """Name of the file that speaks for the others."""
        return f"{self.source.stem}{BIDS_RECORD}"


def is_exported(folder: Path, export: Export) -> bool:
    """Whether the derivatives of a result are there, made of this very result."""
    made = content_of(export.folder / export.sidecar)
    if made is None or not all((export.folder / name).is_file() for name in made[DIGESTS]):
        return False
    return made.get("ResultSHA256") == sha256_of(folder / PROVENANCE)


def export(folder: Path, what: Export) -> None:
    """Write the derivatives of a result.

    Args:
        folder: of the result.
        what: where they come from and go to.

    Raises:
        InputError: when a file that is no earlier derivative is in the way, or something cannot be written.
    """
    made = content_of(folder / PROVENANCE)
    if made is None:
        raise InputError(f"{folder} holds no result.", "Run the cohort again.")
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with OutputFolder(what.folder) as place:
                place.publish(_writers(folder, made, what))
                return
        except InputError as error:
            busy = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EWOULDBLOCK, errno.EACCES)
            if not busy or time.monotonic() > until:
                raise
            time.sleep(0.1)


def write_dataset(output: Path, root: Path, anonymous: bool = False) -> None:
    """The files that make a folder a data set of derivatives.

    Args:
        output: the folder.
        root: of the data set of the scans.
        anonymous: whether where that lies is left out.

    Raises:
        InputError: when the folder is the root of another data set.
    """
    description = output / DESCRIPTION
    if description.exists():
        try:
            programs = [entry["Name"] for entry in json.loads(description.read_text(encoding="utf-8"))["GeneratedBy"]]
        except (OSError, ValueError, KeyError, TypeError):
            programs = []
        if PROGRAM not in programs:
            raise InputError(
                f"{output} is the root of another data set.",
                "Choose another folder, such as derivatives/anomaly in it.",
            )
    link = {} if anonymous else {"URL": root.absolute().as_uri()}
    about: dict[str, Any] = {
        "Name": "Anomalies found by DiffusionAnomaly",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": PROGRAM, "Version": __version__, "CodeURL": CODE}],
        "SourceDatasets": [link or {"Version": "unknown"}],
        **({} if anonymous else {"DatasetLinks": {SOURCE: root.absolute().as_uri()}}),
    }
    files = {
        description: json.dumps(about, indent=2) + "\n",
        output / ".bidsignore": "".join(f"{pattern}\n" for pattern in IGNORED),
        output / "README.md": _README,
    }
    for path, text in files.items():
        # A readme or list of ignored files that the user has changed stays; so does what another shard has written.
        if not path.exists() or (path == description and path.read_text(encoding="utf-8") != text):
            write_text(path, text)


def _writers(folder: Path, made: Mapping[str, Any], what: Export) -> dict[str, Writer]:
    """What writes each file, the sidecar of the mask last."""
    stem = what.source.stem
    sources = [f"bids:{SOURCE}:{name}" for name in what.source.files]
    common = {"Sources": sources, "SpatialReference": sources[0]}
    threshold, margin = float(made["threshold"]["heat"]), margin_of(made["options"])
    highest = f" Each finding's highest score exceeds it by the peak margin of {margin:g} or more." if margin else ""
    marked = {
        **common,
        "Threshold": threshold,
        "ThresholdSource": str(made["threshold"]["source"]),
        "PeakMargin": margin,
    }
    images = {
        kind: next(name for name in made[DIGESTS] if name.startswith(f"{kind}.")) for kind in ("heat", "mask", "brain")
    }
    # NIfTI comes from NIfTI: a result has its scan's format.
    writers: dict[str, Writer] = {
        f"{stem}_{MAP}.nii.gz": _copy(folder / images["heat"]),
        f"{stem}_{MAP}.json": _json(
            {
                **common,
                "Description": "Anomaly score of each voxel; 0 outside of what was looked at.",
                "Units": "-log10 of the healthy tail probability",
            }
        ),
        f"{stem}_desc-anomaly_mask.nii.gz": _copy(folder / images["mask"]),
    }
    if made.get("region") == BRAIN:
        writers[f"{stem}_desc-brain_mask.nii.gz"] = _copy(folder / images["brain"])
        writers[f"{stem}_desc-brain_mask.json"] = _json(
            {**common, "Type": "Brain", "Description": "The brain, which alone was looked at."}
        )
    writers |= {
        f"{stem}_desc-anomaly_dseg.nii.gz": lambda path: _write_labels(folder, images, made, threshold, path),
        f"{stem}_desc-anomaly_dseg.tsv": lambda path: _write_findings(folder, path),
        f"{stem}_desc-anomaly_dseg.json": _json(
            {
                **marked,
                "Manual": False,
                "Description": "Findings by rank, the largest and most improbable first.",
                **{
                    name: {"Description": about, **({"Units": units} if units else {})}
                    for name, (about, units) in _COLUMNS.items()
                },
            }
        ),
        what.sidecar: record(
            {
                **marked,
                "Type": "ROI",
                "Manual": False,
                "Description": f"Where the anomaly score reaches the threshold.{highest} For research use only.",
                "GeneratedBy": [{"Name": PROGRAM, "Version": made["versions"]["diffusion_anomaly"]}],
                "Model": f"{made['model']['name']} {made['model']['version']}",
                "Warnings": list(made.get("warnings", [])),
                "ResultSHA256": sha256_of(folder / PROVENANCE),
            }
        ),
    }
    return writers


def _copy(source: Path) -> Writer:
    return lambda path: shutil.copyfile(source, path)


def _json(content: Mapping[str, Any]) -> Writer:
    return lambda path: write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _write_labels(
    folder: Path, images: Mapping[str, str], made: Mapping[str, Any], threshold: float, path: Path
) -> None:
    """The findings as labels: the mask's components, numbered as the result's table numbers them."""
    import SimpleITK as sitk

    from ..io.volume import read_only_volume, write_like
    from ..results.findings import segment

    volume = read_only_volume(folder / images["heat"])
    brain = read_only_volume(folder / images["brain"])
    options = made["options"]
    inside = sitk.Cast(brain.image, sitk.sitkUInt8)
    _, labels, _ = segment(
        volume.image, threshold, options["min_volume_ml"], inside, options.get("min_area"), margin_of(options)
    )
    write_like(labels, volume, path, dtype=np.uint16 if labels.GetPixelID() == sitk.sitkUInt16 else np.uint32)


def _write_findings(folder: Path, path: Path) -> None:
    rows: Sequence[Mapping[str, Any]] = json.loads((folder / FINDINGS).read_text(encoding="utf-8"))["findings"]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "id"))
    told = [
        {"index": row["id"], "name": f"finding {row['id']}"}
        | {name: "n/a" if row[name] is None else row[name] for name in columns}
        for row in rows
    ]
    write_text(path, csv_text(told, ["index", "name", *columns], delimiter="\t"))
