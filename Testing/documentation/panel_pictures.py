"""Puts the pictures that ``Testing/app`` has taken into the documentation, with few colours so that they are small."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TAKEN, KEPT = ROOT / "Testing" / "output", ROOT / "docs" / "images"
PATTERNS = ("panel-*.png", "slicer-running.png", "slicer-results.png")
LARGEST = 112_000  # bytes
COLOURED = 60  # from how far apart red, green and blue lie a pixel has a colour


def small(picture: Image.Image) -> bytes:
    """As PNG with a palette.

    Half of it is for colours and half for greys, so that the small coloured places on a large grey scan keep theirs; an
    octree has fewer greys and makes a smaller file.

    Raises:
        ValueError: when it is too large all the same.
    """
    picture = picture.convert("RGB")
    for palette in (*(halves(picture, colours) for colours in (256, 128)), None):
        if palette is None:
            reduced = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        else:
            reduced = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        file = io.BytesIO()
        reduced.save(file, "PNG", optimize=True)
        if len(content := file.getvalue()) <= LARGEST:
            return content
    msg = f"{len(content)} bytes, expected at most {LARGEST}: take a smaller picture"
    raise ValueError(msg)


def halves(picture: Image.Image, colours: int) -> Image.Image:
    """An image that carries a palette of so many colours, half of them greys."""
    pixels = np.asarray(picture)
    coloured = np.ptp(pixels, axis=2) > COLOURED
    entries: list[int] = []
    for part in (pixels[coloured], pixels[~coloured]):
        parted = Image.fromarray(part[None]).quantize(colours // 2, Image.Quantize.MEDIANCUT, kmeans=2)
        entries += (parted.getpalette() or [])[: 3 * (colours // 2)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries)
    return palette


def main() -> None:
    """Write each picture that was taken."""
    for path in sorted(path for pattern in PATTERNS for path in TAKEN.glob(pattern)):
        with Image.open(path) as picture:
            content = small(picture)
        (KEPT / path.name).write_bytes(content)
        sys.stdout.write(f"{path.name}: {len(content) / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
