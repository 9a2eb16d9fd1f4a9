"""Decodes JPEG, JPEG-LS and JPEG 2000 images with GDCM: the other end of `decompression`, in a process of its own.

Requests on stdin, answers on stdout, both in bytes of which the length comes first. Run as a file, so that starting it
imports GDCM and nothing else.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import tempfile
from typing import BinaryIO

REQUEST = struct.Struct("<32s5IQ")  # transfer syntax, rows, columns, container, bits, signed, length of what follows
ANSWER = struct.Struct("<Q")
_COMPLAINT = re.compile(rb"corrupt|premature|truncated|error", re.IGNORECASE)


def decode(kind: bytes, rows: int, columns: int, container: int, bits: int, signed: int, coded: bytes) -> bytes:
    """One image's pixels, row by row, little-endian, in containers of 8, 16 or 32 bits."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(coded)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind.rstrip(b"\0").decode())))
    image.SetPixelFormat(gdcm.PixelFormat(1, container, bits, bits - 1, signed))
    return (image.GetBuffer() or "").encode("utf-8", "surrogateescape")


def serve(requests: BinaryIO, answers: BinaryIO, printed: int) -> None:
    """Answer requests until there are no more. What cannot be decoded gets an empty answer.

    Args:
        requests, answers: the other end's.
        printed: descriptor of the file into which the libraries print. They fill up what they cannot decode, and only
            say so there.
    """
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        kind, rows, columns, container, bits, signed, length = REQUEST.unpack(head)
        start = os.lseek(printed, 0, os.SEEK_END)
        pixels = decode(kind, rows, columns, container, bits, signed, requests.read(length))
        os.lseek(printed, start, os.SEEK_SET)
        if _COMPLAINT.search(os.read(printed, 1 << 16)):
            pixels = b""
        answers.write(ANSWER.pack(len(pixels)))
        answers.write(pixels)
        answers.flush()


if __name__ == "__main__":
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        serve(sys.stdin.buffer, sys.stdout.buffer, file.fileno())
