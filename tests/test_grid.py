"""A grid says where voxels lie, whatever the order of the axes in the file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from fewscan.grid import LPS_FROM_RAS, Grid
from masks.cases import GRIDS, SHEARED, grid, rotation

angles = st.tuples(*[st.floats(-180, 180)] * 3)


@given(angles, st.permutations((0, 1, 2)), st.tuples(*[st.booleans()] * 3))
@settings(max_examples=40, deadline=None)
def test_reordering_array_and_grid_leaves_every_voxel_in_its_place(turn, axes, flips):
    where = grid(rotation(*turn))
    array = np.arange(np.prod(where.shape)).reshape(where.shape)
    step = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    moved, there = array.transpose(axes)[step], where.reordered(tuple(axes), flips)
    assert moved.shape == there.shape
    for value in (0, 17, array.size - 1):
        before, after = np.argwhere(array == value)[0], np.argwhere(moved == value)[0]
        np.testing.assert_allclose(where.to_mm(before), there.to_mm(after), atol=1e-9)


@given(angles)
@settings(max_examples=40, deadline=None)
def test_an_array_in_lps_lies_on_the_grid_in_lps(turn):
    where = grid(rotation(*turn))
    there = where.reordered(*where.axes_to_lps())
    places_mm = np.moveaxis(where.to_mm(np.moveaxis(np.indices(where.shape), 0, -1)), -1, 0)  # (xyz, i, j, k)
    moved = where.in_lps(places_mm)
    np.testing.assert_allclose(np.moveaxis(moved, 0, -1), there.to_mm(np.moveaxis(np.indices(there.shape), 0, -1)))
    np.testing.assert_array_equal(where.in_lps(places_mm[0]), moved[0])


def test_the_volume_of_a_sheared_voxel():
    """A parallelepiped: base times height, less than the product of its edges."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 4
    assert Grid((2, 2, 2), affine).voxel_mm3 == pytest.approx(6)
    assert np.prod(Grid((2, 2, 2), affine).spacing_mm) == pytest.approx(10)


@given(angles)
@settings(max_examples=60, deadline=None)
def test_axes_to_lps_agrees_with_nibabel_where_it_is_plain(turn):
    where = grid(rotation(*turn))
    lps = where.reordered(*where.axes_to_lps())
    assert sorted(where.axes_to_lps()[0]) == [0, 1, 2]
    if np.abs(where.directions).max(axis=0).min() > 0.8:
        assert aff2axcodes(lps.affine) == ("L", "P", "S")


@pytest.mark.parametrize("name", GRIDS)
def test_spacing_directions_and_corners(name):
    where = GRIDS[name]
    np.testing.assert_allclose(where.spacing_mm, (0.9, 0.8, 2.5))
    assert where.is_orthogonal
    np.testing.assert_allclose(where.directions.T @ where.directions, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(where.corners_mm()[-1], (where.affine @ [8, 5, 6, 1])[:3])


def test_a_shear_is_not_orthogonal():
    assert not SHEARED.is_orthogonal


def test_differences_are_said_in_numbers():
    where = GRIDS["axial"]
    assert where.differs_from(where) is None
    other = Grid((9, 6, 8), where.affine)
    assert "9 x 6 x 7 against 9 x 6 x 8" in where.differs_from(other)
    wider = Grid(where.shape, where.affine @ np.diag([1, 1, 1.1, 1]))
    assert "2.5 mm against" in where.differs_from(wider)
    moved = where.affine.copy()
    moved[0, 3] += 0.007
    assert where.differs_from(Grid(where.shape, moved)) is None  # under 1 % of 0.8 mm
    moved[0, 3] += 0.01
    assert "0.017 mm" in where.differs_from(Grid(where.shape, moved))


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((3, 4), np.eye(4)),
        ((3, 4, 0), np.eye(4)),
        ((3, 4, 5), np.eye(3)),
        ((3, 4, 5), np.diag([1.0, 1, 0, 1])),
        ((3, 4, 5), np.diag([1.0, 1, 1, 2])),
        ((3, 4, 5), np.full((4, 4), np.nan)),
    ],
)
def test_what_is_no_grid_is_refused(shape, affine):
    with pytest.raises(ValueError):
        Grid(shape, affine)


def test_a_grid_cannot_be_changed():
    with pytest.raises(ValueError):
        GRIDS["axial"].affine[0, 0] = 3
    source = np.eye(4)
    where = Grid((1, 2, 3), source)
    source[0, 3] = 9
    assert where.affine[0, 3] == 0


def test_a_photograph_is_shown_as_it_was_taken():
    assert Grid((40, 20, 1), LPS_FROM_RAS).axes_to_lps() == ((0, 1, 2), (False, False, False))
