"""All slices of a scan through one method, in batches, whatever memory allows.

A slice's noise comes from its own generator, seeded by (seed, slice index). On the CPU every network call has one fixed
size, so the batch size changes nothing. On a GPU, and after memory ran out, calls have other sizes, for which a
convolution may round differently: the same noise, and scores that agree within that rounding.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import MemoryExhausted
from ..methods.base import SliceBatch
from ..options import MethodOptions
from ..registry import MethodEntry
from ..system import free_gpu_memory, is_out_of_memory

if TYPE_CHECKING:
    from ..models.networks import Model
    from ..preprocessing.intensity import IntensityScale
    from ..preprocessing.slices import SliceStack
    from .planning import Plan

Load = Callable[[str], "Model | None"]
"""Loads the method's model onto the device of that name; None for a method without a model."""

# A whole number of the network's own chunks of 8 on the CPU; a GPU is kept busy by about 32 slices of 128 x 128.
CPU_BATCH = 8
GPU_BATCH = 32


@dataclass(frozen=True)
class SliceRun:
    """What came out, and how it was run.

    Attributes:
        raw: ``(n, H, W)`` float32 anomaly scores as the method gives them, before post-processing.
        scores: ``(n,)`` float32 whole-image score of each slice.
        reconstruction_error: how far the brain commonly is from its pseudo-healthy reconstruction, see
            ``methods.base.reconstruction_error``, as the mean over slices weighted by their brain; None for a method
            without one.
        device: where the last slice ran, ``cpu`` or ``cuda:0``.
        precision: ``float32`` or ``bfloat16``.
        batch_size: of the last batch.
        network_calls: calls of a network that each slice took.
        reconstruction: ``(n, C, H, W)`` float32 slices as the model would have them, normalised intensity; None unless
            asked for.
    """

    raw: np.ndarray
    scores: np.ndarray
    reconstruction_error: float | None
    device: str
    precision: str
    batch_size: int
    network_calls: int
    reconstruction: np.ndarray | None = None


def slice_seed(seed: int, index: int) -> int:
    """A well-mixed 64-bit seed: neighbouring seeds and neighbouring slices share no noise.

    The CPU generator keeps the low 32 bits alone, which is why the two numbers are hashed and not added.
    """
    digest = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, index % 2**64), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def slice_generator(seed: int, index: int) -> torch.Generator:
    """The generator of one slice, by its canonical index in the scan."""
    return torch.Generator().manual_seed(slice_seed(seed, index))


def make_batch(stack: SliceStack, scales: Sequence[IntensityScale], start: int, stop: int, seed: int) -> SliceBatch:
    """Slices start..stop-1, normalised, each with its own generator, and with the neighbours that the grid asks for.

    Args:
        stack: the scan's slices.
        scales: of its channels.
        start, stop: which slices.
        seed: of all noise.
    """
    reach = stack.grid.neighbours
    first, last = max(0, start - reach), min(len(stack), stop + reach)
    inside, images = stack.brain(first, last), stack.images(first, last)
    for channel, scale in enumerate(scales):
        images[:, channel] = scale(images[:, channel], inside)
    seen = torch.from_numpy(images)
    wanted = slice(start - first, stop - first)
    slabs = None
    if reach:
        slabs = torch.zeros((stop - start, 2 * reach + 1, *seen.shape[1:]))
        for row, index in enumerate(range(start, stop)):
            for place, offset in enumerate(range(-reach, reach + 1)):
                other = stack.beside(index, offset)
                if other is not None:
                    slabs[row, place] = seen[other - first]
        slabs = slabs.flatten(1, 2)
    return SliceBatch(
        seen[wanted],
        torch.from_numpy(inside[wanted])[:, None],
        [slice_generator(seed, index) for index in stack.indices[start:stop]],
        slabs,
    )


