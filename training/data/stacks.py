"""From scans to stacks of slices on the slab grid, their healthy tissue and lesions, through the engine's own steps.

One compressed file: it loads at once and travels to a GPU machine, where nothing that reads images is needed. Stacks
whose licence restricts what may be done with them are marked, so that weights for everybody never see them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.files import holds_arrays, keep_foreign, whole_file
from diffusion_anomaly.io.orientation import Orientation
from diffusion_anomaly.io.volume import read_volume
from diffusion_anomaly.preprocessing.slices import Grid, SliceStack

from .preparation import TOUCHED, BrainSource, NormalisationConfig, brain_of, lesion_share
from .slabs import SlabGrid
from .slice_labels import read_labels
from .slices import HEALTHY

logger = logging.getLogger(__name__)

Stack = tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]

AS_THEY_ARE = 1e-3  # mm, a slab thinner than any slice: slices are not averaged
MAINLY_LESION = 0.5  # share of a pixel


class ScanSet(BaseModel):
    """Scans of one kind and one licence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    pattern: str = "*.nii.gz"
    restricted: bool = Field(description="whether the licence restricts what may be done with what learns from them")
    lesions: tuple[str, str] | None = Field(
        default=None, description="how a scan's name ends, and its lesion mask's instead; without it all is healthy"
    )
    labels: Path | None = Field(
        default=None, description="CSV scan,slice,label; with it only scans all of whose slices are healthy are taken"
    )
    slabs: tuple[float, ...] = Field(default=(), description="mm of slabs that scans of thin slices are averaged to")


ARRAYS = ("images", "brain", "known", "lesion", "gap", "stack", "restricted", "names", "spacing")
EARLIER = tuple(name for name in ARRAYS if name != "lesion")


class PrepareSlabsConfig(BrainSource):
    """Configuration file of the stage ``prepare-slabs``."""

    scans: list[ScanSet] = Field(min_length=1)
    grid: SlabGrid = SlabGrid()
    normalisation: NormalisationConfig = NormalisationConfig()
    thin: float = Field(default=2.0, gt=0, description="mm, slices below it are thin")
    lesion_margin: int = Field(default=6, ge=0, description="pixels around a lesion, and a slice up and down, left out")


def prepare_slabs(config: PrepareSlabsConfig, output: Path) -> None:
    """Write ``stacks.npz``, which ``RealStacks.load`` reads, and keep the brains found in ``brains``.

    Raises:
        FileNotFoundError: when a folder holds no scan, or by its labels no healthy one.
        InputError: when two scans have one name, or one or the labels cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    keep_foreign(output / "stacks.npz", lambda path: any(holds_arrays(names)(path) for names in (ARRAYS, EARLIER)))
    found = [(path, scans) for scans in config.scans for path in _paths(scans)]
    names = [path.name for path, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"There are several scans called {', '.join(twice)}.", "Give each a name of its own.")
    stacks = [(*stack, scans) for path, scans in found for stack in _stacks(path, scans, config, output / "brains")]
    names, images, brains, known, lesions, gaps, sets = zip(*stacks, strict=True)
    sizes = [len(image) for image in images]
    restricted = np.array([scans.restricted for scans in sets])
    with whole_file(output / "stacks.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            images=np.concatenate(images),
            brain=np.packbits(np.concatenate(brains), -1),
            known=np.packbits(np.concatenate(known), -1),
            lesion=np.packbits(np.concatenate(lesions), -1),
            gap=np.repeat(np.array(gaps, np.float32), sizes),
            stack=np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
            restricted=restricted,
            names=np.array(names),
            spacing=np.float64(config.grid.spacing),
        )
    logger.info("%d slices in %d stacks, %d of them restricted", sum(sizes), len(sizes), restricted.sum())


def _paths(scans: ScanSet) -> list[Path]:
    paths = sorted(scans.folder.glob(scans.pattern))
    if not paths:
        raise FileNotFoundError(f"{scans.folder} holds no scan that matches {scans.pattern}.")
    if scans.labels is None:
        return paths
    labels = read_labels(scans.labels)
    healthy = {scan for scan, _ in labels} - {scan for (scan, _), label in labels.items() if label != HEALTHY}
    found = [path for path in paths if path.name in healthy]
    logger.info("%s: %d of %d scans are healthy throughout", scans.folder, len(found), len(paths))
    if not found:
        raise FileNotFoundError(f"{scans.folder} holds no scan that {scans.labels} says is healthy throughout.")
    return found


def _stacks(path: Path, scans: ScanSet, config: PrepareSlabsConfig, brains: Path) -> Iterator[Stack]:
    """A scan's stacks: name, images uint8, brain, healthy tissue, lesion bool, ``(N, H, W)``, and mm between slices."""
    volume = read_volume(path)
    mask = brain_of(path, volume, config, brains)
    rule = config.normalisation.rule
    scale = rule.fit_scan(volume.image, mask)
    thin = bool(scans.slabs) and Orientation.of(volume.image).spacing(volume.image)[0] < config.thin
    size = (config.grid.size, config.grid.size)
    for thickness in scans.slabs if thin else (AS_THEY_ARE,):
        grid = Grid(size, config.grid.spacing, thickness)
        stack = SliceStack([volume.image], grid, mask)
        brain = stack.brain()
        image = np.round(255.0 * scale(stack.images()[:, 0], brain) / rule.clip_max).astype(np.uint8)
        healthy, lesion = np.ones_like(brain), np.zeros_like(brain)
        if scans.lesions is not None:
            share = lesion_share(path, volume, mask, grid, scans.lesions)
            healthy, lesion = ~around(share > TOUCHED, config.lesion_margin), share > MAINLY_LESION
        logger.info("%s: %d slices of %.3g mm", path.name, len(image), stack.slice_spacing)
        yield f"{path.name}, {stack.slice_spacing:.3g} mm", image, brain, healthy, lesion, stack.slice_spacing


def around(lesion: np.ndarray, margin: int) -> np.ndarray:
    """A lesion ``(N, H, W)`` with the slices above and below it and ``margin`` pixels around."""
    near = ndimage.binary_dilation(lesion, np.ones((3, 1, 1), bool))
    plane = ndimage.generate_binary_structure(2, 1)[None]
    return np.asarray(ndimage.binary_dilation(near, plane, iterations=margin)) if margin else near
