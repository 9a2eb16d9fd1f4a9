"""Where the brain is: the user's mask as given, otherwise a bundled network that reads any MR contrast.

Everything after this (normalisation, the models' input, anomaly scores, findings) is confined to the brain, so that a
scan with skull and a stripped one look alike to the models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import InputError
from ..io.orientation import Orientation
from ..models.package import open_bundle
from ..system import free_gpu_memory, is_out_of_memory
from ..text import printable
from .brain_network import SPACING, WINDOW, brain_logits, rescale_intensity

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ..io.volume import Volume
    from ..models.package import Bundle

# Share of voxels, in percent, that may lie beyond the range that intensities are clipped to: a far outlier would
# otherwise take the whole scale, and be smeared into its neighbours.
OUTLIERS = 0.05
RANGE_FROM = 1_000_000  # voxels that range is taken from, evenly spread
# The lowest value is padding, no air, when it is further below all else than this share of the rest's range, and the
# rest has air of its own: 5 and 15 in 100 of its voxels are as good as alike. The highest is padding when it is further
# above all else than that range.
PADDING_GAP, AIR_ALIKE, BRIGHT_GAP = 0.1, 0.05, 1.0
# Without air of its own (a stripped brain), what one value fills is put this far below the rest, whatever the value.
FILL_SHARE, FILL_GAP = 0.2, 0.15
PADDING_SHARE = 0.001  # of a scan's voxels; fewer at one far value are outliers
MOST_VOXELS = 160_000_000  # on the network's grid: a view of 700 mm, 2500 mm tall; 640 MB
WINDOW_MOVES = 4  # times the window is moved to where the brain was found
BELOW_TOP = 37  # voxels (75 mm) from the top of the head to the middle of the brain: where to look first
# A voxel counts as brain from this probability on. Below one half, because what is cut off is never looked at, while
# fluid that is let in costs little: from 0.35 to 0.3, on 74 patients with gliomas, the lesion outside fell from 0.53 to
# 0.45 % and the mask grew by 1 %; overlap with reference brains changed by less than 0.004.
ENOUGH = 0.3
MINIMUM_ML = 1.0  # less than this is no brain
# Height by length of the mask. Brains measure about 0.75; above TALL the header's slice spacing must be wrong, as it is
# in public sets that lost it, and the scan is looked at again as if its slices were closer.
TALL = 0.95
ORDINARY = 0.75


@dataclass(frozen=True)
class IntensityRange:
    """What intensities of a scan are clipped to, and what is not its own.

    Attributes:
        low: clipped to; what the background has then.
        high: clipped to.
        fill: the value and all below it become ``low``.
        padding: the value and all above it become ``low``; infinity in an ordinary scan.
    """

    low: float
    high: float
    fill: float
    padding: float = math.inf

    def __call__(self, image: sitk.Image) -> sitk.Image:
        """The image without far outliers and padding, float32."""
        values = np.clip(sitk.GetArrayViewFromImage(image), self.low, self.high, dtype=np.float32)
        raw = sitk.GetArrayViewFromImage(image)
        values[(raw <= self.fill) | (raw >= self.padding)] = self.low
        clean = sitk.GetImageFromArray(values)
        clean.CopyInformation(image)
        return clean


def intensity_range(values: np.ndarray) -> IntensityRange:
    """The range of intensities without far outliers and padding.

    On an ordinary scan it is the range of the scan, but for five voxels in ten thousand at either end.

    Args:
        values: of any shape.
    """
    values = values.ravel()[:: max(1, values.size // RANGE_FROM)]
    low, top = (float(v) for v in np.percentile(values, (OUTLIERS, 100.0 - OUTLIERS)))
    rest = values[(values > low) & (values < top)]
    if rest.size == 0:
        return IntensityRange(low, top, low)
    darkest, dark, bright, high = (float(v) for v in np.percentile(rest, (5.0, 15.0, 99.0, 100.0 - OUTLIERS)))
    extent = bright - darkest
    padding = top if top - high > BRIGHT_GAP * extent and (values == top).mean() > PADDING_SHARE else math.inf
    high = high if padding < math.inf else max(top, high)
    if dark - darkest <= AIR_ALIKE * extent:
        if darkest - low <= PADDING_GAP * extent:
            return IntensityRange(low, high, low, padding)
        # Padding below: what lies above it may be a stripped brain's background.
        above = intensity_range(values[values > low])
        return replace(above, fill=max(above.fill, low), padding=min(above.padding, padding))
    fill = low if (values <= low).mean() >= FILL_SHARE else -math.inf
    return IntensityRange(darkest - FILL_GAP * extent if fill == low else low, high, fill, padding)


def network_grid(image: sitk.Image) -> sitk.Image:
    """The image on the network's grid: 2 mm, axes towards right, anterior, superior.

    Fine input is smoothed first, so that a 2 mm voxel stands for what it covers; intensities are clipped before that.

    Raises:
        InputError: when that is more than ``MOST_VOXELS``.
    """
    extents = [size * mm for size, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    if math.prod(math.ceil(extent / SPACING) for extent in extents) > MOST_VOXELS:
        raise InputError(
            f"The scan measures {' x '.join(f'{extent:.3g}' for extent in extents)} mm by its header, "
            "too much to look for a brain in.",
            "Correct the header's voxel spacing, or give a brain mask.",
        )
    limits = intensity_range(sitk.GetArrayViewFromImage(image))
    oriented = sitk.DICOMOrient(limits(image), "RAS")
    spacing = np.array(oriented.GetSpacing())
    size = np.array(oriented.GetSize())
    for axis in range(3):
        sigma = 0.5 * np.sqrt(max(SPACING**2 - spacing[axis] ** 2, 0.0))
        if sigma > 0.3 * spacing[axis] and size[axis] >= 4:
            oriented = sitk.RecursiveGaussian(oriented, float(sigma), direction=axis)
    count = np.ceil(size * spacing / SPACING).astype(int)
    center = oriented.TransformContinuousIndexToPhysicalPoint([float(v) for v in (size - 1) / 2.0])
    direction = np.array(oriented.GetDirection()).reshape(3, 3)
    origin = np.array(center) - direction @ (SPACING * (count - 1) / 2.0)
    grid = sitk.Image([int(c) for c in count], sitk.sitkUInt8)
    grid.SetSpacing([SPACING] * 3)
    grid.SetOrigin(origin.tolist())
    grid.SetDirection(direction.ravel().tolist())
    # The outermost slices are repeated outwards, so that interpolation covers whole voxels, a single slice's too.
    thickened = sitk.ZeroFluxNeumannPad(oriented, [1, 1, 1], [1, 1, 1])
    return sitk.Resample(thickened, grid, sitk.Transform(), sitk.sitkLinear, limits.low, sitk.sitkFloat32)


def brain_probability(network: torch.nn.Module, image: np.ndarray, dtype: torch.dtype | None = None) -> np.ndarray:
    """The network's probability of brain.

    The window starts where a head has its brain, and moves until it is centred on the brain found in it.

    Args:
        network: trained on windows scaled with ``rescale_intensity``.
        image: ``(Z, Y, X)`` on the network's grid, axes superior, anterior, right.
        dtype: autocast type.

    Returns:
        ``(Z, Y, X)`` float32; 0 outside the last window.
    """
    values = image.transpose(2, 1, 0)  # the network's axes run right, anterior, superior
    center = _first_centre(values)
    place: list[tuple[int, int]] = []
    for _ in range(WINDOW_MOVES):
        before, place = place, _window(values.shape, center)
        if place == before:  # held by the image's edge: the network would see the same again
            break
        probability = _predict(network, _cut(values, place), dtype)
        found = np.argwhere(largest_piece(probability >= ENOUGH))
        if not len(found):
            break
        moved = found.mean(0) + [low for low, _ in place]
        if np.abs(moved - center).max() < 2.0:
            break
        center = moved
    result = np.zeros(values.shape, np.float32)
    inner, outer = _overlap(values.shape, place)
    result[inner] = probability[outer]
    return result.transpose(2, 1, 0)


def _first_centre(values: np.ndarray) -> np.ndarray:
    """Where the middle of the brain is likely to be: below the top of the head, or mid-scan if that is shorter."""
    scaled = sitk.GetImageFromArray(rescale_intensity(values))
    head = largest_piece(sitk.GetArrayFromImage(sitk.OtsuThreshold(scaled, 0, 1)) > 0)
    places = np.argwhere(head) if head.any() else np.argwhere(np.ones_like(head))
    low, high = places.min(0), places.max(0)
    center = (low + high) / 2.0
    center[2] = max(center[2], high[2] - BELOW_TOP)
    return center


def _window(shape: tuple[int, ...], center: np.ndarray) -> list[tuple[int, int]]:
    """First and last-plus-one voxel along each axis; inside the image where it is large enough."""
    place = []
    for size, window, middle in zip(shape, WINDOW, center, strict=True):
        low = round(float(middle) - window / 2.0)
        low = min(max(low, min(0, size - window)), max(0, size - window))
        place.append((low, low + window))
    return place


def _cut(values: np.ndarray, place: list[tuple[int, int]]) -> np.ndarray:
    """The window's voxels, with the image's lowest value where it reaches beyond the image."""
    window = np.full(WINDOW, values.min(), np.float32)
    inner, outer = _overlap(values.shape, place)
    window[outer] = values[inner]
    return window


def _overlap(shape: tuple[int, ...], place: list[tuple[int, int]]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What image and window share, in the image's indices and in the window's."""
    inner = tuple(slice(max(0, low), min(high, size)) for (low, high), size in zip(place, shape, strict=True))
    outer = tuple(slice(s.start - low, s.stop - low) for s, (low, _) in zip(inner, place, strict=True))
    return inner, outer


