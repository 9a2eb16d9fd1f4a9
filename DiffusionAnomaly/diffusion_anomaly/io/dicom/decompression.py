"""Decompression in a process of its own.

GDCM's libraries were written for images that are whole: a changed byte in a JPEG image can end the process, and with it
a batch of scans, and they print past Python. The process is started with the first compressed image and serves all of a
scan.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

import numpy as np
from pydicom import uid as syntax

from ...errors import InputError
from .gdcm_worker import ANSWER, REQUEST

# What GDCM calls what it decodes.
SYNTAXES = {
    syntax.JPEGBaseline8Bit: b"JPEGBaselineProcess1",
    syntax.JPEGExtended12Bit: b"JPEGExtendedProcess2_4",
    syntax.JPEGLossless: b"JPEGLosslessProcess14",
    syntax.JPEGLosslessSV1: b"JPEGLosslessProcess14_1",
    syntax.JPEGLSLossless: b"JPEGLSLossless",
    syntax.JPEGLSNearLossless: b"JPEGLSNearLossless",
    syntax.JPEG2000Lossless: b"JPEG2000Lossless",
    syntax.JPEG2000: b"JPEG2000",
}
_LONGEST_SECONDS = 120.0


class Decompressor:
    """Decodes images, one after the other. A context manager: leaving it ends the process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decompressor:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def decode(self, kind: syntax.UID, coded: bytes, rows: int, columns: int, bits: int, signed: bool) -> np.ndarray:
        """The stored numbers of an image, ``(rows, columns)``, unsigned: a sign is one of their bits.

        Args:
            kind: transfer syntax.
            coded: the compressed image.
            rows, columns, bits: as the compressed image states them.
            signed: whether its numbers have a sign.

        Raises:
            InputError: when GDCM is not installed.
            ValueError: when the image cannot be decoded.
        """
        container = 8 if bits <= 8 else 16 if bits <= 16 else 32
        request = REQUEST.pack(SYNTAXES[kind], rows, columns, container, bits, int(signed), len(coded))
        process = self._process or self._start()
        assert process.stdin and process.stdout
        watch = Timer(_LONGEST_SECONDS, process.kill)
        watch.start()
        try:
            process.stdin.write(request + coded)
            process.stdin.flush()
            (length,) = ANSWER.unpack(process.stdout.read(ANSWER.size).ljust(ANSWER.size, b"\0"))
            pixels = process.stdout.read(length)
        except OSError:  # it ended
            pixels = b""
        finally:
            watch.cancel()
        if len(pixels) != rows * columns * container // 8:
            self._end()
            raise ValueError(f"{len(pixels)} bytes of pixels")
        return np.frombuffer(pixels, f"<u{container // 8}").reshape(rows, columns)

    def _start(self) -> subprocess.Popen[bytes]:
        if find_spec("gdcm") is None:
            raise InputError("Compressed DICOM needs the package python-gdcm.", "Install it: pip install python-gdcm")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("gdcm_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        return self._process

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe:
                    pipe.close()
            except OSError:  # what was still to be written has no reader
                pass
        self._process.wait()
        self._process = None