class HeldModel:
    """A model that stays loaded from scan to scan, on the device and with the batch size that memory allows.

    When memory runs out the batch is halved, down to one slice; then the CPU takes over from a GPU; then it fails. What
    was held is dropped before something smaller is loaded. The next scan begins on the wanted device again, with the
    batch size that was found to fit, until everything is released on request.

    Args:
        load: loads the model onto a device; may give None for a method without one.
        device: ``cpu``, ``cuda:0`` or another of torch's.
        batch_size: slices a batch to start with; None chooses by the device.
    """

    def __init__(self, load: Load, device: str, batch_size: int | None = None) -> None:
        self._load = load
        self._wanted, self._size = device, batch_size
        self.model: Model | None = None
        self.device = device
        self.batch_size = 0  # nothing is loaded

    @property
    def precision(self) -> str:
        return "float32" if self.model is None else str(self.model.dtype).removeprefix("torch.")

    def prepare(self, warn: Callable[[str], None]) -> None:
        """Load what is not loaded.

        Raises:
            MemoryExhausted: when it fits nowhere.
        """
        if self.model is not None and self.device != self._wanted:
            self.release()
            self._size = 1
        if not self.batch_size:
            self._place(self._wanted, warn)

    def _place(self, device: str, warn: Callable[[str], None]) -> None:
        failure = None
        try:
            self.model = self._load(device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error) or type(error).__name__
        self.device = device if self.model is not None or failure is not None else "cpu"
        self.batch_size = 1 if failure is not None else self._size or (CPU_BATCH if self.device == "cpu" else GPU_BATCH)
        if failure is not None:
            self.shrink(failure, warn)

    def shrink(self, failure: str, warn: Callable[[str], None]) -> None:
        """Make the next attempt more modest.

        The model's own chunk is halved too: the unsupervised method fills a chunk with noise levels when there are few
        slices, so fewer slices alone would need as much memory as before.

        Raises:
            MemoryExhausted: when one slice a batch on the CPU is still too much.
        """
        free_gpu_memory()
        if self.batch_size > 1:
            before, self.batch_size = self.batch_size, self.batch_size // 2
            self._size = self.batch_size
            if self.model is not None:
                self.model.chunk = max(1, self.model.chunk // 2)
            warn(f"Memory of {self.device} ran out with {before} slices at once; going on with {self.batch_size}.")
            return
        if self.device != "cpu":
            warn(f"Memory of {self.device} ran out with one slice at once; going on, more slowly, on the CPU.")
            self.release()
            self._place("cpu", warn)
            return
        self.release()
        raise MemoryExhausted(
            f"Memory ran out with one slice at once on the CPU ({failure[:200]}).",
            "Close other programs, or use a machine with more memory.",
        )

    def release(self) -> None:
        """Give the memory back; the next scan loads anew."""
        self.model, self.batch_size = None, 0
        free_gpu_memory()


def run_slices(
    stack: SliceStack,
    scales: Sequence[IntensityScale],
    method: MethodEntry,
    options: MethodOptions,
    held: HeldModel,
    *,
    seed: int = 0,
    keep_reconstruction: bool = False,
    on_calls: Callable[[int, int], None] = lambda done, total: None,
    on_loaded: Callable[[str], None] = lambda device: None,
    warn: Callable[[str], None] = lambda message: None,
) -> SliceRun:
    """Run a method over every slice of a stack.

    Args:
        stack: the scan's slices.
        scales: each channel's intensities to [0, 1].
        method, options: what to run.
        held: the model.
        seed: of all noise.
        keep_reconstruction: whether pseudo-healthy slices are kept too, where the method has them.
        on_calls: takes how many network calls of all slices together are done, and how many there are. May raise
            ``Cancelled``.
        on_loaded: takes the device once the model is ready there, before the first slice.
        warn: takes a sentence on what had to be done when memory ran out.

    Raises:
        MemoryExhausted: when one slice a batch on the CPU is still too much.
    """
    held.prepare(warn)
    if held.model is not None:  # a picture is alone whatever the batch size, and need not be filled up to a chunk
        held.model.pads = held.device == "cpu" and len(stack) > 1
    on_loaded(held.device)
    calls = method.network_calls(options)
    each = max(1, calls)  # a method without a network counts slices
    total = len(stack) * each
    shape = (len(stack), stack.grid.size[1], stack.grid.size[0])
    raw, scores = np.zeros(shape, np.float32), np.zeros(len(stack), np.float32)
    reconstruction_errors: list[np.ndarray] = []
    reconstruction: list[np.ndarray] = []
    done = 0
    while done < len(stack):
        stop = min(done + held.batch_size, len(stack))
        passed = 0

        def progress(count: int, first: int = done, width: int = stop - done) -> None:
            nonlocal passed
            passed += count
            on_calls(first * each + min(passed, each) * width, total)

        failure = None
        try:
            result = method.run(make_batch(stack, scales, done, stop, seed), held.model, options, progress)
            raw[done:stop], scores[done:stop] = result.anomaly_map.numpy(), result.score.numpy()
            if result.reconstruction_error is not None:
                reconstruction_errors.append(result.reconstruction_error.numpy())
            if keep_reconstruction and result.reconstruction is not None:
                reconstruction.append(result.reconstruction.numpy())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Kept as text: the exception's traceback would keep the tensors alive that filled the memory.
            failure = str(error) or type(error).__name__
        if failure is not None:
            held.shrink(failure, warn)
            continue
        done = stop
        on_calls(done * each, total)
    reconstruction_error = None
    if reconstruction_errors:
        weight = stack.brain().sum(axis=(1, 2))
        reconstruction_error = float((np.concatenate(reconstruction_errors) * weight).sum() / max(1, weight.sum()))
    return SliceRun(
        raw,
        scores,
        reconstruction_error,
        held.device,
        held.precision,
        held.batch_size,
        calls,
        np.concatenate(reconstruction) if reconstruction else None,
    )


@dataclass(frozen=True)
class RawMap:
    """Anomaly scores before calibration: what a package's calibration is learnt from, and what it is applied to.

    Attributes:
        stack: the scan's slices.
        raw: ``(n, H, W)`` float32 post-processed scores in the method's own units, 0 outside the brain.
        scores: ``(n,)`` whole-image score of each slice.
        run: where and how it was computed; its raw scores are these.
        plan: what was computed.
    """

    stack: SliceStack
    raw: np.ndarray
    scores: np.ndarray
    run: SliceRun
    plan: Plan
