"""A worker that needs no torch: it speaks the engine's protocol and scores bright voxels high, as slowly as it is told.

The panel's tests run it in Slicer's Python, so that they pass in a Slicer without any further package. What the real
worker does is tested elsewhere, with real networks.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.worker.protocol import (
    CANCEL_LINE,
    RELEASE_LINE,
    Failure,
    Finished,
    Progress,
    Result,
    Started,
    encode,
    job_of,
    read_job,
)

STEPS = 20


def main() -> None:
    """Run jobs as they are named on standard input, until it ends."""
    folders: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
    cancelled = threading.Event()
    threading.Thread(target=_listen, args=(folders, cancelled), daemon=True).start()
    while (folder := folders.get()) is not None:
        _say(Finished(_run(folder, cancelled)))


def _run(folder: Path, cancelled: threading.Event) -> int:
    job = read_job(folder)
    seconds = float(os.environ.get("STANDIN_SECONDS", "0.2"))
    _say(Started("cpu", job.model and Path(job.model).name, "0.1.0", STEPS))
    for done in range(STEPS + 1):
        _say(Progress("detect", done, STEPS, seconds * done / STEPS, seconds * (STEPS - done) / STEPS))
        if cancelled.wait(seconds / STEPS):
            _say(Failure("cancelled", "The run was stopped."))
            return 5
    image = sitk.ReadImage(job.input)
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    anomaly_map = sitk.GetImageFromArray((4 * np.clip(values / max(values.max(), 1.0), 0, 1)).astype(np.float32))
    anomaly_map.CopyInformation(image)
    output = Path(job.output)
    output.mkdir(parents=True)
    sitk.WriteImage(anomaly_map, str(output / "heat.nrrd"))
    (output / "report.html").write_text("<html><body>A report</body></html>", encoding="utf-8")
    options = {"steps": 10, "seed": 0, "min_volume_ml": 0.05, **job.options}
    hashes = {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in ("heat.nrrd", "report.html")}
    provenance = {
        "purpose": "For research use only. Not for diagnosis.",
        "date_utc": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "input": {"sha256": ""},
        "method": job.method,
        "model": None,
        "options": options,
        "threshold": {"heat": options.get("threshold") or 3.0, "source": "stand-in"},
        "device": {"used": "cpu", "name": "stand-in"},
        "versions": {"diffusion_anomaly": "0.1.0"},
        "warnings": ["This comes from a stand-in."],
        "files_sha256": hashes,
    }
    (output / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    names = {"heat": "heat.nrrd", "report": "report.html", "provenance": "provenance.json"}
    files = {kind: str(output / name) for kind, name in names.items()}
    _say(Result(files, {}, {"detect": seconds, "total": seconds}))
    return 0


def _say(event: object) -> None:
    sys.stdout.write(encode(event) + "\n")  # type: ignore[arg-type]
    sys.stdout.flush()


def _listen(folders: queue.SimpleQueue[Path | None], cancelled: threading.Event) -> None:
    for line in map(str.strip, sys.stdin):
        if line == CANCEL_LINE:
            cancelled.set()
        elif line != RELEASE_LINE:
            cancelled.clear()
            folders.put(job_of(line))
    cancelled.set()
    folders.put(None)


if __name__ == "__main__":
    main()
