"""A ``Detector`` whose network runs elsewhere: everything before and after is done here, by the same code.

What the scan's header says against it is found before anything is sent; results, report and DICOM objects are made
here, since names stay here.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..detection.detector import Detector
from ..detection.doubts import Doubts
from ..detection.planning import Options, make_plan
from ..detection.provenance import describe_input
from ..detection.watch import Watch
from ..errors import EngineError, InputError, ModelError
from ..io.volume import Scan, Volume
from ..models.package import Bundle
from ..options import margin_of, shown
from ..registry import get_method
from ..results.findings import segment
from ..results.places import with_places
from ..results.result import Progress, Result, Started
from ..worker import protocol
from .connection import Connection
from .running import Delivered, Image, run_on_server
from .wire import MASK, OPTIONS, SCAN


class DeclaredBundle(Bundle):
    """A package of which the declaration alone is here."""

    def check(self) -> None:
        """The server has checked it."""


class RemoteDetector(Detector):
    """Detects on a server.

    >>> detector = RemoteDetector(Connection(server), Options(method="localise"))  # doctest: +SKIP
    >>> result = detector("flair.nii.gz")  # doctest: +SKIP

    Args:
        connection: to the server.
        options: the user's choices; device and batch size are the server's.

    Raises:
        InputError: when the server cannot be reached, or for an option that it does not take.
        ModelError: when it does not offer the model.
    """

    def __init__(self, connection: Connection, options: Options) -> None:
        if options.device != "auto" or options.batch_size is not None:
            raise InputError("Device and batch size are the server's.", "Leave out --device and --batch-size.")
        self._connection = connection
        super().__init__(make_plan(options, _declared(connection, options)))
        self._joined: tuple[Scan, Mapping[str, Volume]] | None = None

    def join(self, volumes: Mapping[str, Volume]) -> Scan:
        # What is sent is what was read: the server joins it in the same way, and knows what each channel covers.
        scan = super().join(volumes)
        self._joined = (scan, volumes)
        return scan

    def _detect(self, scan: Scan, mask: sitk.Image | None, watch: Watch, force: bool) -> Result:
        doubts = Doubts(self.plan, watch, mask is not None, force)
        doubts.of_scan(scan, mask)
        channels = self._to_send(scan)
        images = [Image.of(volume.image, SCAN, name) for name, volume in channels.items()]
        if mask is not None:
            images.append(Image.of(mask, MASK))
        asked = self.plan.asked
        options = {name: value for name in OPTIONS if (value := getattr(asked, name)) is not None}
        order = {
            "method": self.plan.method.name,
            "model": self.plan.bundle.name,
            "model_sha256": self.plan.bundle.sha256,
            # The checks of the header are done; what is known here alone must not stop it there.
            "options": {**options, "force": force, "overrides": dict(asked.overrides)},
        }
        with tempfile.TemporaryDirectory(prefix="diffusion-anomaly-") as folder:
            teller = _Teller(watch)
            delivered = run_on_server(self._connection, images, order, Path(folder), teller, teller.check)
            return self._result(scan, mask is not None, delivered, watch, force)

    def _to_send(self, scan: Scan) -> Mapping[str, Volume]:
        if self._joined is not None and self._joined[0] is scan:
            given = self._joined[1]
            self._joined = None
            return {name: given.get(name) or volume for name, volume in scan.channels.items()}
        if scan.covered is not None:
            raise InputError("Channels that were resampled cannot be sent.", "Give each channel as it was read.")
        return scan.channels

    def _result(self, scan: Scan, given: bool, delivered: Delivered, watch: Watch, force: bool) -> Result:
        files, reference = delivered.files, scan.reference.image
        anomaly_map, brain = (_on_grid(files[kind], reference) for kind in ("heat", "brain"))
        try:
            provenance = json.loads(files["provenance"].read_bytes())
            options, threshold = provenance["options"], float(provenance["threshold"]["heat"])
            score = provenance["score"]["value"]
            mask, _, findings = segment(
                anomaly_map, threshold, options["min_volume_ml"], brain, options.get("min_area"), margin_of(options)
            )
            findings = with_places(findings, brain, self.plan.bundle.region)
        except (ValueError, KeyError, TypeError, InputError) as error:
            raise EngineError(f"The server's provenance cannot be read: {error}.", "Update both.") from error
        anonymous = self.plan.asked.anonymous
        channels = {name: describe_input(volume, anonymous) for name, volume in scan.channels.items()}
        if "channels" in provenance:
            provenance["channels"] = channels
        for key in ("files_sha256", "files_bytes"):  # of the server's files
            provenance.pop(key, None)
        watch.timings.update({name: float(value) for name, value in delivered.timings.items()})
        watch.timings["total"] = time.perf_counter() - watch.start
        provenance |= {
            "input": describe_input(scan.reference, anonymous),
            "server": self._connection.server.name,
            "warnings": list(watch.warnings),
            "timings_seconds": {stage: round(seconds, 3) for stage, seconds in watch.timings.items()},
        }
        doubt = delivered.statistics.get("score_warning")
        healed = [kind for kind in files if kind.startswith("healed")]
        made = {name: _on_grid(files[kind], reference) for name, kind in zip(scan.channels, healed, strict=False)}
        return Result(
            scan=scan,
            anomaly_map=anomaly_map,
            mask=mask,
            findings=findings,
            brain=brain,
            score=float(score),
            score_warning=doubt if isinstance(doubt, str) else None,
            threshold=threshold,
            provenance=provenance,
            warnings=watch.warnings,
            timings=watch.timings,
            reconstruction=made or None,
        )


class _Teller:
    """What the server tells, to whoever watches."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, event: protocol.Event) -> None:
        watch = self._watch
        if isinstance(event, protocol.Warned):
            if event.message not in watch.warnings:  # found here too
                watch.warn(event.message)
        elif isinstance(event, protocol.Started) and watch.on_started is not None:
            watch.on_started(Started(event.device, event.model, event.version, event.slices))
        elif isinstance(event, protocol.Progress) and watch.on_progress is not None:
            elapsed = time.perf_counter() - watch.start
            watch.on_progress(Progress(event.stage, event.done, event.total, elapsed, event.seconds_left))

    def check(self) -> None:
        """Nothing asks it to stop but Ctrl-C, which is an exception of its own here."""


def _declared(connection: Connection, options: Options) -> Bundle:
    """The package that the server will use, as it declares it."""
    name = options.model or get_method(options.method).default_model
    listed = {entry.get("name"): entry for entry in connection.models() if isinstance(entry, dict)}
    entry = listed.get(name)
    if entry is None:
        raise ModelError(
            f"The server {connection.server.name} offers no model {shown(name)}.",
            f"It offers {', '.join(map(str, listed))}.",
        )
    texts = {key: str(entry.get(key, "")) for key in ("name", "version", "method", "modality", "license", "sha256")}
    declaration: Any = entry.get("declaration")
    if not all(texts.values()) or not isinstance(declaration, dict):
        raise ModelError(f"What the server says of {shown(name)} is not whole.", "Update client and server.")
    return DeclaredBundle(path=Path(str(name)), metadata={}, anomaly=declaration, files={}, **texts)


def _on_grid(path: Path, reference: sitk.Image) -> sitk.Image:
    """A result's voxels on the scan's own grid.

    Raises:
        EngineError: when it is of another size.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise EngineError(f"The server's result {path.name} cannot be read.", "Run it again.") from error
    if image.GetSize() != reference.GetSize():
        raise EngineError(f"The server's result {path.name} has another grid than the scan.", "Run it again.")
    values = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))
    values.CopyInformation(reference)
    return values
