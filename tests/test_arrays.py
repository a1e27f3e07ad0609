"""Arrays in memory and in raw temporary files hold the same, and slabs partition them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan import arrays
from fewscan.arrays import Arrays, release, slabs
from fewscan.errors import FewscanError


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_an_array_in_a_file_holds_what_one_in_memory_holds(tmp_path, dtype, order):
    values = np.random.default_rng(0).integers(0, 100, (7, 5, 3)).astype(dtype)
    in_memory, in_file = Arrays()(values.shape, dtype, order), Arrays(tmp_path, 10)(values.shape, dtype, order)
    assert type(in_memory) is np.ndarray and isinstance(in_file, np.memmap)
    for array in (in_memory, in_file):
        assert array.flags["F_CONTIGUOUS" if order == "F" else "C_CONTIGUOUS"]
        array[...] = values
        release(array)
        np.testing.assert_array_equal(array, values)
    turned = in_file.transpose(2, 0, 1)[:, ::-1]
    release(turned)
    np.testing.assert_array_equal(turned, values.transpose(2, 0, 1)[:, ::-1])


def test_small_arrays_are_in_memory_and_files_leave_nothing(tmp_path):
    make = Arrays(tmp_path, 100)
    assert type(make((10, 10), np.uint8)) is np.ndarray
    large = make((101,), np.uint8)
    assert isinstance(large, np.memmap)
    del large
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_an_error_with_the_numbers(tmp_path):
    with pytest.raises(FewscanError, match=r"of 1000000000\.0 GB is needed, .* are free"):
        Arrays(tmp_path, 10)((10**9, 10**9), np.uint8)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 40), st.permutations(range(4)))
def test_slabs_partition_an_array_across_its_slowest_axis(shape, size, order):
    order = [axis for axis in order if axis < len(shape)]
    array = np.zeros([shape[axis] for axis in order]).transpose(np.argsort(order))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SLAB", size)
        for box, part in slabs(array):
            part += 1
            whole_planes = [n for n, along in zip(array.shape, box, strict=True) if along == slice(None)]
            assert part.size <= max(size, int(np.prod(whole_planes)))
            assert np.shares_memory(part.ravel(order="K"), array)  # in one piece of memory
    assert (array == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_values_are_counted_as_numpy_counts_them(monkeypatch, dtype):
    monkeypatch.setattr(arrays, "COUNTED", 100)
    values = np.random.default_rng(0).integers(0, 40, (13, 11, 9)).astype(dtype)
    values[0, 0, 0] = 77
    np.testing.assert_array_equal(arrays.count_values(values[::-1]), np.bincount(values.ravel()))
    np.testing.assert_array_equal(arrays.count_values(values, 300), np.bincount(values.ravel(), minlength=300))


def test_more_than_the_memory_is_refused_before_it_is_promised():
    with pytest.raises(MemoryError, match=r"1000.0 GB are needed at once, [\d.]+ GB are free"):
        Arrays()((1000, 1000, 1000, 1000), np.uint8)
    with pytest.raises(MemoryError):
        Arrays()((1 << 40, 1 << 40), np.uint8)  # beyond 64 bits
