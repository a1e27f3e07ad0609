"""From the scan's grid to the network's and back: positions in mm, values against SciPy."""

import tracemalloc

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from fewscan.decision import Decision
from fewscan.errors import BundleError, GeometryError
from fewscan.grid import Grid
from fewscan.network_grid import labels_to_network_grid, to_network_grid
from fewscan.taps import linear_weights
from fewscan.transforms import ToNetworkGridd

SHAPE, SPACING = (25, 22, 9), (0.9, 0.8, 2.5)


def decide(logits, network_affine, scan) -> np.ndarray:
    """The classes on the scan's grid of a whole answer (classes, *spatial)."""
    decision, whole = Decision(logits.shape[1:], network_affine, scan), tuple(slice(0, n) for n in logits.shape[1:])
    decision.add(logits, whole, whole)
    return decision.classes


def rotation(*angles) -> np.ndarray:
    matrix = np.eye(3)
    for (a, b), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        turn = np.eye(3)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def grid(directions, shape=SHAPE, spacing=SPACING) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing)
    affine[:3, 3] = -31.5, 12.25, 80.0
    return Grid(shape, affine)


SHEAR = np.array([[1, 0, 0], [0, 1, 0.26], [0, 0, 0.966]])  # a gantry tilt of 15 degrees
GRIDS = {
    "straight": grid(np.eye(3)),
    "lps": grid(np.diag([-1.0, -1, 1])),
    "reversed": grid(np.diag([1.0, -1, -1])),
    "permuted": grid(np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]])),
    "oblique": grid(rotation(0.3, -0.2, 0.1)),
    "oblique and permuted": grid(rotation(-0.2, 0.3, 0.4)[:, [2, 0, 1]] * [1, -1, 1]),
    "tilted": grid(SHEAR),
}
each_grid = pytest.mark.parametrize("scan", GRIDS.values(), ids=GRIDS.keys())
each_slice_axis = pytest.mark.parametrize("slice_axis", [None, 0, 1, 2])


