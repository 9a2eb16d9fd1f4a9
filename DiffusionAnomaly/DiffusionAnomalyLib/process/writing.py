"""Scans on their way to the worker, written by a thread: a large one takes a second, for which nobody should wait.

The voxels are not copied before. Should they change in the scene meanwhile, they are written again.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

# What NRRD calls the types of voxels that MRML has.
_TYPES = {
    **{"int8": "signed char", "uint8": "unsigned char", "int16": "short", "uint16": "unsigned short"},
    **{"int32": "int", "uint32": "unsigned int", "int64": "long long int", "uint64": "unsigned long long int"},
    **{"float32": "float", "float64": "double"},
}
CHUNK_BYTES = 8 * 2**20


class Writing:
    """A NRRD file that is being written. Begins at once; the file is whole when ``isDone`` says so without a problem.

    Args:
        path: of the file.
        voxels: k j i; kept until it is done.
        axes: columns are the steps from voxel to voxel along i, j, k in mm, LPS.
        origin: of the first voxel, LPS.
        version: changes when somebody changes the voxels.

    Attributes:
        problem: why it could not be written; empty when it could.
    """

    def __init__(
        self, path: Path, voxels: np.ndarray, axes: np.ndarray, origin: np.ndarray, version: Callable[[], int]
    ) -> None:
        self.problem = ""
        self._path = path
        self._voxels: np.ndarray | None = np.ascontiguousarray(voxels)
        self._header = _header(self._voxels, axes, origin)
        self._version = version
        self._cancelled = threading.Event()
        self._begin()

    @property
    def isDone(self) -> bool:
        """Whether it has ended, well or with a problem; if the voxels have changed meanwhile, it begins anew."""
        if self._thread.is_alive():
            return False
        isCurrent = self._voxels is None or self.problem or self._version() == self._begunWith
        if not isCurrent and not self._cancelled.is_set():
            self._begin()
            return False
        self._voxels = None
        return True

    def cancel(self) -> None:
        """End it where it is."""
        self._cancelled.set()
        self._thread.join()
        self._voxels = None

    def _begin(self) -> None:
        self._begunWith = self._version()
        self._thread = threading.Thread(target=self._write, args=(self._voxels,), daemon=True)
        self._thread.start()

    def _write(self, voxels: np.ndarray) -> None:
        data = memoryview(voxels.reshape(-1)).cast("B")
        try:
            with open(self._path, "wb", buffering=0) as file:
                file.write(self._header)
                for start in range(0, len(data), CHUNK_BYTES):
                    if self._cancelled.is_set():
                        return
                    rest = data[start : start + CHUNK_BYTES]
                    while rest:  # a raw file may take less than it is given
                        rest = rest[file.write(rest) :]
        except OSError as error:
            self.problem = error.strerror or str(error)


def _header(voxels: np.ndarray, axes: np.ndarray, origin: np.ndarray) -> bytes:
    steps = " ".join(f"({','.join(repr(float(value)) for value in axes[:, axis])})" for axis in range(3))
    lines = [
        "NRRD0004",
        f"type: {_TYPES[voxels.dtype.name]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, reversed(voxels.shape)))}",
        f"space directions: {steps}",
        "kinds: domain domain domain",
        f"endian: {sys.byteorder}",
        "encoding: raw",
        f"space origin: ({','.join(repr(float(value)) for value in origin)})",
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii")
