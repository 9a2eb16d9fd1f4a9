"""Sets of scans by where they are found: files, pictures in an array, painted heads, noise, phantoms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffusion_anomaly.io.sources import read
from diffusion_anomaly.io.volume import Volume

from .synthesis import SynthesisConfig


class ScanSet(BaseModel):
    """Scans of one kind: files, pictures in an array, painted heads, or noise.

    ``files`` are patterns below ``folder``; ``array`` is an entry ``(N, rows, columns)`` of an ``.npz`` file, of which
    every ``every``-th picture is a scan of one slice; ``labels`` is a file that prepare-labels wrote.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    known: bool = Field(default=False, description="whether scans of this kind should be accepted")
    folder: Path | None = None
    files: list[str] = []
    strip: bool = Field(default=False, description="show the brain alone, on a background of the lowest value")
    file: Path | None = None
    array: str | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    every: int = Field(default=1, gt=0)
    first: int = Field(default=0, ge=0)
    slices: int = Field(default=1, gt=0, description="pictures one above the other")
    labels: Path | None = None
    synthesis: SynthesisConfig = SynthesisConfig()
    noise: Literal["white", "smooth", "ball"] | None = None
    seed: int = Field(default=0, ge=0)
    count: int = Field(default=20, gt=0, description="of painted heads or images of noise")

    @model_validator(mode="after")
    def _one_source(self) -> ScanSet:
        if sum(value is not None for value in (self.folder, self.file, self.labels, self.noise)) != 1:
            raise ValueError(f"{self.name}: give one of folder, file, labels or noise")
        return self

    def scans(self) -> Iterator[Volume]:
        """The scans.

        Raises:
            FileNotFoundError: when there is none.
        """
        if self.folder is not None:
            paths = sorted(path for pattern in self.files for path in self.folder.glob(pattern))
            if not paths:
                raise FileNotFoundError(f"{self.folder} has no {', '.join(self.files)}")
            yield from (_volume(read(path)) for path in paths)
        elif self.file is not None:
            with np.load(self.file) as content:
                pictures = content[self.array]
            for first in range(self.first, len(pictures) - self.slices + 1, self.every):
                yield _volume(read(pictures[first : first + self.slices].astype(np.float32), spacing=self.spacing))
        elif self.noise is not None:
            yield from self._noise()

    def _noise(self) -> Iterator[Volume]:
        generator = np.random.default_rng(self.seed)
        places = np.indices((40, 96, 96)) - np.array([20.0, 48.0, 48.0])[:, None, None, None]
        for _ in range(self.count):
            image = generator.normal(100.0, 20.0, (40, 96, 96)).astype(np.float32)
            if self.noise == "smooth":
                sigma = [float(generator.uniform(1.0, 4.0))] * 3
                image = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(image), sigma))
            elif self.noise == "ball":  # or a cylinder, with inserts, as scanners are tested with
                radius, flat = generator.uniform(25, 45), generator.choice([0.0, 2.0])
                inside = (places[1] ** 2 + places[2] ** 2 + (flat * places[0]) ** 2) < radius**2
                image = image * 0.05 + np.where(inside, generator.uniform(50, 300), 0.0)
                for _ in range(generator.integers(0, 7)):
                    y, x, r = generator.uniform(-18, 18), generator.uniform(-18, 18), generator.uniform(2, 9)
                    image[((places[1] - y) ** 2 + (places[2] - x) ** 2 < r**2) & inside] = generator.uniform(0, 400)
            yield _volume(read(image.astype(np.float32), spacing=(2.0, 2.0, 4.0)))


def _volume(scan: Any) -> Volume:
    assert isinstance(scan, Volume)
    return scan
