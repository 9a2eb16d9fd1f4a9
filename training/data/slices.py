"""From a folder of scans to the slices that networks are trained on, through the engine's own preprocessing.

Slices are kept as one compressed array file a split: it is small, loads at once and travels to a GPU machine.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffusion_anomaly.atomic import whole_file
from diffusion_anomaly.brain import find_brain
from diffusion_anomaly.bundle import open_bundle
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.intensity import Normalisation, normalisation_from_dict
from diffusion_anomaly.orientation import Orientation
from diffusion_anomaly.stack import Grid, SliceStack
from diffusion_anomaly.volume import Volume, read_mask, read_volume, write_like

from .halves import healthy_halves

logger = logging.getLogger(__name__)

HEALTHY, DISEASED, UNUSED = 0, 1, -1
HEALTHY_HALF = 2  # a healthy half and its mirror image, see ``halves``


class GridConfig(BaseModel):
    """The slice grid of the models, see ``diffusion_anomaly.volume.Grid``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int]
    spacing: float = Field(gt=0)
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
    """Where the brain masks of scans come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    brains: str | None = Field(default=None, description="pattern of ready brain masks: {scan} is the scan's name")
    brain_model: str = "brain-mask"


class PrepareConfig(BrainSource):
    """Configuration file of the stage ``prepare``."""

    train: Path
    val: Path
    pattern: str = "*.nii.gz"
    labels: Path | None = Field(default=None, description="CSV scan,slice,label; without it every slice is healthy")
    lesions: tuple[str, str] | None = Field(
        default=None,
        description="how a scan's name ends, and its lesion mask's instead; with it, healthy halves are kept too",
    )
    grid: GridConfig
    normalisation: NormalisationConfig = NormalisationConfig()
    minimum_brain_pixels: int = Field(default=300, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> PrepareConfig:
        if self.lesions is not None and self.labels is None:
            raise ValueError("lesions needs labels too: without them, slices with a lesion would count as healthy")
        return self


@dataclass(frozen=True)
class Slices:
    """Normalised slices of many scans.

    Attributes:
        images: ``(N, H, W)`` uint8, 255 is 1.0 of the normalised range.
        brain: ``(N, H, W)`` bool.
        label: ``(N,)`` int8: healthy 0, diseased 1, -1 neither (too close to a lesion to count as healthy), 2 a
            healthy half of a diseased slice with its mirror image.
        height: ``(N,)`` float32, 0 at the brain's lowest slice and 1 at its highest.
        scan: ``(N,)`` names.
        index: ``(N,)`` canonical slice index, counted from below.
        voxel_ml: ``(N,)`` float32.
    """

    images: np.ndarray
    brain: np.ndarray
    label: np.ndarray
    height: np.ndarray
    scan: np.ndarray
    index: np.ndarray
    voxel_ml: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def select(self, keep: np.ndarray) -> Slices:
        return Slices(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))

    def save(self, path: Path) -> None:
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__}
        arrays["brain"] = np.packbits(self.brain, axis=-1)
        with whole_file(path) as partial:
            np.savez_compressed(partial, **arrays)

    @classmethod
    def load(cls, path: Path) -> Slices:
        """What ``save`` wrote.

        Raises:
            FileNotFoundError: when the stage ``prepare`` has not written it.
            InputError: when the file holds something else.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run the stage 'prepare' first.")
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in cls.__dataclass_fields__ if name not in file]
            if missing:
                raise InputError(
                    f"{path} lacks {', '.join(missing)}.", "It is no file of the stage 'prepare'; run that stage."
                )
            arrays = {name: file[name] for name in cls.__dataclass_fields__}
        # Whole bytes are packed; a width that is no multiple of 8 has been filled up.
        width = arrays["images"].shape[-1]
        arrays["brain"] = np.unpackbits(arrays["brain"], axis=-1, count=width).astype(bool)
        return cls(**arrays)


