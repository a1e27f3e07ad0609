"""The review picture shows the right slice, the right way up, in the label's colour."""

import numpy as np
import pytest
from PIL import Image

from fewscan.errors import FormatError
from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.labels import LabelTable
from fewscan.masks import write_overlay
from masks.cases import GRIDS

TABLE = LabelTable.from_json([{"name": "one", "colour": [255, 0, 0]}, {"name": "two", "colour": [0, 0, 255]}])


def drawn(tmp_path, image, values, grid, title=""):
    write_overlay(image, values, grid, TABLE, tmp_path / "o.png", title)
    return np.asarray(Image.open(tmp_path / "o.png").convert("RGB")).astype(int)


def centre(picture, colour, columns=slice(None)):
    """Mean (row, column) of the pixels of exactly that colour."""
    hit = np.argwhere((picture[:, columns] == colour).all(-1))
    assert len(hit), f"nothing in {colour}"
    return hit.mean(0)


def blob(grid, lps):
    """A small box of label 1 whose centre lies nearest that place (fractions of the volume along L, P, S)."""
    axes, flips = grid.axes_to_lps()
    index = [0, 0, 0]
    for fraction, axis, flip in zip(lps, axes, flips, strict=True):
        index[axis] = round((1 - fraction if flip else fraction) * (grid.shape[axis] - 1))
    values = np.zeros(grid.shape, dtype=np.uint8)
    values[tuple(slice(max(i - 1, 0), i + 2) for i in index)] = 1
    return values


@pytest.mark.parametrize("name", GRIDS)
def test_left_is_right_and_front_and_head_are_up(tmp_path, name):
    grid = Grid((31, 29, 27), GRIDS[name].affine)
    values = blob(grid, (0.8, 0.15, 0.9))  # to the patient's left, front and head
    picture = drawn(tmp_path, np.zeros((1, *grid.shape)), values, grid)
    dark = (picture != 20).any(-1)
    top = np.flatnonzero(dark.mean(1) > 0.6)[0]
    runs = np.flatnonzero(np.diff(np.concatenate([[0], (picture[top + 3] == 0).all(-1).astype(int), [0]])))
    panels = [(a, b) for a, b in runs.reshape(-1, 2) if b - a > 20]
    assert len(panels) == 3
    rows = []
    for a, b in panels:
        height = np.flatnonzero((picture[:, (a + b) // 2] == 20).all(-1) & (np.arange(len(picture)) > top + 3))[0] - top
        row, column = centre(picture, (255, 0, 0), slice(a, b))
        rows.append(((row - top) / height, column / (b - a), height / (b - a)))
    extent = np.array(grid.shape) * grid.spacing_mm
    left, posterior, superior = extent[list(grid.axes_to_lps()[0])]
    expected = (
        (0.15, 0.8, posterior / left),  # axial: front up, left on the right
        (0.1, 0.8, superior / left),  # coronal: head up, left on the right
        (0.1, 0.15, superior / posterior),  # sagittal: head up, front on the left
    )
    np.testing.assert_allclose(rows, expected, atol=0.06)


def test_the_slice_with_most_label_is_shown(tmp_path):
    grid = Grid((31, 29, 27), LPS_FROM_RAS)
    values = np.zeros(grid.shape, dtype=np.uint8)
    values[4:9, 4:9, 3], values[15, 15, 20] = 2, 1
    picture = drawn(tmp_path, np.zeros((1, *grid.shape)), values, grid)
    assert (picture == (0, 0, 255)).all(-1).sum() > 500


def test_a_photograph_keeps_its_colours_and_its_side(tmp_path):
    grid = Grid((40, 20, 1), LPS_FROM_RAS)
    photo = np.zeros((3, 40, 20, 1), dtype=np.uint8)
    photo[1, :20, :10] = 200  # green in the upper left
    values = np.zeros(grid.shape, dtype=np.uint8)
    values[30:36, 14:18] = 1
    picture = drawn(tmp_path, photo, values, grid, title="a photograph")
    assert picture[120, 100].tolist() == [0, 200, 0]
    row, column = centre(picture, (255, 0, 0), slice(0, 648))
    np.testing.assert_allclose((column, row), (33 / 40 * 640 + 8, 16 / 20 * 320 + 28), atol=6)


def test_window_ignores_outliers_and_constant_images_do_not_fail(tmp_path):
    grid = Grid((31, 29, 27), LPS_FROM_RAS)
    image = np.random.default_rng(0).uniform(100, 200, (1, *grid.shape))
    image[0, 0, 0, 0] = 1e9
    picture = drawn(tmp_path, image, np.zeros(grid.shape, dtype=np.uint8), grid)
    assert picture[60:250, 20:250].std() > 30
    drawn(tmp_path, np.full((1, *grid.shape), 7.0), np.ones(grid.shape, dtype=np.uint8), grid)


def test_shapes_that_differ_are_refused(tmp_path):
    grid = Grid((5, 4, 3), LPS_FROM_RAS)
    with pytest.raises(FormatError, match="differ"):
        drawn(tmp_path, np.zeros((1, 5, 4, 3)), np.zeros((5, 4, 2), dtype=np.uint8), grid)
