"""Which contrast a scan has, whether it shows a brain, and which way up: from the image, whatever its name says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from .brain import intensity_range
from .recognition_network import KINDS, POSES, SPACING, WINDOW, recognise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..models.package import Bundle

PACKAGE = "scan-recognition"
NO_BRAIN = "no brain"
CONTRASTS = ("FLAIR", "T1", "T2", "PD", "diffusion-weighted", "CT", "angiography")
"""The modalities of models that the network can tell scans by."""
# A scan is doubted below the first likeness and refused below the second. Of 64 FLAIR scans of two sources, half of
# them stripped, none of which was learnt from, one was below the first and none below the second.
DOUBTED, REFUSED = 0.1, 0.02
# A single slice tells little: of 56 FLAIR slices, half of them without geometry, 31 were below the first and one below
# the second; of 32 T1 slices all and two.
SINGLE_DOUBTED, SINGLE_REFUSED = 0.5, 0.1
UPRIGHT = "upright"
# Of the ways up the network is surer: 28 FLAIR scans, whole, stripped, cropped, and slabs of three slices had a
# probability of "upright" from 0.91 on, turned or mirrored front to back, 0.5 at most.
UPRIGHT_DOUBTED, UPRIGHT_REFUSED = 0.85, 0.5


@dataclass(frozen=True)
class Recognition:
    """What a scan looks like.

    Attributes:
        kinds: probability of each contrast, and of "no brain".
        poses: probability of "upright" and of each way that a header can be wrong about directions.
        is_single: whether it is a single slice, of which little can be told.
    """

    kinds: Mapping[str, float]
    poses: Mapping[str, float]
    is_single: bool = False

    @property
    def kind(self) -> str:
        """The likeliest contrast, or "no brain"."""
        return max(self.kinds, key=lambda name: self.kinds[name])

    @property
    def pose(self) -> str:
        """The likeliest pose."""
        return max(self.poses, key=lambda name: self.poses[name])

    def likeness(self, modality: str) -> float:
        """Probability that the scan is an upright brain of that contrast."""
        return self.kinds.get(modality, 0.0) * self.poses[UPRIGHT]

    def verdict(self, modality: str, what: str = "scan") -> Verdict | None:
        """What to say of a scan for a model of that contrast; None where it is what the model knows.

        Args:
            modality: as the package states it; of one that the network was not taught, nothing is said.
            what: whom the sentence is about, such as "scan" or "channel T1".
        """
        if modality not in self.kinds:
            return None
        likeness, upright = self.likeness(modality), self.poses[UPRIGHT]
        least, never = (SINGLE_DOUBTED, SINGLE_REFUSED) if self.is_single else (DOUBTED, REFUSED)
        if likeness >= least and upright >= UPRIGHT_DOUBTED:
            return None
        refused = likeness < never or upright < UPRIGHT_REFUSED
        numbers = f"likeness {likeness:.2g}"
        if self.kind == NO_BRAIN:
            seen = "shows no brain that the program knows"
        elif upright < UPRIGHT_DOUBTED:  # before the contrast, which is hard to tell of a turned head
            turned = max((name for name in self.poses if name != UPRIGHT), key=lambda name: self.poses[name])
            seen = f"shows a head {turned} by what its header says of directions"
            numbers = f"probability of upright {upright:.2g}"
        elif self.kind != modality:
            seen = f"looks like {self.kind}, the model knows {modality}"
        else:
            seen = f"hardly looks like {modality}, which is all that the model knows"
        if self.is_single:
            numbers += ", of a single slice, which tells little"
        return Verdict(f"The {what} {seen} ({numbers}); scores may mean nothing.", refused)


@dataclass(frozen=True)
class Verdict:
    """A doubt about a scan: what is said, and whether it is grave enough to stop."""

    message: str
    refused: bool


def recognition_window(image: sitk.Image, brain: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """What is shown to the network: 3 mm voxels around the middle of the brain, axes towards right, anterior, superior.

    Args:
        image: 3-D, float32, any orientation.
        brain: mask on its grid, not 0 inside.

    Returns:
        float32 image and bool mask, both of shape ``WINDOW``. Beyond the scan the image has its lowest value.
    """
    limits = intensity_range(sitk.GetArrayViewFromImage(image))
    coarse = sitk.DICOMOrient(limits(image), "RAS")
    mask = sitk.DICOMOrient(sitk.Cast(brain != 0, sitk.sitkFloat32), "RAS")
    shrink = [max(1, int(SPACING / spacing)) for spacing in coarse.GetSpacing()]
    shrink = [min(factor, size) for factor, size in zip(shrink, coarse.GetSize(), strict=True)]
    coarse, mask = sitk.BinShrink(coarse, shrink), sitk.BinShrink(mask, shrink)
    weights = sitk.GetArrayViewFromImage(mask)
    places = np.argwhere(weights >= min(0.5, weights.max())) if weights.max() > 0 else np.argwhere(weights >= 0)
    middle = coarse.TransformContinuousIndexToPhysicalPoint([float(v) for v in places.mean(0)[::-1]])
    direction = np.array(coarse.GetDirection()).reshape(3, 3)
    grid = sitk.Image(list(WINDOW), sitk.sitkUInt8)
    grid.SetSpacing([SPACING] * 3)
    grid.SetDirection(coarse.GetDirection())
    grid.SetOrigin((np.array(middle) - direction @ (SPACING * (np.array(WINDOW) - 1) / 2.0)).tolist())
    # The outermost slices are repeated outwards, so that interpolation covers whole voxels, a single slice's too.
    windows = [
        sitk.Resample(
            sitk.ZeroFluxNeumannPad(part, [1, 1, 1], [1, 1, 1]),
            grid,
            sitk.Transform(),
            sitk.sitkLinear,
            outside,
            sitk.sitkFloat32,
        )
        for part, outside in ((coarse, limits.low), (mask, 0.0))
    ]
    shown, inside = (sitk.GetArrayViewFromImage(window).transpose(2, 1, 0) for window in windows)
    return np.ascontiguousarray(shown), np.ascontiguousarray(inside >= 0.5)


class Recogniser:
    """Recognises scans with a small network that stays loaded, always on the CPU.

    Args:
        bundle: a package of kind ``recognition``; the built-in one by default.
    """

    def __init__(self, bundle: Bundle | None = None) -> None:
        self._bundle = bundle
        self._network: torch.nn.Module | None = None

    @cached_property
    def is_there(self) -> bool:
        """Whether there is a package; the built-in one may be left out for its licence."""
        from ..models.package import builtin_directory

        return self._bundle is not None or (builtin_directory() / PACKAGE).is_dir()

    def __call__(self, image: sitk.Image, brain: sitk.Image) -> Recognition:
        """What a scan looks like; arguments as of ``recognition_window``."""
        import torch

        from ..models.loading import load_network
        from ..models.package import open_bundle

        if self._network is None:
            self._network = load_network(self._bundle or open_bundle(PACKAGE), "recogniser")
        shown, inside = (torch.from_numpy(part)[None] for part in recognition_window(image, brain))
        with torch.no_grad():
            kinds, poses = recognise(self._network, shown, inside)
        return Recognition(
            dict(zip(KINDS, kinds[0].tolist(), strict=True)),
            dict(zip(POSES, poses[0].tolist(), strict=True)),
            1 in image.GetSize(),
        )