def _predict(network: torch.nn.Module, window: np.ndarray, dtype: torch.dtype | None) -> np.ndarray:
    import torch

    device = next(network.parameters()).device
    x = torch.from_numpy(rescale_intensity(window))[None, None].to(device)
    enabled = dtype not in (None, torch.float32)
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=enabled):
        return torch.sigmoid(brain_logits(network, x).float())[0, 0].cpu().numpy()


def _plausible(
    image: sitk.Image, network: torch.nn.Module, dtype: torch.dtype
) -> tuple[sitk.Image, sitk.Image, np.ndarray, np.ndarray]:
    """The image with a slice spacing that gives the brain a brain's proportions.

    Returns:
        That image, its grid, the probability of brain there, and the brain: its largest piece.
    """
    image = sitk.Image(image)
    axis = Orientation.of(image).axes[0]
    while True:
        on_grid = network_grid(image)
        probability = brain_probability(network, sitk.GetArrayFromImage(on_grid), dtype)
        piece = largest_piece(probability >= ENOUGH)
        found = np.argwhere(piece)
        if not len(found):
            return image, on_grid, probability, piece
        height, length, _ = np.ptp(found, axis=0) + 1
        if height <= TALL * length:
            return image, on_grid, probability, piece
        spacing = list(image.GetSpacing())
        spacing[axis] *= ORDINARY * length / height  # at most 0.79, so this ends
        image.SetSpacing(spacing)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected piece of a mask with its holes filled.

    A hole is background that no 6-connected way leads out of.
    """
    labels = np.empty(mask.shape, np.int32)
    if ndimage.label(mask, output=labels) == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    box = ndimage.find_objects(labels)[largest - 1]
    piece = labels[box] == largest
    # Labelling the background is five times faster than growing it from outside. All of it that touches the box is
    # outside, because around the box there is none of the piece.
    background = np.empty(piece.shape, np.int32)
    is_hole = np.ones(int(ndimage.label(~piece, output=background)) + 1, bool)  # type: ignore[arg-type]
    is_hole[0] = False
    for axis in range(piece.ndim):
        for side in (0, -1):
            is_hole[np.take(background, side, axis)] = False
    result = np.zeros(mask.shape, bool)
    result[box] = piece | is_hole[background]
    return result


class BrainFinder:
    """Finds brains with a network that stays loaded from scan to scan.

    Args:
        bundle: a package of kind ``brain``; the built-in one by default.
        device: as for detection.
        precision: as for detection.
    """

    def __init__(self, bundle: Bundle | None = None, device: str = "auto", precision: str = "auto") -> None:
        self._bundle = bundle or open_bundle("brain-mask")
        self.device, self._precision = device, precision
        self._network: torch.nn.Module | None = None

    def __call__(self, volume: Volume, warn: Callable[[str], None] = lambda message: None) -> sitk.Image:
        """The brain of an MR volume.

        Args:
            volume: any contrast, orientation and resolution, with skull or stripped.
            warn: is told when the memory of a GPU ran out and the CPU took over.

        Returns:
            uint8 0/1 on the volume's grid.

        Raises:
            InputError: when no brain is found.
        """
        from ..system import choose_device

        values = sitk.GetArrayViewFromImage(volume.image)
        if values.min() == values.max():
            raise InputError(
                f"No brain was found in {volume.title or printable(volume.source) or volume.name}: "
                f"every voxel is {values.flat[0]:g}.",
                "Choose another scan.",
            )
        device = choose_device(self.device, warn)
        try:
            return self._find(volume, device)
        except Exception as error:
            if not is_out_of_memory(error) or device.type == "cpu":
                raise
        # Here, when the exception no longer holds the memory.
        self.release()
        warn(f"Memory of {device} ran out when finding the brain; it is found, more slowly, on the CPU.")
        try:
            return self._find(volume, choose_device("cpu"))
        finally:
            self.release()

    def release(self) -> None:
        """Give the memory back; the next scan loads the network anew."""
        self._network = None
        free_gpu_memory()

    def _find(self, volume: Volume, device: torch.device) -> sitk.Image:
        from ..models.loading import load_network
        from ..precision import choose_dtype

        if self._network is None:
            self._network = load_network(self._bundle, "brain").to(device)
        dtype = choose_dtype(self._precision, device)
        image, on_grid, probability, piece = _plausible(volume.image, self._network, dtype)
        if piece.sum() * SPACING**3 / 1000.0 < MINIMUM_ML:
            raise InputError(
                f"No brain was found in {volume.title or printable(volume.source) or volume.name}.",
                "Is it a head MR? If it is, give a brain mask with --mask (brain= in Python).",
            )
        # Linear interpolation of the probability, not of the mask, keeps the surface between voxels.
        confined = np.where(piece, np.maximum(probability, ENOUGH), np.minimum(probability, 0.99 * ENOUGH))
        smooth = sitk.GetImageFromArray(confined)
        smooth.CopyInformation(on_grid)
        part = _reach(piece, smooth, image)
        fine = sitk.Resample(smooth, image[part], sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
        mask = np.zeros(image.GetSize()[::-1], np.uint8)
        mask[part[::-1]] = largest_piece(sitk.GetArrayViewFromImage(fine) >= ENOUGH)
        result = sitk.GetImageFromArray(mask)
        result.CopyInformation(volume.image)
        return result


def _reach(piece: np.ndarray, grid: sitk.Image, image: sitk.Image) -> tuple[slice, ...]:
    """The part of an image, along x, y and z, that lies within a voxel of ``piece``, which lies on ``grid``.

    Beyond it, interpolation between voxels meets none of the piece.
    """
    (box,) = ndimage.find_objects(piece.astype(np.uint8))
    low = np.array([side.start - 1.0 for side in box[::-1]])
    high = np.array([float(side.stop) for side in box[::-1]])
    corners = [
        image.TransformPhysicalPointToContinuousIndex(
            grid.TransformContinuousIndexToPhysicalPoint([float(v) for v in np.where(upper, high, low)])
        )
        for upper in np.ndindex(2, 2, 2)
    ]
    first = np.floor(np.min(corners, axis=0)).astype(int)
    last = np.ceil(np.max(corners, axis=0)).astype(int)
    size = image.GetSize()
    return tuple(slice(max(0, int(a)), min(n, int(b) + 1)) for a, b, n in zip(first, last, size, strict=True))
