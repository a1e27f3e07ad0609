"""Distances between surfaces, against every pair of surface voxels, boxes worked out by hand, and MONAI."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from conftest import ball
from fewscan.errors import GeometryError
from fewscan.grid import Grid
from fewscan.metrics import hausdorff95_mm, surface_dice

SPACING = (0.9, 0.8, 2.5)
SHAPE = (19, 23, 11)


def straight(shape, spacing=SPACING):
    return Grid(shape, np.diag([*spacing, 1.0]))


def blobs(shape, seed):
    """Two masks that resemble each other; the last corner is bright in the first alone."""
    random = np.random.default_rng(seed)
    smooth = [1.2 if n > 1 else 0 for n in shape]
    first = gaussian_filter(random.random(shape), smooth)
    second = first + 0.4 * gaussian_filter(random.random(shape), smooth)
    masks = first > np.median(first), second > np.median(second)
    masks[0][-1, -1, -1] = True
    return masks


def border_places(mask):
    """The indices of voxels with a face neighbour outside, one by one; axes of length 1 have no neighbours."""
    found = []
    for place in np.argwhere(mask):
        for axis, shift in itertools.product(range(3), (-1, 1)):
            near = place.copy()
            near[axis] += shift
            beyond = not 0 <= near[axis] < mask.shape[axis]
            if mask.shape[axis] > 1 and (beyond or not mask[tuple(near)]):
                found.append(place)
                break
    return np.array(found)


@pytest.mark.parametrize("shape", [SHAPE, (23, 19, 1), (17, 1, 12), (25, 1, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_hd95_equals_all_pairs_of_border_voxels_in_mm(shape, seed):
    rotated = np.eye(4)
    rotated[:3, :3] = Rotation.from_euler("xyz", (20, -35, 110), degrees=True).as_matrix() * (-0.9, 0.8, 2.5)
    rotated[:3, 3] = 12, -30, 7
    grid = Grid(shape, rotated)
    answer, truth = blobs(shape, seed)
    distance = cdist(grid.to_mm(border_places(answer)), grid.to_mm(border_places(truth)))
    expected = max(np.percentile(distance.min(axis=1), 95), np.percentile(distance.min(axis=0), 95))
    assert expected > 0
    assert hausdorff95_mm(answer, truth, grid) == pytest.approx(expected, rel=1e-5)
    assert hausdorff95_mm(truth, answer, grid) == hausdorff95_mm(answer, truth, grid)


@pytest.mark.parametrize("shape", [SHAPE, (23, 19, 1), (17, 1, 12)])
def test_both_equal_monai(shape):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    masks = blobs(shape, 3)
    answer, truth = (torch.from_numpy(mask.squeeze())[None, None].float() for mask in masks)
    options = {"include_background": True, "spacing": [mm for mm, n in zip(SPACING, shape, strict=True) if n > 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's own, about its own call
        distance = float(compute_hausdorff_distance(answer, truth, percentile=95, **options))
        shares = [
            float(compute_surface_dice(answer, truth, [mm], use_subvoxels=True, **options)) for mm in (0, 0.95, 2)
        ]
    assert hausdorff95_mm(*masks, straight(shape)) == pytest.approx(distance, rel=1e-5)
    ours = [surface_dice(*masks, straight(shape), mm) for mm in (0, 0.95, 2)]
    assert ours == pytest.approx(shares, abs=1e-6)
    assert 0 < shares[0] < shares[1] < shares[2] <= 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_plate_lies_as_far_as_it_was_shifted(axis):
    shape = [15, 15, 15]
    truth, answer = np.zeros(shape, bool), np.zeros(shape, bool)
    truth[(slice(None),) * axis + (4,)] = True
    answer[(slice(None),) * axis + (7,)] = True
    assert hausdorff95_mm(answer, truth, straight(shape)) == pytest.approx(3 * SPACING[axis], rel=1e-6)
    below, above = 3 * SPACING[axis] - 0.01, 3 * SPACING[axis]
    assert surface_dice(answer, truth, straight(shape), above) == 1  # the tolerance itself still agrees
    assert surface_dice(answer, truth, straight(shape), below) < 1


def box_surface(start, stop, spacing):
    """Places in mm and areas in mm2 of the elements of a box of voxels, from geometry alone.

    An element lies on a corner of voxels. On a face it is flat and as large as a voxel's face; on an edge of the box
    it cuts the edge between the middles of its two faces; on a corner of the box it is a triangle.
    """
    i, j, k = spacing
    faces = np.array([j * k, i * k, i * j])  # by the axis that is normal to it
    for place in itertools.product(*[range(a, b + 1) for a, b in zip(start, stop, strict=True)]):
        at_end = np.array([p in (a, b) for p, a, b in zip(place, start, stop, strict=True)])
        weight = {1: 1.0, 2: 0.5, 3: 0.125}.get(int(at_end.sum()))
        if weight is not None:
            yield np.multiply(place, spacing), weight * np.linalg.norm(faces * at_end)


@pytest.mark.parametrize("tolerance_mm", [0.0, 0.8, 0.95, 1.7, 2.5, 4.0])
def test_surface_dice_of_two_boxes_weighs_area(tolerance_mm):
    boxes = ((3, 2, 0), (9, 11, 6)), ((4, 2, 1), (9, 13, 6))
    masks = []
    for start, stop in boxes:
        mask = np.zeros((15, 13, 9), bool)  # both touch the border of the volume
        mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
        masks.append(mask)
    (places, areas), (others, other_areas) = (
        map(np.array, zip(*box_surface(*box, SPACING), strict=True)) for box in boxes
    )
    distance = cdist(places, others)
    agreed = areas[distance.min(axis=1) <= tolerance_mm + 1e-9].sum()
    agreed += other_areas[distance.min(axis=0) <= tolerance_mm + 1e-9].sum()
    expected = agreed / (areas.sum() + other_areas.sum())
    grid = straight(masks[0].shape)
    assert surface_dice(*masks, grid, tolerance_mm) == pytest.approx(expected, rel=1e-6)


def test_only_distances_in_the_patient_count():
    answer, truth = blobs(SHAPE, 5)
    grid = straight(SHAPE)
    axes, flips = (2, 0, 1), (True, False, True)
    other = grid.reordered(axes, flips)
    turned = [np.flip(mask.transpose(axes), [n for n in range(3) if flips[n]]) for mask in (answer, truth)]
    assert hausdorff95_mm(*turned, other) == pytest.approx(hausdorff95_mm(answer, truth, grid), rel=1e-5)
    for mm in (0.0, 0.85, 2.6):  # 2D and 3D tables of areas know no preferred axis
        assert surface_dice(*turned, other, mm) == pytest.approx(surface_dice(answer, truth, grid, mm), rel=1e-5)


def test_perfect_and_empty():
    mask = ball(SHAPE, (9, 11, 5), 4.2)
    nothing, grid = np.zeros(SHAPE, np.uint8), straight(SHAPE)
    assert hausdorff95_mm(mask, mask, grid) == 0
    assert surface_dice(mask, mask, grid, 0) == 1
    assert hausdorff95_mm(mask, nothing, grid) == hausdorff95_mm(nothing, mask, grid) == np.inf
    assert surface_dice(mask, nothing, grid, 99) == surface_dice(nothing, mask, grid, 99) == 0
    assert np.isnan([hausdorff95_mm(nothing, nothing, grid), surface_dice(nothing, nothing, grid, 1)]).all()


def test_refuses_what_has_no_distances():
    mask = ball(SHAPE, (9, 11, 5), 4.2)
    tilted = np.diag([*SPACING, 1.0])
    tilted[1, 2] = 0.6
    with pytest.raises(GeometryError, match="sheared"):
        hausdorff95_mm(mask, mask, Grid(SHAPE, tilted))
    with pytest.raises(ValueError, match=r"grid \(19, 23, 12\)"):
        surface_dice(mask, mask, straight((19, 23, 12)), 1)
    with pytest.raises(ValueError, match="tolerance"):
        surface_dice(mask, mask, straight(SHAPE), -1)
    with pytest.raises(ValueError, match="two axes"):
        surface_dice(mask[:, :1, :1] | 1, mask[:, :1, :1], straight((19, 1, 1)), 1)
