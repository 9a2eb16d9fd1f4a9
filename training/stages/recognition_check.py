"""How well scans are recognised: sets that the model should know, and sets that it should not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffusion_anomaly.detection.brain import BrainFinder
from diffusion_anomaly.detection.recognition import DOUBTED, REFUSED, Recogniser
from diffusion_anomaly.detection.recognition_network import KINDS, SPACING
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation.metrics import auroc
from diffusion_anomaly.io.sources import read
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.models.package import Bundle

from ..data.contrasts import draw_scans
from ..data.synthesis import SynthesisConfig
from .brain import validation_heads


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
    slices: int = Field(default=1, gt=0, description="pictures one above the other")
    labels: Path | None = None
    synthesis: SynthesisConfig = SynthesisConfig()
    noise: Literal["white", "smooth"] | None = None
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
            for first in range(0, len(pictures) - self.slices + 1, self.every):
                yield _volume(read(pictures[first : first + self.slices].astype(np.float32), spacing=self.spacing))
        elif self.noise is not None:
            yield from self._noise()

    def _noise(self) -> Iterator[Volume]:
        generator = np.random.default_rng(0)
        for _ in range(self.count):
            image = generator.normal(100.0, 20.0, (40, 96, 96)).astype(np.float32)
            if self.noise == "smooth":
                image = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(image), 3.0))
            yield _volume(read(image, spacing=(2.0, 2.0, 4.0)))


def check_recognition(bundle: Bundle, sets: list[ScanSet]) -> dict[str, Any]:
    """What the sets measure, for a package's ``quality``: AUROC of the likeness to FLAIR, doubts and refusals.

    A scan in which no brain is found is refused, and has the likeness 0.
    """
    finder, recogniser = BrainFinder(device="cpu"), Recogniser(bundle)
    quality: dict[str, Any] = {}
    known, other = [], []
    for one in sets:
        found = _painted(one, recogniser) if one.labels else _found(one, finder, recogniser)
        likeness = np.array(list(found))
        (known if one.known else other).append(likeness)
        row = f"{one.name} ({len(likeness)})"
        quality[f"{row}, refused in %"] = round(100.0 * float((likeness < REFUSED).mean()), 1)
        quality[f"{row}, doubted or refused in %"] = round(100.0 * float((likeness < DOUBTED).mean()), 1)
    if known and other:
        right, wrong = np.concatenate(known), np.concatenate(other)
        quality["AUROC, FLAIR of the brain against all else"] = round(auroc(right, wrong), 4)
        quality["FLAIR doubted or refused in %"] = round(100.0 * float((right < DOUBTED).mean()), 2)
        quality["all else neither doubted nor refused in %"] = round(100.0 * float((wrong >= DOUBTED).mean()), 2)
    return quality


def _found(one: ScanSet, finder: BrainFinder, recogniser: Recogniser) -> Iterator[float]:
    """The likeness to FLAIR of each scan with the brain that is found in it, and 0 where none is."""
    for scan in one.scans():
        try:
            brain = finder(scan)
        except InputError:
            yield 0.0
            continue
        image = scan.image
        if one.strip:
            image = sitk.Mask(image, brain, float(sitk.GetArrayViewFromImage(image).min()))
        yield recogniser(image, brain).likeness("FLAIR")


def _painted(one: ScanSet, recogniser: Recogniser) -> Iterator[float]:
    """Heads of the label maps kept apart, as images of 3 mm with their true brains; FLAIR or not as ``known``."""
    assert one.labels is not None
    maps, generator, found = validation_heads(one.labels), torch.Generator().manual_seed(1), 0
    while found < one.count:
        image, brain, kind, pose = draw_scans(maps, one.synthesis, generator, 8)
        fits = ((kind == KINDS.index("FLAIR")) & (pose == 0)) == one.known
        for number in torch.nonzero(fits)[: one.count - found, 0]:
            if not brain[number].any():
                continue
            yield recogniser(_placed(image[number].numpy()), _placed(brain[number].numpy())).likeness("FLAIR")
            found += 1


def _placed(values: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0).astype(np.float32))
    image.SetSpacing([SPACING] * 3)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # the arrays run to the right, the front and up
    return image


def _volume(scan: Any) -> Volume:
    assert isinstance(scan, Volume)
    return scan