def smooth(shape, channels=1, seed=0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    return torch.from_numpy(np.stack([ndimage.gaussian_filter(n, 1.5) for n in noise]) * 10).float()


def sampled(array: np.ndarray, array_affine: np.ndarray, wanted: Grid) -> np.ndarray:
    """SciPy's linear interpolation of (*spatial) at the voxels of `wanted`, by positions in mm."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in wanted.shape], indexing="ij"), -1)
    step = np.linalg.inv(array_affine)
    places = wanted.to_mm(index) @ step[:3, :3].T + step[:3, 3]
    return ndimage.map_coordinates(array, np.moveaxis(places, -1, 0), order=1, mode="nearest")


@each_grid
@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_one_by_one_are_decided_as_all_of_them(scan, slice_axis):
    """A 2D network answers slices alone, with another spacing in plane: none may be taken for its neighbour."""
    moved = to_network_grid(torch.zeros((1, *scan.shape)), scan, [1.0, 1.1, 2.0], slice_axis)[1]
    logits = smooth(moved.shape, channels=3)
    decision = Decision(moved.shape, moved.affine, scan)
    for number in range(moved.shape[2]):
        here = (slice(0, moved.shape[0]), slice(0, moved.shape[1]), slice(number, number + 1))
        decision.add(logits[..., number : number + 1], here, here)
    np.testing.assert_array_equal(decision.classes, decide(logits, moved.affine, scan))


@each_grid
@each_slice_axis
def test_without_resampling_it_is_a_permutation_and_comes_back_exactly(scan, slice_axis):
    classes = torch.from_numpy(np.random.default_rng(0).integers(0, 4, scan.shape))
    logits, moved = to_network_grid(torch.nn.functional.one_hot(classes).movedim(-1, 0).float(), scan, None, slice_axis)
    assert logits.shape[1:] == moved.shape
    assert np.array_equal(decide(logits, moved.affine, scan), classes.numpy())
    along = [axis for axis in range(3) if axis != slice_axis] + ([] if slice_axis is None else [slice_axis])
    signs = [np.sign(moved.directions[row, column]) for column, row in enumerate(along)]
    assert signs == [(-1, -1, 1)[row] for row in along]


def test_a_scan_in_the_networks_own_order_is_left_alone():
    scan = GRIDS["lps"]
    image = smooth(scan.shape, 2)
    moved, same = to_network_grid(image, scan, scan.spacing_mm)
    assert torch.equal(moved, image)
    assert same.differs_from(scan) is None


@each_grid
@pytest.mark.parametrize("spacing", [(0.5, 0.6, 1.1), (1.7, 0.8, 2.5), (1.3, 1.9, 4.0)])
def test_the_extent_stays_and_the_spacing_is_met_up_to_whole_voxels(scan, spacing):
    moved = to_network_grid(torch.zeros(1, *scan.shape), scan, spacing)[1]
    own = scan.reordered(*scan.axes_to_lps())
    for grid_ in (moved, own):  # the outer faces, half a voxel beyond the centres
        np.testing.assert_allclose(
            moved.to_mm([np.array([-0.5] * 3), np.array(moved.shape) - 0.5]),
            own.to_mm([np.array([-0.5] * 3), np.array(own.shape) - 0.5]),
            atol=1e-9,
        )
        assert grid_.directions == pytest.approx(own.directions)
    extent = np.array(own.shape) * own.spacing_mm
    assert moved.shape == tuple(round(e / s) for e, s in zip(extent, spacing, strict=True))


@each_grid
@each_slice_axis
@pytest.mark.parametrize("spacing", [(0.5, 0.6, 1.1), (1.3, 1.9, 4.0)])
def test_a_bright_blob_stays_where_it_is_in_mm(scan, slice_axis, spacing):
    blob = np.zeros(scan.shape)
    blob[17, 6, 3] = 1.0
    blob = ndimage.gaussian_filter(blob, 0.8 * np.array([3, 3, 1]))
    moved, new = to_network_grid(torch.from_numpy(blob)[None].float(), scan, spacing, slice_axis)
    before = scan.to_mm(ndimage.center_of_mass(blob))
    after = new.to_mm(ndimage.center_of_mass(moved[0].numpy()))
    assert np.linalg.norm(after - before) < 0.1


def finer(scan) -> np.ndarray:
    """A spacing, along left, posterior, superior, that is smaller than the scan's along each axis."""
    return np.array(scan.reordered(*scan.axes_to_lps()).spacing_mm) * (0.6, 0.7, 0.45)


@each_grid
def test_upsampling_is_scipys_linear_interpolation(scan):
    image = smooth(scan.shape)
    moved, new = to_network_grid(image, scan, finer(scan))
    np.testing.assert_allclose(moved[0].numpy(), sampled(image[0].numpy(), scan.affine, new), atol=2e-4)


@each_grid
def test_a_map_of_coordinates_is_kept_along_each_axis(scan):
    """An image that holds its own x, y or z in mm holds it on the network's grid too: nothing is off by a voxel."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in scan.shape], indexing="ij"), -1)
    image = torch.from_numpy(scan.to_mm(index)).movedim(-1, 0).float()
    for spacing, tolerance in ((finer(scan), 1e-4), (3 * finer(scan), 0.1 * max(SPACING))):
        moved, new = to_network_grid(image, scan, spacing)
        places = np.stack(np.meshgrid(*[np.arange(n) for n in new.shape], indexing="ij"), -1)
        inner = (slice(2, -2), slice(2, -2), slice(1, -1))  # at the border the nearest centre's value counts
        np.testing.assert_allclose(moved.movedim(0, -1).numpy()[inner], new.to_mm(places)[inner], atol=tolerance)


@each_slice_axis
def test_a_constant_stays_constant(slice_axis):
    scan = GRIDS["oblique"]
    for spacing in ((0.5, 0.6, 1.1), (1.3, 1.9, 4.0), (30.0, 30.0, 30.0)):
        moved = to_network_grid(torch.full((1, *scan.shape), 7.0), scan, spacing, slice_axis)[0]
        assert float((moved - 7).abs().max()) < 1e-5


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_keep_their_number_and_their_values(slice_axis):
    scan = GRIDS["lps"]
    image = smooth(scan.shape)
    moved, new = to_network_grid(image, scan, (3.0, 3.0, 3.0), slice_axis)
    assert new.shape[2] == scan.shape[slice_axis]
    for at in range(new.shape[2]):  # each slice comes from its own slice alone
        only = torch.zeros_like(image)
        only.select(slice_axis + 1, at).copy_(image.select(slice_axis + 1, at))
        alone = to_network_grid(only, scan, (3.0, 3.0, 3.0), slice_axis)[0]
        assert torch.equal(alone[..., at], moved[..., at])
        assert torch.count_nonzero(alone) == torch.count_nonzero(alone[..., at])


def test_coarser_spacing_averages_instead_of_aliasing():
    """Stripes of one voxel, +1 and -1, are grey from afar: picking voxels would keep them at full strength."""
    scan = grid(np.diag([-1.0, -1, 1]), (64, 6, 5), (1, 1, 1))
    stripes = torch.ones(1, *scan.shape)
    stripes[:, 1::2] = -1
    inner = to_network_grid(stripes, scan, (3.0, 1, 1))[0][0, 2:-2].abs().max()
    assert float(inner) < 0.12
    exact = to_network_grid(stripes, scan, (2.0, 1, 1))[0][0, 1:-1]  # triangle 1/8, 3/8, 3/8, 1/8: cancels
    assert float(exact.abs().max()) < 1e-6


def test_downsampling_by_two_has_the_weights_of_a_triangle():
    taps = linear_weights(np.array([2.5, 0.0, 5.0]), 6, 2.0)
    matrix = np.zeros((3, 8))
    for place, (first, weights) in enumerate(zip(taps.first, taps.weights, strict=True)):
        matrix[place, first : first + len(weights)] = weights
    expected = [[0, 1 / 8, 3 / 8, 3 / 8, 1 / 8, 0], [2 / 3, 1 / 3, 0, 0, 0, 0], [0, 0, 0, 0, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(matrix[:, :6], expected, atol=1e-7)
    assert not matrix[:, 6:].any()


@each_grid
@pytest.mark.parametrize("spacing", [(0.5, 0.6, 1.1), (1.3, 1.9, 4.0), (1.3, 0.8, 1.2)])
@each_slice_axis
def test_the_decision_is_the_argmax_of_scipys_interpolated_softmax(scan, spacing, slice_axis):
    network = to_network_grid(torch.zeros(1, *scan.shape), scan, spacing, slice_axis)[1]
    logits = smooth(network.shape, 3)
    probability = np.stack([sampled(p, network.affine, scan) for p in torch.softmax(logits, 0).double().numpy()])
    first, second = np.sort(probability, axis=0)[[-1, -2]]
    clear = first - second > 1e-4
    assert clear.mean() > 0.98
    labels = decide(logits, network.affine, scan)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels[clear], probability.argmax(axis=0)[clear])


def test_the_lower_class_wins_a_tie_and_many_classes_fit():
    scan = grid(np.diag([-1.0, -1, 1]), (3, 4, 2))
    assert not decide(torch.zeros(5, *scan.shape), scan.affine, scan).any()
    logits = torch.zeros(300, *scan.shape)
    logits[299, 1, 2, 1] = 1
    labels = decide(logits, scan.affine, scan)
    assert labels[1, 2, 1] == 299
    assert np.count_nonzero(labels) == 1


@pytest.mark.parametrize("turn", [rotation(0.1, 0, 0), rotation(0, 0, 0.02), SHEAR])
def test_a_turned_grid_is_refused(turn):
    scan = GRIDS["oblique"]
    affine = np.array(scan.affine)
    affine[:3, :3] = turn @ affine[:3, :3]
    with pytest.raises(GeometryError, match="turned"):
        decide(torch.zeros(2, *scan.shape), affine, scan)


@each_grid
def test_labels_take_the_class_that_covers_most_of_a_voxel(scan):
    """Against each class resampled by itself: no voxel gets a class that lies between two others."""
    classes = torch.from_numpy(np.random.default_rng(0).choice([0, 3, 7], scan.shape))
    classes = torch.from_numpy(ndimage.median_filter(classes.numpy(), 3))
    affine = torch.from_numpy(np.array(scan.affine))
    data = {"image": MetaTensor(smooth(scan.shape), affine=affine), "label": MetaTensor(classes[None], affine=affine)}
    moved = ToNetworkGridd("image", spacing=(1.3, 1.9, 2.5), label_keys=("label",))(data)
    maps = torch.stack([to_network_grid((classes == c).float()[None], scan, (1.3, 1.9, 2.5))[0][0] for c in (0, 3, 7)])
    assert torch.equal(moved["label"][0].as_tensor(), torch.tensor([0, 3, 7])[maps.argmax(0)])
    assert torch.equal(moved["label"].affine, moved["image"].affine)
    assert moved["label"].shape == moved["image"].shape


@each_grid
@each_slice_axis
def test_labels_are_only_reordered_where_nothing_is_resampled(scan, slice_axis):
    classes = torch.from_numpy(np.random.default_rng(0).integers(0, 200, scan.shape).astype(np.uint8))[None]
    labels, moved = labels_to_network_grid(classes, scan, None, slice_axis)
    image, same = to_network_grid(classes.float(), scan, None, slice_axis)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.float(), image)
    assert np.array_equal(moved.affine, same.affine)


@pytest.mark.parametrize("directions", [np.diag([-1.0, -1, 1]), np.diag([1.0, -1, -1])], ids=["straight", "flipped"])
def test_no_matrix_is_built_where_every_voxel_is_one_of_the_networks(directions):
    """A long axis: the weights of all pairs of its voxels would be 72 MB."""
    scan = grid(directions, (3000, 2, 1), (1, 1, 1))
    classes = torch.from_numpy(np.random.default_rng(0).integers(0, 3, scan.shape))
    logits, moved = to_network_grid(torch.nn.functional.one_hot(classes).movedim(-1, 0).float(), scan, None)
    tracemalloc.start()
    labels = decide(logits, moved.affine, scan)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(labels, classes.numpy())
    assert highest < 2e6


def test_a_part_of_a_voxel_off_is_not_taken_for_the_same_voxels():
    scan = grid(np.diag([-1.0, -1, 1]), (6, 5, 4), (1, 1, 1))
    logits = smooth(scan.shape, 3)
    affine = np.array(scan.affine)
    affine[:3, 3] += (0.4, 0, 0)
    probability = np.stack([sampled(p, affine, scan) for p in torch.softmax(logits, 0).double().numpy()])
    assert np.array_equal(decide(logits, affine, scan), probability.argmax(axis=0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_logits_that_are_not_finite_give_no_mask(bad, scale):
    logits = torch.zeros(2, 4, 5, 6)
    logits[1, 2, 3, 4] = bad
    with pytest.raises(BundleError, match="not finite"):
        decide(logits, np.diag([scale, 1, 1, 1]), Grid((4, 5, 6), np.eye(4)))


# --- unknown voxels ---------------------------------------------------------------------------------------------------


@each_grid
@each_slice_axis
def test_unknown_voxels_are_only_reordered_without_resampling(scan, slice_axis):
    classes = torch.from_numpy(np.random.default_rng(0).integers(-1, 3, (1, *scan.shape))).to(torch.int16)
    moved, target = labels_to_network_grid(classes, scan, None, slice_axis)
    places = np.linalg.inv(scan.affine) @ target.affine
    index = np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), -1)
    at = np.rint(index @ places[:3, :3].T + places[:3, 3]).astype(int)
    np.testing.assert_array_equal(moved[0].numpy(), classes[0].numpy()[tuple(np.moveaxis(at, -1, 0))])


@pytest.mark.parametrize("spacing", [2.0, 1.0, 0.5, 0.25])
def test_a_single_annotated_slice_stays_one_at_every_spacing(spacing):
    """Of its own thickness where the grid gets finer, one new slice where it gets coarser; its label as before."""
    scan = grid(np.diag([-1.0, -1, 1]), (20, 24, 28), (1.0, 1.0, 1.0))
    classes = torch.full((1, *scan.shape), -1, dtype=torch.int16)
    classes[0, :, :, 12] = 0
    classes[0, 4:12, 8:16, 12] = 1
    moved, target = labels_to_network_grid(classes, scan, [spacing] * 3)
    known = moved[0].numpy() >= 0
    slices = np.flatnonzero(known.any((0, 1)))
    assert len(slices) == max(1, round(1 / spacing))
    assert known[:, :, slices].all()
    centre = scan.to_mm((0, 0, 12))[2]
    assert abs(target.to_mm(np.stack([0 * slices, 0 * slices, slices], -1))[:, 2].mean() - centre) <= spacing / 2
    whole = torch.where(classes[..., 12:13] > 0, 1, 0).expand_as(classes).contiguous()
    expected, _ = labels_to_network_grid(whole, scan, [spacing] * 3)
    np.testing.assert_array_equal(moved[0].numpy()[:, :, slices], expected[0].numpy()[:, :, slices])


@pytest.mark.parametrize("finer", [1, 2, 4])
def test_a_single_annotated_slice_stays_one_where_the_other_axes_get_coarser(finer):
    """Slices of 4 mm onto a grid of 1 mm, in-plane voxels of 1 mm and less: the slice is four new ones thick."""
    n, step = 16 * finer, 1 / finer
    scan = grid(np.diag([-1.0, -1, 1]), (n, n, 9), (step, step, 4.0))
    classes = torch.full((1, n, n, 9), -1, dtype=torch.int16)
    classes[..., 4] = 0
    classes[0, n // 4 : n // 2, n // 4 : n // 2, 4] = 1
    moved, target = labels_to_network_grid(classes, scan, [1.0, 1.0, 1.0])
    assert target.shape == (16, 16, 36)
    expected = np.full(target.shape, -1)
    expected[..., 16:20] = 0
    expected[4:8, 4:8, 16:20] = 1
    np.testing.assert_array_equal(moved[0].numpy(), expected)


@pytest.mark.parametrize("spacing", [(1.3, 0.7, 2.5), (2.0, 1.6, 5.0)])
def test_many_objects_are_resampled_as_each_by_itself(spacing):
    """Blocks of 60 numbers with gaps between them, next to each other and at the border; no number lies elsewhere."""
    scan = GRIDS["oblique and permuted"]
    random = np.random.default_rng(0)
    coarse = 7 * random.integers(0, 61, (5, 5, 3))
    classes = torch.from_numpy(np.kron(coarse, np.ones((5, 5, 3), int))[: SHAPE[0], : SHAPE[1], : SHAPE[2]])[None]
    moved, _ = labels_to_network_grid(classes, scan, spacing)
    values = torch.unique(classes)
    maps = torch.stack([to_network_grid((classes == value).float(), scan, spacing)[0][0] for value in values])
    first, second = maps.sort(0, descending=True).values[:2]
    clear = first - second > 1e-5  # a tie may be rounded either way
    assert clear.float().mean() > 0.9
    assert torch.equal(moved[0][clear], values[maps.argmax(0)][clear])


def test_what_is_known_of_a_new_voxel_decides_it():
    """Halving the resolution of a plane of which every second column is known keeps all of it."""
    scan = grid(np.diag([-1.0, -1, 1]), (16, 16, 1), (1.0, 1.0, 1.0))
    classes = torch.zeros((1, 16, 16, 1), dtype=torch.int16)
    classes[:, 8:] = 1
    some = classes.clone()
    some[:, :, ::2] = -1
    for spacing in (2.0, 4.0):
        whole, _ = labels_to_network_grid(classes, scan, [spacing, spacing, 1.0])
        assert torch.equal(labels_to_network_grid(some, scan, [spacing, spacing, 1.0])[0], whole)