def training_slices(folder: Path, halves: bool) -> Slices:
    """The training split of the stage ``prepare``.

    Args:
        folder: where it was written.
        halves: whether healthy halves with their mirror images count as healthy slices; they are left out otherwise.
    """
    slices = Slices.load(folder / "train.npz")
    if halves:
        return replace(slices, label=np.where(slices.label == HEALTHY_HALF, HEALTHY, slices.label))
    return slices.select(slices.label != HEALTHY_HALF)


def validation_slices(folder: Path) -> Slices:
    """The validation split of the stage ``prepare``, real slices alone."""
    slices = Slices.load(folder / "val.npz")
    return slices.select(slices.label != HEALTHY_HALF)


def prepare(config: PrepareConfig, output: Path) -> None:
    """Write ``train.npz`` and ``val.npz``.

    Raises:
        FileNotFoundError: when a folder holds no scan.
        InputError: when a scan is in both splits, has no labels, or cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    labels = read_labels(config.labels) if config.labels else None
    splits = {}
    for split, folder in (("train", config.train), ("val", config.val)):
        splits[split] = sorted(folder.glob(config.pattern))
        if not splits[split]:
            raise FileNotFoundError(f"{folder} holds no scan that matches {config.pattern}.")
    require_disjoint(splits["train"], splits["val"])
    if labels is not None:
        require_labelled([*splits["train"], *splits["val"]], labels, config.labels)
    for split, scans in splits.items():
        slices = join([slice_scan(path, config, labels, output / "brains") for path in scans])
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


def slice_scan(path: Path, config: PrepareConfig, labels: Mapping[tuple[str, int], int] | None, brains: Path) -> Slices:
    """The slices of one scan, with brain enough to matter."""
    volume = read_volume(path)
    mask = brain_of(path, volume, config, brains)
    stack = SliceStack(volume, Grid(**config.grid.model_dump()), mask)
    rule = config.normalisation.rule
    brain = stack.brain()
    normalised = rule.fit_scan(volume.image, mask)(stack.images(), brain) / rule.clip_max
    images = np.round(255.0 * normalised).astype(np.uint8)
    index = np.array(stack.indices)
    name = path.name
    label = np.zeros(len(index), np.int8)
    if labels is not None:
        label = slab_labels(labels, name, index, slab_thickness(stack, volume))
    count = len(index)
    slices = Slices(
        images,
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


def halves_of(slices: Slices, normalised: np.ndarray, lesion: np.ndarray) -> Slices:
    """The healthy halves of one scan's slices, each with its mirror image.

    Args:
        slices: all of the scan's, in order.
        normalised: ``(N, H, W)`` their images in [0, 1].
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
    assert config.lesions is not None
    return lesion_on_grid(path, volume, brain, Grid(**config.grid.model_dump()), config.lesions)


def lesion_on_grid(path: Path, volume: Volume, brain: sitk.Image, grid: Grid, names: tuple[str, str]) -> np.ndarray:
    """A scan's lesion mask on the slice grid, generously: whatever a pixel shares with a lesion counts.

    Args:
        path: the scan.
        volume: what it holds.
        brain: its brain mask.
        grid: the slices' grid.
        names: how the scan's name ends, and its lesion mask's instead.

    Returns:
        ``(N, H, W)`` bool.
    """
    ending, instead = names
    if not path.name.endswith(ending):
        raise InputError(f"{path} does not end in {ending!r}.", "Set 'lesions' to how the scans' names end.")
    mask = read_mask(path.with_name(path.name.removesuffix(ending) + instead), volume)
    as_volume = replace(volume, image=sitk.Cast(mask, sitk.sitkFloat32))
    return SliceStack(as_volume, grid, brain).images() > 0.01


def slab_thickness(stack: SliceStack, volume: Volume) -> int:
    """How many of the volume's slices one slice of the stack is the mean of."""
    return round(stack.slice_spacing / Orientation.of(volume.image).spacing(volume.image)[0])


