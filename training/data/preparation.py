"""From a folder of scans to the slices that networks are trained on, through the engine's own preprocessing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffusion_anomaly.detection.brain import BrainFinder
from diffusion_anomaly.detection.regions import find_region, whole_image
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.orientation import Orientation
from diffusion_anomaly.io.volume import Volume, read_mask, read_volume, write_like
from diffusion_anomaly.models.package import open_bundle
from diffusion_anomaly.preprocessing.intensity import Normalisation, normalisation_from_dict
from diffusion_anomaly.preprocessing.slices import Grid, SliceStack

from .halves import healthy_halves
from .slice_labels import read_column, read_labels, slab_labels
from .slices import HEALTHY_HALF, HEIGHT_BINS, Slices, join

logger = logging.getLogger(__name__)

TOUCHED = 0.01  # share of a pixel that is lesion, from which it is no longer known to be healthy


class GridConfig(BaseModel):
    """The slice grid of the models, see ``diffusion_anomaly.volume.Grid``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int]
    spacing: float | None = Field(default=None, gt=0, description="mm; without it whole images are fitted to the size")
    max_slice_spacing: float = Field(default=3.0, gt=0)
    neighbours: int = Field(default=0, ge=0)


class NormalisationConfig(BaseModel):
    """Intensity scale of the models: ``kind`` and what the rule of that kind in the engine takes."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = "mode"

    @model_validator(mode="after")
    def _known(self) -> NormalisationConfig:
        try:
            _ = self.rule
        except InputError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def rule(self) -> Normalisation:
        return normalisation_from_dict(self.model_dump())


class BrainSource(BaseModel):
    """Where the masks of what is looked at come from: mostly brains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    brains: str | None = Field(default=None, description="pattern of ready brain masks: {scan} is the scan's name")
    brain_model: str = "brain-mask"
    region: Literal["brain", "head", "intracranial", "image"] = "brain"


class OtherContrast(BaseModel):
    """Scans of another contrast, each on the grid of the patient's first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str = Field(description="* is the patient, as in the first contrast's pattern")
    train: Path | None = Field(default=None, description="where they lie; without it, where the first contrast's do")
    val: Path | None = None


class PrepareConfig(BrainSource):
    """Configuration file of the stage ``prepare``."""

    train: Path
    val: Path
    pattern: str = "*.nii.gz"
    contrast: str | None = Field(default=None, description="what the scans are, when there are other contrasts too")
    other_contrasts: dict[str, OtherContrast] = Field(default={}, description="by name, in the order of the channels")
    complete_only: bool = Field(default=False, description="leave patients out who lack a contrast; else refuse them")
    labels: Path | None = Field(default=None, description="CSV scan,slice,label; without it every slice is healthy")
    lesions: tuple[str, str] | None = Field(
        default=None,
        description="how a scan's name ends, and its lesion mask's instead; with it, healthy halves are kept too",
    )
    strata: str | None = Field(
        default=None, description="column of the labels, such as view, in which classes are drawn alike, for pictures"
    )
    grid: GridConfig
    normalisation: NormalisationConfig = NormalisationConfig()
    minimum_brain_pixels: int = Field(default=300, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> PrepareConfig:
        if self.lesions is not None and self.labels is None:
            raise ValueError("lesions needs labels too: without them, slices with a lesion would count as healthy")
        if (self.contrast is not None) != bool(self.other_contrasts):
            raise ValueError("contrast and other_contrasts belong together: a single contrast needs no name")
        if len({name.casefold() for name in self.channels}) < len(self.channels):
            raise ValueError(f"two contrasts have one name: {', '.join(self.channels)}")
        if self.other_contrasts:
            for pattern in (self.pattern, *(other.pattern for other in self.other_contrasts.values())):
                if pattern.count("*") != 1:
                    raise ValueError(f"the pattern {pattern!r} needs one *, which stands for the patient")
        if self.strata is not None and self.labels is None:
            raise ValueError("strata is a column of labels, which are not given")
        if self.grid.spacing is None and self.region != "image":
            raise ValueError(f"grid needs a spacing: the {self.region} has a size in mm")
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """The contrasts by name, in the order of the slices' channels; none for scans of a single contrast."""
        return () if self.contrast is None else (self.contrast, *self.other_contrasts)

    def scans(self, split: str) -> list[tuple[Path, ...]]:
        """Each patient's files of one split, one a contrast, sorted by name.

        Raises:
            FileNotFoundError: when the folder holds no scan.
            InputError: when a patient lacks a contrast, or every one does.
        """
        folder: Path = getattr(self, split)
        scans = [self._contrasts_of(path, split) for path in sorted(folder.glob(self.pattern))]
        if not scans:
            raise FileNotFoundError(f"{folder} holds no scan that matches {self.pattern}.")
        missing = [path for scan in scans for path in scan if not path.exists()]
        if missing and not self.complete_only:
            raise InputError(
                f"{len(missing)} scan{'s are' if len(missing) > 1 else ' is'} missing, the first is {missing[0]}.",
                "Every patient needs every contrast; 'complete_only: true' leaves the others out.",
            )
        complete = [scan for scan in scans if all(path.exists() for path in scan)]
        if len(complete) < len(scans):
            logger.info("%s: %d of %d patients have all contrasts", split, len(complete), len(scans))
        if not complete:
            raise InputError(f"No patient in {folder} has all of {', '.join(self.channels)}.", "Look at the patterns.")
        return complete

    def _contrasts_of(self, path: Path, split: str) -> tuple[Path, ...]:
        folder: Path = getattr(self, split)
        before, after = self.pattern.partition("*")[::2]
        patient = path.relative_to(folder).as_posix().removeprefix(before)
        patient = patient.removesuffix(after) if after else patient
        others = (
            (getattr(other, split) or folder) / other.pattern.replace("*", patient)
            for other in self.other_contrasts.values()
        )
        return (path, *others)


