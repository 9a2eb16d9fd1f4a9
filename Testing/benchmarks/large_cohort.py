"""What a large cohort costs beside its detections: finding out that all is done, tables and pages.

    python -m Testing.benchmarks large-cohort                             # 1000 and 10000 scans
    python -m Testing.benchmarks large-cohort --scans 2000 --output results

One scan is looked at; its result is then put in place for all the others, which are links to the same file, and the
command is run again over all of them. So every number is of the real command over real files; only their voxels are
alike. The files of a result but those that differ are links too: what they take is said apart, by scan.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from diffusion_anomaly.cohort.state import COHORT, FINDINGS, RESULTS, stamp
from diffusion_anomaly.detection.scan import ScanRequest
from diffusion_anomaly.io.outputs import prepare_folder, publish
from diffusion_anomaly.io.records import record
from diffusion_anomaly.results.saving import PROVENANCE

from . import measure
from .cohort import run, thick
from .measure import say, table

FILE = "benchmark-large-cohort.json"
OPTIONS = ("--method", "intensity", "--device", "cpu", "--workers", "0", "--force")


def main(arguments: Sequence[str]) -> int:
    asked = _parser().parse_args(arguments)
    if asked.output is not None:
        prepare_folder(asked.output, [FILE])
    rows = []
    for count in asked.scans:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            rows.append(measure_one(asked.scan, Path(folder), count))
    names = ["scans", "s", "ms a scan", "GiB", "tables, MB", "pages, MB", "a result, MB", "files a result"]
    say(table(names, [_shown(row) for row in rows]))
    if asked.output is not None:
        publish(asked.output, {FILE: record({"arguments": list(arguments), "rows": rows})})
    return 0


def measure_one(scan: Path, folder: Path, count: int) -> dict[str, Any]:
    """One size of cohort: seconds and memory of a run with nothing left to do, and what it writes."""
    scans, output = folder / "scans", folder / "cohort"
    scans.mkdir()
    first = scans / "scan-000000_flair.nii.gz"
    sitk.WriteImage(thick(sitk.ReadImage(str(scan)), 5.0), str(first))
    command = ["cohort", scans, output, *OPTIONS]
    run([command], 1)
    done = next((output / RESULTS).iterdir())
    files = [path.stat().st_size for path in done.iterdir()]
    for number in range(1, count):
        other = scans / f"scan-{number:06d}_flair.nii.gz"
        os.link(first, other)
        _copy(done, done.with_name(done.name.replace("000000", f"{number:06d}")), other)
    before = {path: path.stat().st_mtime_ns for path in (output / RESULTS).glob(f"*/{PROVENANCE}")}
    took = run([command], 1)
    if {path: path.stat().st_mtime_ns for path in before} != before or len(before) != count:
        raise RuntimeError("scans that were done were done again, so this says nothing")
    pages = [path.stat().st_size for path in (output / "subjects").iterdir()] + [
        (output / "quality.html").stat().st_size
    ]
    tables = [path.stat().st_size for path in output.iterdir() if path.suffix in (".csv", ".parquet")]
    return {
        "scans": count,
        "seconds": took["seconds"],
        "gib": took["largest_gib"],
        "tables_mb": sum(tables) / 1e6,
        "pages_mb": sum(pages) / 1e6,
        "result_mb": sum(files) / 1e6,
        "result_files": len(files),
    }


def _copy(done: Path, place: Path, scan: Path) -> None:
    """A result as if it were of another scan; what does not name the scan is linked."""
    place.mkdir()
    for path in done.iterdir():
        if path.name not in (PROVENANCE, FINDINGS):
            os.link(path, place / path.name)
    (place / FINDINGS).write_bytes((done / FINDINGS).read_bytes())
    made = json.loads((done / PROVENANCE).read_text(encoding="utf-8"))
    made[COHORT] |= {"name": place.name, "patient": place.name}
    made[COHORT]["inputs"]["stamp"] = stamp(ScanRequest(scan, place, title=place.name))
    (place / PROVENANCE).write_text(json.dumps(made), encoding="utf-8")


def _shown(row: dict[str, Any]) -> list[str]:
    each = 1000 * row["seconds"] / row["scans"]
    sizes = (f"{row['tables_mb']:.1f}", f"{row['pages_mb']:.1f}", f"{row['result_mb']:.2f}", str(row["result_files"]))
    return [str(row["scans"]), f"{row['seconds']:.1f}", f"{each:.1f}", f"{row['gib']:.2f}", *sizes]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m Testing.benchmarks large-cohort",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--scan", type=Path, default=measure.SAMPLE, help="default: the sample scan")
    add("--scans", type=int, nargs="+", default=[1000, 10000], help="how many; default: 1000 10000")
    add("--folder", type=Path, help="on the file system to try; default: that of temporary files")
    add("--output", type=Path, metavar="DIR", help="also write all numbers there as JSON")
    return parser
