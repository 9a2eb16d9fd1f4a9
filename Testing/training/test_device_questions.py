"""A step asks its device for numbers a few times only, whatever the batch: on a GPU each question waits for everything
that was begun before. What is done for all samples at once is what was done for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_anomaly.detection.recognition_network import KINDS, masked_quantiles, recognition_input
from Testing.training.fakes import DenoisingTask, train_here
from Testing.training.stages import BRAIN, LOCALISE, RESTORE, write_heads, write_slab_heads, write_stacks
from training.data.contrasts import _centred, _fit, draw_scans
from training.data.drawing import Draw
from training.data.head_maps import HeadMaps
from training.data.lesions import LesionConfig, _by_size, draw_lesions
from training.data.slabs import SlabGrid, Slabs
from training.data.synthesis import SynthesisConfig, synthesise
from training.data.windows import Windows, _recoloured
from training.stages.localise import LocaliseConfig, LocaliseTask
from training.stages.restore import RestoreConfig, RestoreTask

WINDOW = (32, 32, 32)


class Questions(TorchDispatchMode):
    """Counts what would make the processor wait for a GPU: numbers, sizes that depend on values, boolean indices."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        indices = args[1] if name.startswith("aten::index") and "." not in name[:11] and len(args) > 1 else []
        by_mask = isinstance(indices, list | tuple) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in indices
        )
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select") or by_mask:
            self.asked[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """How often something asks."""

    def count(what: Callable[[], object]) -> int:
        mode = Questions()
        whole = torch.Tensor.tolist

        def tolist(tensor: Tensor) -> Any:
            mode.asked["tolist"] += 1
            return whole(tensor)

        with monkeypatch.context() as patch, mode:
            patch.setattr(torch.Tensor, "tolist", tolist)
            what()
        return sum(mode.asked.values())

    return count


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_kind_of_question_is_counted(questions: Any) -> None:
    values, index = torch.arange(4.0), torch.tensor([1, 2])
    for asking in (
        lambda: float(values[0]),
        lambda: bool(values.any()),
        lambda: values[values > 1],
        lambda: torch.nonzero(values),
        lambda: values.clone().__setitem__(values > 1, 0.0),
        lambda: values.tolist(),
    ):
        assert questions(asking) >= 1
    assert questions(lambda: values[index] + torch.where(values > 1, values, 0.0)[index]) == 0


@pytest.mark.parametrize("heads", [2, 8])
def test_making_a_batch_asks_the_same_few_times_whatever_its_size(tmp_path: Path, questions: Any, heads: int) -> None:
    files = {"labels": write_slab_heads(tmp_path / "heads.npz"), "stacks": write_stacks(tmp_path / "stacks.npz")}
    localiser = LocaliseTask(LocaliseConfig.model_validate(LOCALISE | {"data": LOCALISE["data"] | files}))
    restorer = RestoreTask(RestoreConfig.model_validate(RESTORE | {"data": RESTORE["data"] | files}))
    for real in (False, True):
        # Each set of lesions: how many there are, and of which size.
        assert questions(lambda real=real: localiser.examples(seeded(), heads, real)) <= 2 * 2
        assert questions(lambda real=real: restorer.examples(seeded(), heads, real)) <= 2
    maps = HeadMaps.load(write_heads(tmp_path / "brains.npz"))
    assert questions(lambda: synthesise(maps, SynthesisConfig(), seeded(), heads, BRAIN["window"])) == 0
    # Which show no brain, and which are turned.
    assert questions(lambda: draw_scans(maps, SynthesisConfig(), seeded(), heads, WINDOW)) <= 2
    image, brain, _, _ = draw_scans(maps, SynthesisConfig(), seeded(), heads, WINDOW)
    windows = Windows(image, brain, torch.arange(heads) % 2)
    # Which get another contrast, and which are turned.
    assert questions(lambda: windows.draw(SynthesisConfig(), seeded(), heads, 0.7)) <= 2
    assert questions(lambda: recognition_input(image, brain)) == 0


def test_a_step_of_the_trainer_asks_as_often_however_many_losses_it_is_told(tmp_path: Path, questions: Any) -> None:
    class Talkative(DenoisingTask):
        def loss(self, *arguments: Any) -> dict[str, Tensor]:
            result = super().loss(*arguments)
            return result | {f"part {number}": result["loss"] for number in range(20)}

    few, many = (
        questions(lambda task=task: train_here(tmp_path / type(task).__name__, task, steps=4, validate_every=1000))
        for task in (DenoisingTask(), Talkative())
    )
    # TensorBoard's writer takes numbers, not tensors, and asks nothing.
    assert few == many


def one_by_one(image: Tensor, brain: Tensor) -> Tensor:
    """What the recognition network reads, made of one scan after the other."""
    shares = {"window": (0.01, 0.99), "brain": (0.02, 0.5)}
    result = []
    for values, mask in zip(image, brain, strict=True):
        present = values[values > values.min()]
        present = present if present.numel() else values.flatten()
        low, high = torch.quantile(present, torch.tensor(shares["window"]))
        whole = (values - torch.minimum(low, values.min())) / (high - low).clamp_min(1e-30)
        dark, median = torch.quantile(values[mask] if mask.any() else present, torch.tensor(shares["brain"]))
        inside = (values - dark) / (median - dark).clamp_min(1e-30) * 0.4
        result.append(torch.stack([whole.clamp(0, 1), inside.clamp(0, 1.2), mask.float()]))
    return torch.stack(result)


def test_all_scans_are_read_at_once_as_one_by_one() -> None:
    image = torch.rand(5, 8, 6, 4, generator=seeded()) * torch.tensor([1.0, 0.1, 7.0, 3.0, 1.0])[:, None, None, None]
    brain = torch.rand(5, 8, 6, 4, generator=seeded(1)) > 0.6
    image[1, :4] = 0.0  # a background
    brain[2] = False  # no brain
    image[3] -= 50.0
    folded = recognition_input(image, brain)
    unfolded = folded.unflatten(1, (3, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(5, 3, 8, 6, 4)
    torch.testing.assert_close(unfolded, one_by_one(image, brain), rtol=1e-6, atol=1e-6)
    assert torch.isfinite(recognition_input(torch.ones(1, 8, 6, 4), torch.zeros(1, 8, 6, 4, dtype=torch.bool))).all()


def test_quantiles_of_what_is_chosen_are_those_of_each_row_alone() -> None:
    values = torch.randn(4, 501, generator=seeded())
    mask = torch.rand(4, 501, generator=seeded(1)) > torch.tensor([0.0, 0.3, 0.9, 0.5])[:, None]
    mask[3] = False
    mask[3, 7] = True  # a single one
    found = masked_quantiles(values, mask, (0.0, 0.03, 0.35, 0.8, 1.0))
    for row, chosen, quantiles in zip(values, mask, found, strict=True):
        assert torch.equal(quantiles, torch.quantile(row[chosen], torch.tensor([0.0, 0.03, 0.35, 0.8, 1.0])))


def test_brains_are_brought_to_the_middle_each_by_its_own_way() -> None:
    image, brain = torch.rand(5, 12, 10, 8, generator=seeded()), torch.zeros(5, 12, 10, 8, dtype=torch.bool)
    for number, (x, y, z) in enumerate(((0, 0, 0), (8, 7, 5), (4, 3, 2), (1, 6, 0))):  # and a scan without any
        brain[number, x : x + 4, y : y + 3, z : z + 2] = True
    brain[1, 8, 7, 5] = False  # no box
    moved, there = _centred(image, brain)
    for one, mask, found, where in zip(image, brain, moved, there, strict=True):
        shift = np.zeros(3, int)
        if mask.any():
            shift = np.round(np.argwhere(mask.numpy()).mean(0) - (np.array(mask.shape) - 1) / 2).astype(int)
        expected, kept = np.full(mask.shape, float(one.min()), np.float32), np.zeros(mask.shape, bool)
        for place in np.ndindex(*mask.shape):
            source = tuple(place + shift)
            if all(0 <= at < length for at, length in zip(source, mask.shape, strict=True)):
                expected[place], kept[place] = one[source], mask[source]
        assert np.array_equal(found.numpy(), expected) and np.array_equal(where.numpy(), kept)


def test_a_volume_that_is_too_short_is_filled_up_with_its_lowest_value() -> None:
    volume = torch.rand(2, 4, 6, 9, generator=seeded()) + 3.0
    found = _fit(volume, torch.Size((6, 6, 6)))
    assert found.shape == (2, 6, 6, 6) and torch.equal(found[:, 1:5], volume[..., 1:7])
    assert (found[:, [0, 5]] == volume[0, ..., 1:7].min()).all() or (found[:, [0, 5]] == volume[0].min()).all()


def test_another_contrast_is_a_line_through_the_tissues_of_each_scan() -> None:
    image, brain = torch.rand(6, 9, 8, 7, generator=seeded()), torch.rand(6, 9, 8, 7, generator=seeded(1)) > 0.4
    kind = torch.tensor([KINDS.index(name) for name in ("T1", "FLAIR", "T1", "CT", "T1", "T1")])
    found, kinds = _recoloured(image, brain, kind, Draw(seeded(2), 6), 1.0)
    draw = Draw(seeded(2), 6)
    chosen = (kind == KINDS.index("T1")) & draw.chance(1.0)
    target = torch.tensor([KINDS.index(name) for name in ("FLAIR", "T2", "PD")])[draw.one_of((0.6, 0.2, 0.2))]
    grey = 0.99 + 0.45 * draw.uniform(0.0, 1.0) ** 1.5
    fluid = torch.where(target == KINDS.index("FLAIR"), draw.uniform(0.0, 0.5), grey * draw.uniform(0.75, 1.3))
    fluid = torch.where(target == KINDS.index("T2"), grey * draw.uniform(1.35, 3.0), fluid)
    for number in range(6):
        one = image[number].numpy()
        if not chosen[number]:
            assert torch.equal(found[number], image[number]) and kinds[number] == kind[number]
            continue
        dark, middle, bright = np.quantile(one[brain[number].numpy()], (0.03, 0.35, 0.8))
        known = [0.0, 0.5 * dark, dark, max(middle, dark + 0.01), max(bright, middle + 0.02), 1.0]
        wanted = [0.0, 0.1, float(fluid[number]), float(grey[number]), 1.0, float(draw.uniform(0.8, 1.5)[number])]
        expected = np.interp(one, np.maximum.accumulate(known), wanted)
        np.testing.assert_allclose(found[number].numpy(), expected, atol=2e-6)
        assert kinds[number] == target[number]


def test_every_lesion_is_in_the_smallest_box_that_holds_it_in_the_order_of_heads() -> None:
    shape = (12, 3, 192, 192)
    inside = torch.ones(shape, dtype=torch.bool)
    image = torch.full(shape, 0.4)
    slabs = Slabs(
        image, inside, inside, torch.ones(shape), torch.zeros(shape), torch.zeros(shape), torch.full((12,), 2.0)
    )
    grid = SlabGrid()
    lesions = draw_lesions(slabs, inside, torch.ones(12), grid, LesionConfig(none_share=0.0), Draw(seeded(), 12))
    parts = dict(_by_size(lesions, grid, 192))
    assert sum(map(len, parts.values())) == len(lesions) and len(parts) >= 3
    smaller = 0
    for side in (24, 48, 96, 192):
        if side in parts:
            width = 2.0 * (1.9 * parts[side].half / grid.spacing + 5.0)
            assert (width > smaller).all() and (side == 192 or (width <= side).all())
            assert (parts[side].head.diff() >= 0).all()
        smaller = side