def prepare(config: PrepareConfig, output: Path) -> None:
    """Write ``train.npz`` and ``val.npz``.

    Raises:
        FileNotFoundError: when a folder holds no scan.
        InputError: when a scan is in both splits, has no labels, or cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):  # before hours of work
        Slices.keep_foreign(output / f"{split}.npz")
    labels = read_labels(config.labels) if config.labels else None
    splits = {split: config.scans(split) for split in ("train", "val")}
    require_disjoint(*([path for scan in scans for path in scan] for scans in splits.values()))
    if labels is not None:
        require_labelled([scan[0] for scans in splits.values() for scan in scans], labels, config.labels)
    for split, scans in splits.items():
        slices = join([slice_scan(paths, config, labels, output / "brains") for paths in scans])
        if config.strata is not None and config.labels is not None:
            slices = replace(slices, height=strata_heights(slices.scan, read_column(config.labels, config.strata)))
        slices.save(output / f"{split}.npz")
        counts = {name: int((slices.label == value).sum()) for name, value in (("healthy", 0), ("diseased", 1))}
        logger.info("%s: %d scans, %d slices, %s", split, len(scans), len(slices), counts)


def require_disjoint(train: Iterable[Path], val: Iterable[Path]) -> None:
    """No scan may be in both splits, neither by name nor by content: what has been learnt says nothing of health."""
    names = {path.name: path for path in train}
    contents = {hashlib.sha256(path.read_bytes()).digest(): path for path in names.values()}
    for path in val:
        twin = names.get(path.name) or contents.get(hashlib.sha256(path.read_bytes()).digest())
        if twin is not None:
            raise InputError(
                f"{path} and {twin} are the same scan, by name or by content.",
                "Split by patient: each patient's scans belong either to train or to val.",
            )


def require_labelled(scans: Iterable[Path], labels: Mapping[tuple[str, int], int], source: Path | None) -> None:
    """Every scan has rows in the CSV: one that is missing is a wrong name rather than a wish to leave it out."""
    known = {name for name, _ in labels}
    for path in scans:
        if path.name not in known:
            raise InputError(
                f"{source} has no row for the scan {path.name}.",
                "The column 'scan' holds file names as they stand in the folders; a slice to leave out gets label -1.",
            )


def slice_scan(
    paths: Sequence[Path], config: PrepareConfig, labels: Mapping[tuple[str, int], int] | None, brains: Path
) -> Slices:
    """The slices of one scan, with brain enough to matter.

    Args:
        paths: its contrasts, the first one's brain, labels and lesions being the scan's.
        config: of the stage.
        labels: of its slices.
        brains: folder of the brains found so far.
    """
    path, volume = paths[0], read_volume(paths[0])
    images = [volume.image, *(read_volume(other).image for other in paths[1:])]
    require_different(paths, images)
    mask = brain_of(path, volume, config, brains)
    orientation = Orientation.stored(volume.image) if config.region == "image" else None
    stack = SliceStack(images, Grid(**config.grid.model_dump()), mask, orientation)
    rule = config.normalisation.rule
    brain = stack.brain()
    scales = [rule.fit_scan(image, mask) for image in images]
    shown = stack.images()
    channels = [scale(shown[:, number], brain) for number, scale in enumerate(scales)]
    normalised = np.stack(channels, axis=1) / rule.clip_max
    index = np.array(stack.indices)
    name = path.name
    label = np.zeros(len(index), np.int8)
    if labels is not None:
        label = slab_labels(labels, name, index, slab_thickness(stack, volume))
    count = len(index)
    slices = Slices(
        np.round(255.0 * normalised).astype(np.uint8),
        brain,
        label,
        (index - index[0]).astype(np.float32) / max(1, index[-1] - index[0]),
        np.full(count, name),
        index,
        np.full(count, stack.voxel_ml, np.float32),
    )
    if config.lesions is not None:
        slices = join([slices, halves_of(slices, normalised, _lesion(path, volume, mask, config))])
    return slices.select(slices.brain.sum((1, 2)) >= config.minimum_brain_pixels)


def require_different(paths: Sequence[Path], images: Sequence[sitk.Image]) -> None:
    """No contrast may be another one's copy, as sets are published in which one stands in for those that lack.

    Raises:
        InputError: naming both files.
    """
    arrays = [sitk.GetArrayViewFromImage(image) for image in images]
    for (first, one), (second, other) in combinations(zip(paths, arrays, strict=True), 2):
        if np.array_equal(one, other):
            raise InputError(f"{first} and {second} hold the same image.", "Give another contrast, or leave it out.")


def strata_heights(scans: np.ndarray, stratum: Mapping[str, str]) -> np.ndarray:
    """Heights that make a sampler draw both classes alike in each stratum, as it does at each height of a brain.

    Args:
        scans: ``(N,)`` names of pictures.
        stratum: of each.

    Returns:
        ``(N,)`` float32.

    Raises:
        InputError: when there are more strata than a sampler tells apart.
    """
    names = sorted(set(stratum.values()))
    if len(names) > HEIGHT_BINS:
        raise InputError(f"There are {len(names)} strata; expected at most {HEIGHT_BINS}.", "Choose another column.")
    place = {name: (number + 0.5) / len(names) for number, name in enumerate(names)}
    return np.array([place[stratum[scan]] for scan in scans], np.float32)


def halves_of(slices: Slices, normalised: np.ndarray, lesion: np.ndarray) -> Slices:
    """The healthy halves of one scan's slices, each with its mirror image.

    Args:
        slices: all of the scan's, in order.
        normalised: ``(N, C, H, W)`` their images in [0, 1].
        lesion: ``(N, H, W)`` bool.
    """
    found = healthy_halves(normalised, slices.brain, lesion)
    chosen = slices.select(np.array([number for number, _, _ in found], dtype=int))
    for place, (_, image, brain) in enumerate(found):
        chosen.images[place] = np.round(255.0 * np.where(brain, image, 0.0)).astype(np.uint8)
        chosen.brain[place] = brain
    chosen.label[:] = HEALTHY_HALF
    return chosen


def _lesion(path: Path, volume: Volume, brain: sitk.Image, config: PrepareConfig) -> np.ndarray:
    """A scan's lesion mask on the slice grid, ``(N, H, W)`` bool, generously: whatever shares a pixel counts."""
    assert config.lesions is not None
    return lesion_share(path, volume, brain, Grid(**config.grid.model_dump()), config.lesions) > TOUCHED


