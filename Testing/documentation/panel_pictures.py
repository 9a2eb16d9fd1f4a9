"""Puts the pictures that ``Testing/app`` has taken into the documentation, with few colours so that they are small."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TAKEN, KEPT = ROOT / "Testing" / "output", ROOT / "docs" / "images"
PATTERNS = ("panel-*.png", "slicer-running.png", "slicer-results.png")
LARGEST = 150_000  # bytes


def small(picture: Image.Image) -> bytes:
    """As PNG with a palette of 256 colours.

    By an octree: the small coloured places on a large grey scan keep their colours, which median cut would take away.

    Raises:
        ValueError: when it is too large all the same.
    """
    file = io.BytesIO()
    reduced = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    reduced.save(file, "PNG", optimize=True)
    content = file.getvalue()
    if len(content) > LARGEST:
        msg = f"{len(content)} bytes, expected at most {LARGEST}: take a smaller picture"
        raise ValueError(msg)
    return content


def main() -> None:
    """Write each picture that was taken."""
    for path in sorted(path for pattern in PATTERNS for path in TAKEN.glob(pattern)):
        with Image.open(path) as picture:
            content = small(picture)
        (KEPT / path.name).write_bytes(content)
        sys.stdout.write(f"{path.name}: {len(content) / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
