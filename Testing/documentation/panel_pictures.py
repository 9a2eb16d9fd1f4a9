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
COLOURS = (256, 128, 96, 64, 48, 32)


def small(picture: Image.Image) -> bytes:
    """As PNG with a palette, of as many colours as the size allows.

    Raises:
        ValueError: when it is too large with the fewest colours.
    """
    for colours in COLOURS:
        file = io.BytesIO()
        picture.convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            file, "PNG", optimize=True
        )
        if len(content := file.getvalue()) <= LARGEST:
            return content
    msg = f"{len(content)} bytes with {colours} colours, expected at most {LARGEST}: take a smaller picture"
    raise ValueError(msg)


def main() -> None:
    """Write each picture that was taken."""
    for path in sorted(path for pattern in PATTERNS for path in TAKEN.glob(pattern)):
        with Image.open(path) as picture:
            content = small(picture)
        (KEPT / path.name).write_bytes(content)
        sys.stdout.write(f"{path.name}: {len(content) / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
