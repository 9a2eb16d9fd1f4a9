"""How well scans are recognised: sets that the model should know, and sets that it should not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from diffusion_anomaly.detection.brain import BrainFinder
from diffusion_anomaly.detection.recognition import DOUBTED, REFUSED, Recogniser
from diffusion_anomaly.detection.recognition_network import KINDS, SPACING
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.evaluation.metrics import auroc
from diffusion_anomaly.models.package import Bundle

from ..data.contrasts import draw_scans
from ..data.scan_sets import ScanSet
from .brain import validation_heads


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
        return {
            "AUROC, FLAIR of the brain against all else": round(auroc(right, wrong), 4),
            "FLAIR doubted or refused in %": round(100.0 * float((right < DOUBTED).mean()), 2),
            "all else neither doubted nor refused in %": round(100.0 * float((wrong >= DOUBTED).mean()), 2),
            **quality,
        }
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
            values = sitk.GetArrayViewFromImage(image)
            image = sitk.GetImageFromArray(np.where(sitk.GetArrayViewFromImage(brain) != 0, values, values.min()))
            image.CopyInformation(scan.image)
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
