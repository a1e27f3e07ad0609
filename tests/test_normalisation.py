"""Percentiles, mean and deviation of a volume that is read in slabs, against NumPy on the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fewscan import arrays
from fewscan.arrays import Arrays
from fewscan.grid import Grid
from fewscan.intensity import Normalisation, percentiles
from fewscan.network_grid import to_network_grid
from fewscan.prepared import PreparedVolume
from test_network_grid import GRIDS


@settings(deadline=None)
@given(
    arrays_of.arrays(
        np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_nan=False)
    ),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_percentiles_are_numpys(values, quantiles):
    expected = np.quantile(values.astype(np.float64), quantiles)
    scale = np.abs(values).max()
    np.testing.assert_allclose(percentiles(values, quantiles), expected, rtol=1e-12, atol=1e-12 * float(scale))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("slab", [50, 2**22])
def test_what_is_read_in_slabs_is_standardised_as_the_whole(monkeypatch, tmp_path, dtype, slab):
    monkeypatch.setattr(arrays, "SLAB", slab)
    values = np.random.default_rng(0).gamma(2, 20, (9, 8, 7)).clip(0, 250).astype(dtype)
    in_file = Arrays(tmp_path, 10)(values.shape, dtype, "F")
    in_file[...] = values
    for array in (values, in_file):
        rule = Normalisation.of_channel(array)
        exact = values.astype(np.float32).astype(np.float64)
        low, high = np.percentile(exact, (0.5, 99.5))
        clipped = exact.clip(low, high)
        found = (rule.low, rule.high, rule.centre, rule.spread)
        np.testing.assert_allclose(found, (low, high, clipped.mean(), clipped.std()), rtol=1e-6)
        np.testing.assert_allclose(
            rule(torch.from_numpy(exact).float()), (clipped - clipped.mean()) / clipped.std(), atol=1e-5
        )


@pytest.mark.parametrize("scan", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("spacing", [None, (0.5, 0.6, 1.1), (1.3, 1.9, 4.0), (1.3, 0.8, 1.2)])
@pytest.mark.parametrize("slice_axis", [None, 0, 1, 2])
def test_parts_of_a_prepared_volume_are_bit_for_bit_those_of_the_whole(tmp_path, scan: Grid, spacing, slice_axis):
    random = np.random.default_rng(0)
    array = Arrays(tmp_path, 10)((2, *scan.shape[::-1]), np.int16).transpose(0, 3, 2, 1)
    array[...] = random.integers(-1000, 1000, array.shape)
    rules = [Normalisation.of_channel(array[0]), Normalisation.of_window(-500, 700)]
    normalised = torch.stack([r(torch.from_numpy(np.float32(c))) for r, c in zip(rules, array, strict=True)])
    whole, grid = to_network_grid(normalised, scan, spacing, slice_axis)
    volume = PreparedVolume(array, scan, rules, spacing, slice_axis)
    assert volume.shape == whole.shape and np.array_equal(volume.affine, grid.affine)
    assert torch.equal(volume.whole(), whole)
    for _ in range(10):
        ends = [np.sort(random.choice(n + 1, 2, replace=False)).tolist() for n in whole.shape[1:]]
        box = (slice(None), *(slice(*pair) for pair in ends))
        assert torch.equal(volume[box], whole[box])
    assert torch.equal(volume[(slice(1, 2), *box[1:])], whole[(slice(1, 2), *box[1:])])


class Counted:
    """An array that remembers the largest part that was read."""

    def __init__(self, array):
        self.array, self.shape, self.strides, self.most = array, array.shape, array.strides, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, box):
        part = self.array[box]
        self.most = max(self.most, part.size)
        return part


def test_of_a_finer_scan_little_is_read_at_once(monkeypatch):
    """Also where the whole is asked for: 60 x 60 x 60 voxels for 6 x 6 x 6 places."""
    scan = Grid((60, 60, 60), np.diag([-1.0, -1.0, 1.0, 1.0]))
    array = Counted(np.random.default_rng(0).random((1, 60, 60, 60), np.float32))
    whole = to_network_grid(torch.from_numpy(array.array), scan, (10.0,) * 3)[0]
    volume = PreparedVolume(array, scan, [Normalisation(0.0, 1.0, 0.0, 1.0)], (10.0,) * 3, None)
    monkeypatch.setattr("fewscan.prepared.SLAB", 60 * 60 * 10)
    assert torch.equal(volume.whole(), whole)
    assert array.most <= 60 * 60 * 20  # a place looks ten voxels to either side
