"""A worker's jobs done by a server: read the images, send them, put the results where the job wants them.

Images are read with SimpleITK, which Slicer has, and not with the engine's own readers, which need more packages.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import SimpleITK as sitk

from ..errors import EngineError, InputError
from ..io.files import write_text
from ..io.outputs import OutputFolder
from ..models.package import open_bundle
from ..text import printable
from ..worker.channel import EventLines, Reports, Stop
from ..worker.protocol import Event, Job, Progress, Result, Started
from .connection import Connection, Server
from .running import Image, run_on_server
from .wire import MASK, OPTIONS, SCAN

# The client's own, or decided by the server.
_LEFT_OUT = ("device", "batch_size", "anonymous")
RECORD = "provenance.json"


class Forwarder:
    """A ``worker.main.Workbench`` that sends each job to a server.

    Args:
        address, token, fingerprint, authorities: as for ``Server``; looked at when a job comes, so that what is wrong
            with them is that job's error.
    """

    def __init__(self, address: str, token: str, fingerprint: str = "", authorities: str = "") -> None:
        self._given = address, token, fingerprint, authorities

    def do(self, job: Job, lines: EventLines, stop: Stop) -> None:
        """See ``Workbench``."""
        if job.dicom or job.dicom_pdf:
            raise InputError("A server's results are not written as DICOM objects here.", "Export the segmentation.")
        start = time.monotonic()
        reports = Reports(lines, stop)
        reports.report("read", 0, 1)
        files: Mapping[str, str] = job.channels or {"": job.input}
        with OutputFolder(job.output, [Path(file) for file in files.values()], commit=stop.commit) as folder:
            stop.before_hard_end = folder.discard
            images = [_read(file, SCAN, channel) for channel, file in files.items()]
            if job.mask is not None:
                images.append(_read(job.mask, MASK))
            reports.report("read", 1, 1)
            connection = Connection(Server(*self._given))

            def tell(event: Event) -> None:
                if isinstance(event, Progress):
                    reports.report(event.stage, event.done, event.total, event.seconds_left)
                    return
                if isinstance(event, Started):
                    reports.flush()
                    event = replace(event, device=f"{event.device} of {connection.server.name}")
                lines.send(event)

            with tempfile.TemporaryDirectory(prefix="diffusion-anomaly-") as fetched:
                try:
                    delivered = run_on_server(connection, images, _order(job), Path(fetched), tell, stop.check)
                finally:
                    connection.close()
                _complete(delivered.files["provenance"], job, next(iter(files.values())), connection.server.name)
                # The record last, as it speaks for the others.
                ordered = sorted(delivered.files.values(), key=lambda path: path.name == RECORD)
                places = folder.publish({path.name: partial(shutil.move, path) for path in ordered})
        lines.send(
            Result(
                {kind: str(places[path.name]) for kind, path in delivered.files.items()},
                delivered.statistics,
                {**delivered.timings, "total": round(time.monotonic() - start, 3)},
            )
        )

    def release(self) -> None:
        """Nothing is kept."""


def _order(job: Job) -> dict[str, object]:
    options = {name: value for name, value in job.options.items() if name not in _LEFT_OUT and value is not None}
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise InputError(f"A server takes no option {', '.join(unknown)}.", f"It takes {', '.join(OPTIONS)}.")
    order: dict[str, object] = {"method": job.method, "options": options}
    if job.model is not None:
        bundle = open_bundle(job.model)
        order |= {"model": bundle.name, "model_sha256": bundle.sha256}
    return order


def _complete(provenance: Path, job: Job, file: str, server: str) -> None:
    """Say in the record what the server was not told, unless the user wants it left out: which scan it is."""
    try:
        content = json.loads(provenance.read_bytes())
        content["server"] = server
        if not job.options.get("anonymous"):
            name = printable(Path(file).name)
            content["input"] |= {"title": job.title or name, "path": name}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"The server's provenance cannot be read: {error}.", "Update both.") from error
    write_text(provenance, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _read(file: str, kind: str, channel: str = "") -> Image:
    try:
        image = sitk.ReadImage(file)
    except RuntimeError as error:
        raise InputError(f"{file} cannot be read.", "Give an image that SimpleITK reads.") from error
    return Image.of(image, kind, channel)
