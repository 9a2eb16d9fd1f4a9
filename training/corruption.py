"""What a restorer learns to undo: synthetic lesions and coarse noise, stronger from level to level.

Synthetic anomalies on healthy images teach what to look for without a single diseased image (Tan et al. 2022, "Natural
synthetic anomalies for self-supervised anomaly detection and localization"; Schlüter et al. 2022), and a ladder of
degradations that a network undoes in one step is cold diffusion's (Bansal et al. 2023). Coarse noise alone, at one
level, makes the denoising autoencoder of Kascenas et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy import ndimage

from diffusion_anomaly.errors import InputError

SHAPE_LEAST_PIXELS = 40  # smaller ones show the mask's voxels when they are enlarged
SHAPES_A_FILE = 6


class LesionConfig(BaseModel):
    """Synthetic lesions. Intensities are in units of the normalised range, lengths in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shapes: Path | None = Field(default=None, description="folder of binary lesion masks; random shapes are mixed in")
    most: int = Field(default=4, ge=1, description="lesions a slice, evenly from none to this many")
    diameter: tuple[float, float] = Field(default=(2.5, 45.0), description="evenly distributed in the logarithm")
    shift: tuple[float, float] = Field(
        default=(0.05, 0.6), description="difference to the tissue, evenly distributed in the logarithm"
    )
    dark: float = Field(default=0.25, ge=0, le=1, description="share that is darker than the tissue")
    edge: tuple[float, float] = Field(default=(0.4, 2.5), description="blur of the border, standard deviation")
    texture: float = Field(default=0.3, ge=0, description="variation inside a lesion, relative to its shift")
    flat: float = Field(default=0.5, ge=0, le=1, description="share that hides the tissue instead of shifting it")

    @field_validator("diameter", "shift", "edge")
    @classmethod
    def _range(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not 0 < ends[0] <= ends[1]:
            raise ValueError(f"found {list(ends)}, expected a range that starts above 0")
        return ends


class NoiseConfig(BaseModel):
    """Gaussian noise on a coarse grid (Kascenas et al. 2022, section 3.1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deviation: float = Field(default=0.2, gt=0, description="at the highest level, in units of the normalised range")
    cell: tuple[int, int] = Field(default=(8, 8), description="pixels between the grid's points, from and to")

    @field_validator("cell")
    @classmethod
    def _range(cls, cell: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= cell[0] <= cell[1]:
            raise ValueError(f"found {list(cell)}, expected a range that starts at 1 or more")
        return cell


class CorruptionConfig(BaseModel):
    """Levels of corruption: level ``k`` of ``n`` has lesions and noise of up to ``(k + 1) / n`` of full strength."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: int = Field(default=10, ge=1, le=1000)
    lesions: LesionConfig | None = None
    noise: NoiseConfig | None = None


@dataclass(frozen=True)
class Corrupted:
    """A slice after corruption: image ``(H, W)`` float32 in [0, 1], and where lesions are, ``(H, W)`` in [0, 1]."""

    image: np.ndarray
    lesion: np.ndarray


class Corruption:
    """Draws corruptions of healthy slices.

    Args:
        config: which and how strong.

    Raises:
        InputError: when the folder of shapes holds none.
    """

    def __init__(self, config: CorruptionConfig) -> None:
        self.config = config
        folder = config.lesions.shapes if config.lesions else None
        self.shapes = read_shapes(folder) if folder else []

    def __call__(self, image: np.ndarray, brain: np.ndarray, level: int, rng: np.random.Generator) -> Corrupted:
        """Corrupt a slice.

        Args:
            image: ``(H, W)`` in [0, 1], 0 outside the brain.
            brain: ``(H, W)`` bool.
            level: from 0.
            rng: source of every draw.
        """
        strength = (level + 1) / self.config.levels
        result, lesion = image.astype(np.float32), np.zeros(image.shape, np.float32)
        if self.config.lesions is not None and brain.any():
            for _ in range(int(rng.integers(self.config.lesions.most + 1))):
                result = self._add_lesion(result, brain, lesion, strength, rng)
        if self.config.noise is not None:
            result = result + coarse_noise(image.shape, self.config.noise, strength, rng)
        return Corrupted(np.where(brain, np.clip(result, 0.0, 1.0), 0.0).astype(np.float32), lesion)

    def _add_lesion(
        self, image: np.ndarray, brain: np.ndarray, lesion: np.ndarray, strength: float, rng: np.random.Generator
    ) -> np.ndarray:
        """The image with one more lesion; its mask is added to ``lesion`` in place."""
        config = self.config.lesions
        assert config is not None
        diameter = float(np.exp(rng.uniform(*np.log(config.diameter))))
        mask = place_shape(self._shape(diameter, rng), brain, rng)
        if not mask.any():
            return image
        alpha = ndimage.gaussian_filter(mask.astype(np.float32), min(rng.uniform(*config.edge), diameter / 4)) * brain
        low, high = np.log(config.shift)
        shift = float(np.exp(rng.uniform(low, low + (high - low) * strength)))
        shift *= -1.0 if rng.random() < config.dark else 1.0
        texture = ndimage.gaussian_filter(rng.standard_normal(image.shape), max(1.0, diameter / 8))
        texture *= config.texture * abs(shift) * rng.random() / max(float(texture.std()), 1e-6)
        if rng.random() < config.flat:
            # Part of the tissue's own pattern is lost, as under oedema or in a solid tumour.
            level = float(np.median(image[mask])) + shift
            keep = rng.uniform(0.0, 0.6)
            changed = level + keep * (image - float(np.median(image[mask])))
        else:
            changed = image + shift
        np.maximum(lesion, alpha, out=lesion)
        return image + alpha * (changed + texture - image)

    def _shape(self, diameter: float, rng: np.random.Generator) -> np.ndarray:
        if self.shapes and rng.random() < 0.5:
            return resized(self.shapes[int(rng.integers(len(self.shapes)))], diameter, rng)
        return random_shape(diameter, rng)


def read_shapes(folder: Path) -> list[np.ndarray]:
    """Axial slices of binary lesion masks, cropped, ``(h, w)`` bool.

    Raises:
        InputError: when the folder holds none.
    """
    shapes = []
    for path in sorted(path for ending in (".nii", ".nii.gz") for path in folder.rglob(f"*{ending}")):
        mask = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")) > 0
        sizes = mask.sum(axis=(1, 2))
        largest = np.argsort(-sizes, kind="stable")[: 4 * SHAPES_A_FILE : 4]  # neighbours look alike
        for number in largest[sizes[largest] >= SHAPE_LEAST_PIXELS]:
            box = ndimage.find_objects(mask[number].astype(np.uint8))[0]
            shapes.append(np.pad(mask[number][box], 3))
    if not shapes:
        raise InputError(
            f"{folder} holds no lesion mask (*.nii, *.nii.gz) with {SHAPE_LEAST_PIXELS} pixels in an axial slice.",
            "Correct 'shapes', or leave it out.",
        )
    return shapes


def resized(shape: np.ndarray, diameter: float, rng: np.random.Generator) -> np.ndarray:
    """A shape turned by any angle and scaled to a diameter in pixels, bool."""
    zoom = diameter / max(1.0, 2.0 * np.sqrt(shape.sum() / np.pi))
    angle, stretch = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-0.2, 0.2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([stretch, 1.0 / stretch]) / zoom
    side = int(np.ceil(np.hypot(*shape.shape) * zoom * 1.3)) + 2
    centre = (np.array(shape.shape) - 1) / 2
    offset = centre - matrix @ np.full(2, (side - 1) / 2)
    # Enlarged shapes lose the mask's corners, and of reduced ones nothing thin vanishes between two samples.
    soft = ndimage.gaussian_filter(shape.astype(np.float32), 1.0 if zoom > 1 else 0.4 / zoom)
    return ndimage.affine_transform(soft, matrix, offset, (side, side), order=1) > 0.4  # type: ignore[arg-type]


def random_shape(diameter: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random shape: an ellipse whose border wanders, bool."""
    side = int(np.ceil(diameter * 2.6)) + 2  # room for the longest ellipse's border, which a smaller box cuts straight
    y, x = np.indices((side, side)) - (side - 1) / 2
    angle, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(0.0, 0.6))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.hypot(u / stretch, v * stretch) / (diameter / 2)
    wander = ndimage.gaussian_filter(rng.standard_normal((side, side)), max(0.7, diameter / 8))
    return radius + rng.uniform(0.0, 0.4) * wander / max(float(wander.std()), 1e-6) < 1.0


def place_shape(shape: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of a shape, centred on a random pixel of the brain, that lies inside the brain, ``(H, W)`` bool."""
    mask = np.zeros(brain.shape, bool)
    inside = np.flatnonzero(brain)
    centre = np.array(np.unravel_index(inside[rng.integers(len(inside))], brain.shape))
    pixels = np.argwhere(shape) - np.array(shape.shape) // 2 + centre
    pixels = pixels[np.all((pixels >= 0) & (pixels < brain.shape), axis=1)]
    mask[tuple(pixels.T)] = True
    return mask & brain


def coarse_noise(size: tuple[int, ...], config: NoiseConfig, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise on a coarse grid at a random place, enlarged bilinearly to ``size`` ``(H, W)``."""
    cell = int(rng.integers(config.cell[0], config.cell[1] + 1))
    coarse = rng.standard_normal([-(-n // cell) + 2 for n in size])
    fine = np.asarray(ndimage.zoom(coarse, cell, order=1, grid_mode=True, mode="nearest"))
    first = rng.integers(cell, size=2)
    return config.deviation * strength * fine[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
