"""One detection on a server: voxels there, events and results back, and nothing left behind.

Whatever ends it early, the server is told to delete the job.
"""

from __future__ import annotations

import hashlib
import json
import queue
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import EngineError, InputError
from ..io.files import write_error
from ..worker.protocol import Event, Failure, Progress, Result, decode
from .connection import Connection, Stop
from .wire import QUEUED, SCAN, TYPES, ImageHeader, Order, error_of

UPLOAD, WAIT, DOWNLOAD = "upload", "wait", "download"
"""Stages that only a detection on a server has."""
_PIECE = 1 << 20  # bytes
_HEARD_EVERY = 0.1  # seconds between two looks for the request to stop
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KIND = re.compile(r"[a-z0-9_]{1,100}")
_SIZE = re.compile(r"[0-9]{1,15}")
_MOST_FILES = 64


@dataclass(frozen=True)
class Image:
    """An image to send.

    Attributes:
        kind, channel: as in ``wire.ImageHeader``.
        values: ``(slices, rows, columns)``, little-endian and contiguous, of a type that can be sent.
        header: what the server is told of it.
    """

    values: np.ndarray
    header: ImageHeader

    @classmethod
    def of(cls, image: sitk.Image, kind: str = SCAN, channel: str = "") -> Image:
        """Voxels and grid of an image, and nothing else of it.

        Raises:
            InputError: for an image that is no grey volume.
        """
        if image.GetDimension() == 2:
            image = sitk.JoinSeries([image])
        values = sitk.GetArrayFromImage(image)
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1 or values.dtype.kind not in "iuf":
            raise InputError("The scan is no grey volume.", "Choose a volume with one grey value a voxel.")
        values = smallest(values)
        header = ImageHeader(
            kind,
            channel,
            values.dtype.name,
            list(image.GetSize()),
            list(image.GetSpacing()),
            list(image.GetOrigin()),
            list(image.GetDirection()),
            hashlib.sha256(values.tobytes()).hexdigest(),
        )
        header.check("The scan")
        return cls(values, header)

    def compressed(self) -> Iterator[bytes]:
        """The voxels as a gzip stream. Level 1: higher ones take longer than what they save takes to send."""
        deflate = zlib.compressobj(1, wbits=31)
        flat = self.values.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), _PIECE):
            if piece := deflate.compress(flat[start : start + _PIECE].tobytes()):
                yield piece
        yield deflate.flush()


def smallest(values: np.ndarray) -> np.ndarray:
    """The same values in the smallest type that holds each of them exactly, as scanners' 12 bits are held by 16.

    >>> [smallest(np.array([[[value]]], np.float32)).dtype.name for value in (255, 4095, 40000, 0.5)]
    ['uint8', 'int16', 'uint16', 'float32']
    """
    low, high = values.min(initial=0), values.max(initial=0)
    for name in ("uint8", "int16", "uint16", "float32"):
        kind = np.dtype(name)
        if kind.itemsize >= values.dtype.itemsize:
            continue
        if kind.kind != "f" and not (np.iinfo(kind).min <= low and high <= np.iinfo(kind).max):
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            smaller = values.astype(kind)
            if np.array_equal(smaller, values):
                return smaller
    if values.dtype.name not in TYPES:
        raise InputError(f"Voxels of type {values.dtype} cannot be sent.", "Convert the scan to 32-bit floating point.")
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))


@dataclass(frozen=True)
class Delivered:
    """What came back.

    Attributes:
        files: by kind, whole.
        statistics, timings: as in ``worker.protocol.Result``.
    """

    files: Mapping[str, Path]
    statistics: Mapping[str, Any]
    timings: Mapping[str, Any]


def run_on_server(
    connection: Connection,
    images: Sequence[Image],
    order: Mapping[str, Any],
    folder: Path,
    tell: Callable[[Event], None],
    stop: Stop,
) -> Delivered:
    """Send, wait, fetch.

    Args:
        connection: to the server.
        images: in any order.
        order: ``method``, ``model``, ``model_sha256`` and ``options`` of a ``wire.Order``.
        folder: where the results go, under the server's names for them.
        tell: takes what the worker says, and how far upload, queue and download are; neither result nor error.
        stop: see ``connection.Stop``.

    Raises:
        EngineError: as the detection, or as the connection.
    """
    job = connection.order(Order([image.header for image in images], **order), stop)
    try:
        _send(connection, job, images, tell, stop)
        result = _follow(connection, job, tell, stop)
        return _fetch(connection, job, result, folder, tell, stop)
    finally:
        connection.delete(job)


