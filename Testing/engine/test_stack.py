"""A scan as a model's slices, and anomaly scores back on the scan: nothing moves, nothing flips, nothing bleeds."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

import phantom
from diffusion_anomaly.detection.inference import make_batch
from diffusion_anomaly.errors import InputError
from diffusion_anomaly.io.orientation import Orientation
from diffusion_anomaly.io.volume import Volume
from diffusion_anomaly.preprocessing.intensity import IntensityScale, PercentileNormalisation
from diffusion_anomaly.preprocessing.slices import Grid, SliceStack

OBLIQUE = phantom.rotation((9.0, -14.0, 21.0))
MODEL_GRID = Grid((80, 80), 2.0)


def whole(image: sitk.Image) -> sitk.Image:
    """A mask that takes in everything."""
    return phantom.on_grid(np.ones(image.GetSize()[::-1], np.uint8), image)


def random_volume(size=(14, 12, 9), spacing=(1.6, 1.6, 4.0), seed=0):
    image = phantom.grid(size, spacing)
    return phantom.as_volume(phantom.on_grid(np.random.default_rng(seed).normal(size=size[::-1]), image))


def there_and_back(image: sitk.Image, brain: sitk.Image, grid: Grid) -> sitk.Image:
    """Bright pixels of each slice, marked on the slices and brought back to the scan."""
    stack = SliceStack([image], grid, brain)
    return stack.to_volume((stack.images()[:, 0] > 160).astype(np.float32))


# Orientation


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
def test_lesion_stays_where_it_is_in_all_48_axis_orders_and_signs(direction):
    empty = phantom.grid((48, 42, 24), (2.7, 3.7, 5.3), direction)
    answers = []
    for turned in phantom.orientations(empty):
        anomaly_map = there_and_back(phantom.paint(turned), phantom.brain_of(turned), MODEL_GRID)
        assert phantom.geometry(anomaly_map) == phantom.geometry(turned)
        assert phantom.centroid(anomaly_map, 0.5) == pytest.approx(phantom.LESION_CENTRE, abs=0.9)
        answers.append(sitk.GetArrayFromImage(sitk.DICOMOrient(anomaly_map, "LPS")))
    assert len(answers) == 48
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_canonical_view_is_what_itk_reorients_to():
    empty = phantom.grid((6, 7, 8), (1.0, 2.0, 3.0), OBLIQUE)
    for turned in phantom.orientations(phantom.paint(empty)):
        view = Orientation.of(turned).view(sitk.GetArrayViewFromImage(turned))
        assert np.array_equal(view, sitk.GetArrayViewFromImage(sitk.DICOMOrient(turned, "LPS")))


@pytest.mark.parametrize(
    ("axis", "lying"),
    [(0, {"slice": 0, "row": 2, "column": 1}), (1, {"slice": 1, "row": 2, "column": 0})],
    ids=["sagittal", "coronal"],
)
def test_a_single_slice_keeps_its_own_plane_with_the_top_of_the_head_up(axis, lying):
    size = [40, 50, 30]
    size[axis] = 1
    for turned in phantom.orientations(phantom.grid(size, (3.0, 3.0, 3.0))):
        orientation = Orientation.of(turned)
        assert turned.GetSize()[orientation.axes[0]] == 1
        view = orientation.view(phantom.points(turned)[..., lying["row"]])
        assert np.all(np.diff(view, axis=1) < 0)  # superior to inferior
        assert np.all(np.diff(orientation.view(phantom.points(turned)[..., lying["column"]]), axis=2) > 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_along_any_axis_goes_there_and_back(axis):
    size, spacing = [60, 60, 40], [2.5, 2.5, 4.0]
    size[axis], spacing[axis] = 1, 5.0
    empty = phantom.grid(size, spacing)
    shift = (phantom.LESION_CENTRE - phantom.HEAD_CENTRE) * (np.arange(3) == axis)
    empty.SetOrigin((np.array(empty.GetOrigin()) + shift).tolist())
    anomaly_map = there_and_back(phantom.paint(empty), phantom.brain_of(empty), MODEL_GRID)
    assert phantom.geometry(anomaly_map) == phantom.geometry(empty)
    assert phantom.centroid(anomaly_map, 0.5) == pytest.approx(phantom.LESION_CENTRE, abs=1.0)


# Resampling


def test_a_grid_like_the_scan_copies_voxels_and_gives_them_back():
    volume = random_volume()
    stack = SliceStack([volume.image], Grid((14, 12), 1.6), whole(volume.image))
    original = sitk.GetArrayFromImage(volume.image)
    assert stack.images()[:, 0] == pytest.approx(original, abs=1e-5)
    assert sitk.GetArrayFromImage(stack.to_volume(stack.images()[:, 0])) == pytest.approx(original, abs=1e-5)


def test_a_scan_like_lgg_comes_back_in_place_from_coarser_slices():
    empty = phantom.grid((256, 256, 20), (0.94, 0.94, 5.0))
    anomaly_map = there_and_back(phantom.paint(empty), phantom.brain_of(empty), Grid((128, 128), 1.6))
    truth = sitk.GetArrayFromImage(phantom.lesion_of(empty)) > 0
    found = sitk.GetArrayFromImage(anomaly_map) > 0.5
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.95
    assert phantom.centroid(anomaly_map, 0.5) == pytest.approx(phantom.centroid(phantom.lesion_of(empty), 0.5), abs=0.2)


@pytest.mark.parametrize("spacing", [0.7, 1.6, 3.0])
def test_an_in_plane_slope_stays_the_same_slope(spacing):
    empty = phantom.grid((60, 50, 2), (1.1, 1.3, 5.0))
    world = phantom.points(empty)
    slope = (2 * world[..., 0] - 3 * world[..., 1]).astype(np.float32)
    stack = SliceStack([phantom.on_grid(slope, empty)], Grid((12, 10), spacing), whole(empty))
    image = stack.images()[0, 0].astype(float)
    assert np.diff(image, axis=1) == pytest.approx(2 * spacing, abs=1e-3)
    assert np.diff(image, axis=0) == pytest.approx(-3 * spacing, abs=1e-3)


def test_stripes_finer_than_a_pixel_are_averaged_not_aliased():
    empty = phantom.grid((90, 80, 1), (0.5, 0.5, 5.0))
    stripes = np.broadcast_to(np.arange(90) % 2 * 100.0, (1, 80, 90)).astype(np.float32)
    stack = SliceStack([phantom.on_grid(stripes, empty)], Grid((10, 10), 2.0), whole(empty))
    assert stack.images()[:, 0] == pytest.approx(50, abs=1e-3)


def test_what_lies_outside_the_brain_never_reaches_the_slices(flair_like_volume, flair_like_brain):
    array = sitk.GetArrayFromImage(flair_like_volume.image)
    brain = sitk.GetArrayFromImage(flair_like_brain) > 0
    wild = dataclasses.replace(
        flair_like_volume, image=phantom.on_grid(np.where(brain, array, 1e6), flair_like_volume.image)
    )
    plain = SliceStack([flair_like_volume.image], MODEL_GRID, flair_like_brain).images()
    assert np.array_equal(plain, SliceStack([wild.image], MODEL_GRID, flair_like_brain).images())


def test_even_scores_stays_even_up_to_the_edge_of_the_brain(flair_like_volume, flair_like_brain):
    stack = SliceStack([flair_like_volume.image], MODEL_GRID, flair_like_brain)
    anomaly_map = sitk.GetArrayFromImage(stack.to_volume(np.full(stack.brain().shape, 3.5, np.float32)))
    brain = sitk.GetArrayFromImage(flair_like_brain) > 0
    assert np.all(anomaly_map[~brain] == 0)
    marked = brain & (anomaly_map > 0)
    assert anomaly_map[marked] == pytest.approx(3.5, abs=1e-5)
    assert marked.sum() / brain.sum() > 0.99
    assert stack.coverage > 0.99


@settings(max_examples=15, deadline=None)
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(1.5, 5.5)] * 3),
    pixel=st.floats(1.2, 3.0),
)
def test_any_frame_and_spacing_keeps_place_and_grid(degrees, spacing, pixel):
    size = [int(150 / edge) for edge in spacing]
    empty = phantom.grid(size, spacing, phantom.rotation(degrees))
    anomaly_map = there_and_back(phantom.paint(empty), phantom.brain_of(empty), Grid((110, 110), pixel, 5.0))
    assert phantom.geometry(anomaly_map) == phantom.geometry(empty)
    truth = phantom.centroid(phantom.lesion_of(empty), 0.5)
    assert np.linalg.norm(phantom.centroid(anomaly_map, 0.5) - truth) < 1.5


# Through the slices


@pytest.mark.parametrize(
    ("slice_mm", "limit", "thickness"),
    [(1.0, 3.0, 3), (1.0000001, 3.0, 3), (1.2, 3.0, 2), (5.0, 3.0, 1), (0.5, 3.0, 6)],
)
def test_slices_stand_as_far_apart_as_the_limit_allows(slice_mm, limit, thickness):
    volume = random_volume((8, 8, 24), (1.6, 1.6, slice_mm))
    stack = SliceStack([volume.image], Grid((8, 8), 1.6, limit), whole(volume.image))
    assert len(stack) == 24 / thickness
    assert set(np.diff(stack.indices)) == {thickness}
    assert stack.slice_spacing == pytest.approx(thickness * slice_mm)
    assert stack.voxel_ml == pytest.approx(1.6 * 1.6 * thickness * slice_mm / 1000)


@pytest.mark.parametrize("count", [9, 10, 11])
def test_a_slice_is_the_mean_of_the_thin_slices_it_stands_for(count):
    volume = random_volume((8, 8, count), (1.6, 1.6, 1.0))
    stack = SliceStack([volume.image], Grid((8, 8), 1.6, 3.0), whole(volume.image))
    array = sitk.GetArrayFromImage(volume.image)
    expected = [array[k : k + 3].mean(axis=0) for k in range(0, count, 3)]
    assert stack.images()[:, 0] == pytest.approx(np.stack(expected), abs=1e-5)


@pytest.mark.parametrize(("limit", "centres"), [(2.0, [0.5, 2.5, 4.5, 6.5, 8.0]), (3.0, [1, 4, 7])])
def test_scores_is_linear_between_slices_and_flat_beyond_the_outermost(limit, centres):
    volume = random_volume((8, 8, 9), (1.6, 1.6, 1.0))
    stack = SliceStack([volume.image], Grid((8, 8), 1.6, limit), whole(volume.image))
    slope = 1 + 2 * np.array(centres)
    anomaly_map = stack.to_volume(np.broadcast_to(slope[:, None, None], (len(centres), 8, 8)).astype(np.float32))
    expected = np.interp(np.arange(9), centres, slope)
    assert sitk.GetArrayFromImage(anomaly_map)[:, 3, 4] == pytest.approx(expected, abs=1e-5)


def test_slices_without_brain_are_left_out_and_not_bridged():
    volume = random_volume((8, 8, 10), (1.6, 1.6, 1.0))
    mask = np.ones((10, 8, 8), np.uint8)
    mask[4:6] = 0
    stack = SliceStack([volume.image], Grid((8, 8), 1.6, 2.0), phantom.on_grid(mask, volume.image))
    assert stack.indices == (1, 3, 7, 9)
    anomaly_map = stack.to_volume(np.repeat([1, 1, 9, 9], 64).reshape(4, 8, 8).astype(np.float32))
    assert sitk.GetArrayFromImage(anomaly_map)[:, 4, 4].tolist() == [1, 1, 1, 1, 0, 0, 9, 9, 9, 9]


def test_slices_come_in_any_ranges(flair_like_volume, flair_like_brain):
    stack = SliceStack([flair_like_volume.image], MODEL_GRID, flair_like_brain)
    pieces = [(start, min(start + 3, len(stack))) for start in range(0, len(stack), 3)]
    assert np.array_equal(np.concatenate([stack.images(*piece) for piece in pieces]), stack.images())
    assert np.array_equal(np.concatenate([stack.brain(*piece) for piece in pieces]), stack.brain())
    assert stack.images().dtype == np.float32
    assert np.all(stack.images()[:, 0][~stack.brain()] == 0)


def test_a_large_scan_streams():
    volume = random_volume((160, 160, 120), (1.0, 1.0, 1.0))
    scan_bytes = 160 * 160 * 120 * 4
    brain = whole(volume.image)
    tracemalloc.start()
    stack = SliceStack([volume.image], Grid((64, 64), 2.5), brain)
    for start in range(len(stack)):
        stack.images(start, start + 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    stack.to_volume(stack.brain().astype(np.float32))
    peak_back = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * scan_bytes
    assert peak_back < 1.5 * scan_bytes


# Neighbours


def flagged_volume(flags: list[bool], slice_mm: float = 1.0) -> tuple[Volume, sitk.Image]:
    """A scan of so many slices, and a mask that has brain where the flag says so."""
    volume = random_volume((8, 8, len(flags)), (1.6, 1.6, slice_mm))
    mask = np.repeat(np.array(flags, np.uint8), 64).reshape(len(flags), 8, 8)
    return volume, phantom.on_grid(mask, volume.image)


@settings(max_examples=60, deadline=None)
@given(flags=st.lists(st.booleans(), min_size=2, max_size=14).filter(any), thickness=st.sampled_from([1, 2]))
def test_a_neighbour_is_so_many_slices_away_with_brain_all_the_way(flags, thickness):
    volume, brain = flagged_volume(flags)
    stack = SliceStack([volume.image], Grid((8, 8), 1.6, float(thickness)), brain)
    first, last = flags.index(True), len(flags) - 1 - flags[::-1].index(True)
    # Half of a slab's slices with brain are enough, so that a slab of one or two is kept where any of its has.
    slabs = [any(flags[k : k + thickness]) for k in range(first, last + 1, thickness)]
    numbers = [number for number, kept in enumerate(slabs) if kept]
    assert len(stack) == len(numbers)
    for index, number in enumerate(numbers):
        for offset in range(-3, 4):
            between = range(min(number, number + offset), max(number, number + offset) + 1)
            there = all(0 <= other < len(slabs) and slabs[other] for other in between)
            assert stack.beside(index, offset) == (index + offset if there else None)


@pytest.mark.parametrize("reach", [1, 2, 8])
def test_slabs_hold_the_slices_beside_and_zeros_where_there_is_none(reach):
    """Seven slices with brain, in two blocks: what is shown is written out block by block."""
    blocks = [(1, 5), (7, 10)]
    volume, brain = flagged_volume([any(low <= k < high for low, high in blocks) for k in range(11)])
    stack = SliceStack([volume.image], Grid((8, 8), 1.6, 1.0, neighbours=reach), brain)
    scale = IntensityScale(-2.0, 2.0, 0.5, 1.0)
    original = np.clip((sitk.GetArrayFromImage(volume.image) + 2.0) / 8.0, 0.0, 1.0)
    expected = []
    for low, high in blocks:
        padded = np.pad(original[low:high], ((reach, reach), (0, 0), (0, 0)))
        expected += [padded[k : k + 2 * reach + 1] for k in range(high - low)]
    whole_batch = make_batch(stack, [scale], 0, len(stack), 0)
    assert whole_batch.slabs.numpy() == pytest.approx(np.stack(expected), abs=1e-5)
    assert whole_batch.seen is whole_batch.slabs
    assert np.array_equal(whole_batch.slabs[:, reach], whole_batch.images[:, 0])
    for size in (1, 2, 3):
        parts = [make_batch(stack, [scale], k, min(k + size, len(stack)), 0) for k in range(0, len(stack), size)]
        for name in ("images", "brain", "slabs"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(joined, getattr(whole_batch, name))


def test_without_neighbours_a_slice_is_shown_alone():
    volume, brain = flagged_volume([True] * 4)
    batch = make_batch(
        SliceStack([volume.image], Grid((8, 8), 1.6), brain), [IntensityScale(-2.0, 2.0, 0.5, 1.0)], 0, 4, 0
    )
    assert batch.slabs is None
    assert batch.seen is batch.images


@pytest.mark.parametrize("neighbours", [0, 1, 8])
def test_as_many_neighbours_as_a_scan_may_need_are_allowed(neighbours):
    assert Grid((8, 8), 1.0, neighbours=neighbours).neighbours == neighbours


# What a mask may be


def test_a_brain_larger_than_the_grid_is_reported_and_gets_no_scores_outside():
    volume = random_volume((100, 100, 4), (2.0, 2.0, 5.0))
    stack = SliceStack([volume.image], Grid((50, 40), 2.0), whole(volume.image))
    assert stack.coverage == pytest.approx(50 * 40 / 100**2)
    anomaly_map = sitk.GetArrayFromImage(stack.to_volume(np.ones((4, 40, 50), np.float32)))
    assert (anomaly_map > 0).mean() == pytest.approx(stack.coverage)


@pytest.mark.parametrize("marked", [0, 1], ids=["empty", "one-voxel"])
def test_a_mask_without_a_pixel_of_brain_is_refused(marked):
    volume = random_volume((40, 40, 6), (1.0, 1.0, 3.0))
    mask = np.zeros((6, 40, 40), np.uint8)
    mask[3, 20, 20] = marked
    with pytest.raises(InputError, match="brain mask") as caught:
        SliceStack([volume.image], Grid((16, 16), 4.0), phantom.on_grid(mask, volume.image))
    assert caught.value.hint


def test_a_mask_of_another_grid_is_refused_with_both_grids_named():
    volume = random_volume()
    with pytest.raises(InputError, match=r"13x12x9.*14x12x9"):
        SliceStack([volume.image], MODEL_GRID, whole(phantom.grid((13, 12, 9), (1.6, 1.6, 4.0))))


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing": 0.0},
        {"max_slice_spacing": float("nan")},
        {"size": (0, 4)},
        {"neighbours": -1},
        {"neighbours": 9},
    ],
)
def test_a_grid_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        Grid(**({"size": (8, 8), "spacing": 1.0} | wrong))


# Intensities


def test_percentiles_go_where_the_model_expects_them():
    values = np.random.default_rng(1).gamma(4, 30, 20001)
    scale = PercentileNormalisation().fit(values)
    pixels = np.percentile(values, [5, 40, 75])[None]
    scaled = scale(pixels, np.ones((1, 3), bool))
    assert scaled[0, [0, 2]] == pytest.approx([0, 0.5], abs=1e-6)
    assert 0 < scaled[0, 1] < 0.5
    assert scaled.dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(0.01, 1e4), offset=st.floats(-1e4, 1e4))
def test_scanner_gain_and_offset_do_not_matter(gain, offset):
    values = np.random.default_rng(2).gamma(4, 30, 500)
    brain = np.ones(values.shape, bool)
    other = values * gain + offset
    assert PercentileNormalisation().fit(other)(other, brain) == pytest.approx(
        PercentileNormalisation().fit(values)(values, brain), abs=1e-4
    )


def test_background_is_zero_and_extremes_are_clipped():
    scale = PercentileNormalisation(clip_max=0.9).fit(np.linspace(0, 1, 101))
    scaled = scale(np.array([[-100.0, 100.0, 0.5]]), np.array([[True, True, False]]))
    assert scaled.tolist() == [[0.0, pytest.approx(0.9), 0.0]]


@pytest.mark.parametrize("value", [0.0, 7.0, -1e30, 1e30])
def test_a_constant_brain_becomes_zero(value):
    scale = PercentileNormalisation().fit(np.full(50, value, np.float32))
    assert np.all(scale(np.full((2, 2), value, np.float32), np.ones((2, 2), bool)) == 0)


def test_a_brain_without_voxels_has_no_scale():
    with pytest.raises(InputError, match="no voxel inside"):
        PercentileNormalisation().fit(np.empty(0))


def test_a_slabs_number_is_that_of_each_slice_it_stands_for() -> None:
    volume = random_volume(size=(14, 12, 9), spacing=(1.6, 1.6, 1.0))
    brain = np.zeros((9, 12, 14), np.uint8)
    brain[2:8] = 1
    stack = SliceStack([volume.image], Grid((12, 12), 2.0, 2.0), phantom.on_grid(brain, volume.image))
    spread = stack.by_slice(np.array([5.0, 6.0, 7.0]))
    np.testing.assert_array_equal(spread, [np.nan, np.nan, 5, 5, 6, 6, 7, 7, np.nan])