def lesion_share(path: Path, volume: Volume, brain: sitk.Image, grid: Grid, names: tuple[str, str]) -> np.ndarray:
    """What share of the brain in each pixel of the slice grid is lesion.

    Args:
        path: the scan.
        volume: what it holds.
        brain: its brain mask.
        grid: the slices' grid.
        names: how the scan's name ends, and its lesion mask's instead.

    Returns:
        ``(N, H, W)`` float32 in [0, 1], 0 outside the brain.

    Raises:
        InputError: when the mask cannot be read, is not on the scan's grid, or the scan's name ends otherwise.
    """
    ending, instead = names
    if not path.name.endswith(ending):
        raise InputError(f"{path} does not end in {ending!r}.", "Set 'lesions' to how the scans' names end.")
    mask = read_mask(path.with_name(path.name.removesuffix(ending) + instead), volume)
    return SliceStack([sitk.Cast(mask, sitk.sitkFloat32)], grid, brain).images()[:, 0]


def slab_thickness(stack: SliceStack, volume: Volume) -> int:
    """How many of the volume's slices one slice of the stack is the mean of."""
    return round(stack.slice_spacing / Orientation.of(volume.image).spacing(volume.image)[0])


def brain_of(path: Path, volume: Volume, config: BrainSource, cache: Path | None) -> sitk.Image:
    """A scan's brain or other region: the mask beside it, the one found before, or the one found now and kept."""
    if config.region == "image":
        return whole_image(volume)
    if config.brains:
        return read_mask(path.parent / config.brains.format(scan=path.name.removesuffix(".nii.gz")), volume)
    kept = cache / path.name if cache else None
    if kept is not None and kept.exists():
        return read_mask(kept, volume)
    mask = find_region(config.region, volume, BrainFinder(open_bundle(config.brain_model)))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_like(mask, volume, kept, dtype=np.uint8)
    return mask