def slab_labels(labels: Mapping[tuple[str, int], int], scan: str, index: np.ndarray, thickness: int) -> np.ndarray:
    """Labels of a stack's slices, each of which may be the mean of several thin ones.

    Diseased when any of them is, healthy when all are, else unused.

    Args:
        labels: of thin slices, by scan and slice.
        scan: its name.
        index: ``(n,)`` middles of the slabs, as ``SliceStack.indices``.
        thickness: thin slices a slab.
    """
    last = max((number for name, number in labels if name == scan), default=-1)
    result = np.full(len(index), UNUSED, np.int8)
    for place, middle in enumerate(index):
        first = int(middle) - thickness // 2
        # The topmost slab may be thinner; what it does not reach is looked at all the same.
        slab = [labels.get((scan, i), UNUSED) for i in range(max(first, 0), min(first + thickness, last + 1))]
        if DISEASED in slab:
            result[place] = DISEASED
        elif slab and all(value == HEALTHY for value in slab):
            result[place] = HEALTHY
    return result


def brain_of(path: Path, volume: Volume, config: BrainSource, cache: Path | None) -> sitk.Image:
    """A scan's brain: the mask beside it, the one found before, or the one found now and kept."""
    if config.brains:
        return read_mask(path.parent / config.brains.format(scan=path.name.removesuffix(".nii.gz")), volume)
    kept = cache / path.name if cache else None
    if kept is not None and kept.exists():
        return read_mask(kept, volume)
    mask = find_brain(volume, open_bundle(config.brain_model))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_like(mask, volume, kept, dtype=np.uint8)
    return mask


def join(parts: Sequence[Slices]) -> Slices:
    return Slices(*(np.concatenate([getattr(p, name) for p in parts]) for name in Slices.__dataclass_fields__))


def read_labels(path: Path) -> dict[tuple[str, int], int]:
    """A CSV with the columns scan (file name), slice (counted from the lowest, from 0) and label (0, 1 or -1).

    Raises:
        InputError: naming the row that cannot be used.
    """
    labels: dict[tuple[str, int], int] = {}
    for number, row in _rows(path, ("scan", "slice", "label")):
        try:
            place, label = (row["scan"], int(row["slice"])), int(row["label"])
        except ValueError as error:
            raise InputError(f"{path}, line {number}: slice and label must be whole numbers, found {row}.") from error
        if label not in (HEALTHY, DISEASED, UNUSED) or place[1] < 0:
            raise InputError(f"{path}, line {number}: expected a label of 0, 1 or -1 and a slice from 0, found {row}.")
        if labels.setdefault(place, label) != label:
            raise InputError(f"{path}, line {number}: slice {place[1]} of {place[0]} has another label further up.")
    return labels


def label_tumour_slices(slices_csv: Path, output: Path, distance: int = 3) -> None:
    """Labels of the LGG set: diseased with tumour, healthy at least ``distance`` slices away from any, else unused.

    Raises:
        InputError: when the table lacks the columns patient, slice and tumour_px.
    """
    rows: dict[str, list[tuple[int, int]]] = {}
    for _, row in _rows(slices_csv, ("patient", "slice", "tumour_px")):
        rows.setdefault(row["patient"], []).append((int(row["slice"]), int(row["tumour_px"])))
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["scan", "slice", "label"])
        for patient, slices in rows.items():
            tumour = np.array([index for index, pixels in slices if pixels > 0])
            for index, pixels in slices:
                far = tumour.size == 0 or np.abs(tumour - index).min() >= distance
                label = DISEASED if pixels > 0 else HEALTHY if far else UNUSED
                writer.writerow([f"{patient}_flair.nii.gz", index, label])


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with their line numbers."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not set(columns) <= set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise InputError(f"{path} has the columns {found}; expected {', '.join(columns)}.")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path}, line {reader.line_num} has not the {len(reader.fieldnames or ())} columns of line 1."
                )
            yield reader.line_num, row