def _send(connection: Connection, job: str, images: Sequence[Image], tell: Callable[[Event], None], stop: Stop) -> None:
    total = sum(image.header.bytes for image in images)
    sent = 0
    tell(_progress(UPLOAD, 0, total))
    for number, image in enumerate(images):

        def pieces(image: Image = image) -> Iterator[bytes]:
            for piece in image.compressed():
                stop()
                yield piece

        connection.send(job, number, pieces, True, stop)
        sent += image.header.bytes
        tell(_progress(UPLOAD, sent, total))


def _follow(connection: Connection, job: str, tell: Callable[[Event], None], stop: Stop) -> dict[str, Any]:
    """Pass the events on until there is a result. A thread reads, so that the user is heard meanwhile."""
    heard: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()
    over = threading.Event()

    class Over(Exception):  # noqa: N818
        pass

    def still_wanted() -> None:
        if over.is_set():
            raise Over

    def read() -> None:
        other = connection.another()
        try:
            for event in other.events(job, still_wanted):
                heard.put(event)
        except Exception as error:  # noqa: BLE001 - raised again where somebody hears it
            heard.put(error)
        finally:
            other.close()

    threading.Thread(target=read, name="events", daemon=True).start()
    waiting = Progress(WAIT, 0, 1, 0.0)
    try:
        while True:
            stop()
            try:
                event = heard.get(timeout=_HEARD_EVERY)
            except queue.Empty:
                continue
            if isinstance(event, BaseException):
                raise event
            if event.get("event") == Result.event:
                return event
            if event.get("event") == QUEUED and isinstance(event.get("ahead"), int):
                waiting = _progress(WAIT, 0, max(0, event["ahead"]) + 1)
                tell(waiting)
            elif not event:
                tell(waiting)  # whoever waits for a word hears that the server is still there
            else:
                said = decode(json.dumps(event))
                if isinstance(said, Failure):
                    raise error_of(said.code, said.what, said.hint)
                waiting = said if isinstance(said, Progress) else waiting
                tell(said)
    finally:
        over.set()


def _fetch(
    connection: Connection,
    job: str,
    result: Mapping[str, Any],
    folder: Path,
    tell: Callable[[Event], None],
    stop: Stop,
) -> Delivered:
    files = _checked(result)
    total = sum(size for _, size, _ in files.values())
    fetched: dict[str, Path] = {}
    done = 0
    tell(_progress(DOWNLOAD, 0, total))
    for kind, (name, size, sha256) in files.items():
        path = folder / name
        try:
            found = connection.fetch(job, kind, path, size, stop, hashlib.sha256)
        except OSError as error:
            raise write_error(path, error) from error
        if found != sha256:
            raise EngineError(f"The result {name} did not arrive as the server sent it.", "Run it again.")
        fetched[kind] = path
        done += size
        tell(_progress(DOWNLOAD, done, total))
    return Delivered(fetched, _mapping(result, "statistics"), _mapping(result, "timings"))


def _checked(result: Mapping[str, Any]) -> dict[str, tuple[str, int, str]]:
    """Name, length and hash of each file; the server is not trusted to name files of this computer.

    Raises:
        EngineError: for anything else.
    """
    files = _mapping(result, "files")
    checked = {}
    for kind, entry in files.items():
        entry = entry if isinstance(entry, dict) else {}
        name, size, sha256 = (str(entry.get(key, "")) for key in ("name", "bytes", "sha256"))
        if not (_KIND.fullmatch(str(kind)) and _NAME.fullmatch(name) and _SIZE.fullmatch(size)):
            raise EngineError("The server lists results that cannot be.", "Client and server may differ; update both.")
        checked[kind] = (name, int(size), sha256)
    if not {"heat", "mask", "brain", "provenance"} <= checked.keys() or len(checked) > _MOST_FILES:
        raise EngineError("The server's list of results is not whole.", "Run it again.")
    if len({name.casefold() for name, _, _ in checked.values()}) < len(checked):
        raise EngineError("The server lists one result twice.", "Client and server may differ; update both.")
    return checked


def _mapping(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = result.get(name)
    return value if isinstance(value, dict) else {}


def _progress(stage: str, done: int, total: int) -> Progress:
    return Progress(stage, done, max(1, total), 0.0)
