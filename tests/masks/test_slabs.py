"""Masks are checked, written and read back slab by slab: in any memory layout, with little memory beside them."""

import gzip
import tracemalloc

import nibabel
import numpy as np
import pytest

from fewscan import arrays
from fewscan.errors import FormatError, LabelError
from fewscan.grid import Grid
from fewscan.masks import nifti, write_mask
from masks.cases import GRIDS, LARGE, TABLE, mask, nifti_scan, nrrd_scan


@pytest.fixture
def small_slabs(monkeypatch):
    monkeypatch.setattr(arrays, "SLAB", 100)  # one plane of the test masks


def mapped(values, folder):
    """A memory map in Fortran order."""
    there = np.memmap(folder / "labels.raw", values.dtype, "w+", shape=values.shape, order="F")
    there[:] = values
    return there


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize("table", [TABLE, LARGE])
@pytest.mark.parametrize("format", ["nifti", "seg-nrrd"])
def test_the_layout_in_memory_changes_no_byte(tmp_path, format, table):
    scan, values = nifti_scan(tmp_path, GRIDS["oblique"]), mask(table)
    layouts = {
        "C": values,
        "Fortran": np.asfortranarray(values),
        "map": mapped(values, tmp_path),
        "turned": np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1),
        "reversed": np.ascontiguousarray(values[::-1, :, ::-1])[::-1, :, ::-1],
        "int64": values.astype(np.int64),
        "float": values.astype(np.float32),
        "big endian": values.astype(values.dtype.newbyteorder(">")),
    }
    written = {name: write_mask(array, scan, table, tmp_path / "m", format)[0].read_bytes()
               for name, array in layouts.items()}  # fmt: skip
    assert set(written.values()) == {written["C"]}


@pytest.mark.usefixtures("small_slabs")
def test_a_nifti_mask_inflates_to_what_nibabel_writes(tmp_path):
    scan, values = nifti_scan(tmp_path, GRIDS["oblique"]), mask()
    path, _ = write_mask(values, scan, TABLE, tmp_path / "m", "nifti")
    header = nibabel.load(scan.files[0]).header
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    assert gzip.decompress(path.read_bytes()) == nibabel.Nifti1Image(values, None, header).to_bytes()


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_stranger_in_the_last_slab_is_found(tmp_path, dtype):
    scan = nifti_scan(tmp_path, GRIDS["axial"])
    for wrong in (2, 4, 9):  # between the table's 1, 3 and 5, and beyond
        values = mask().astype(dtype)
        values[3, 3, -1] = wrong
        with pytest.raises(LabelError, match=f"label value.s. {wrong}, which"):
            write_mask(values, scan, TABLE, tmp_path / "m", "nifti")


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize("place", [(0, 0, 0), (8, 5, 6), (4, 3, 2)])
def test_one_wrong_voxel_anywhere_is_found_without_itk(tmp_path, monkeypatch, place):
    monkeypatch.setattr(nifti, "_ITK_VOXELS", 0)
    real = nifti.write

    def wrong(path, values, *rest):
        values = values.copy()
        values[place] = 5 if values[place] == 1 else 1
        real(path, values, *rest)

    scan = nifti_scan(tmp_path, GRIDS["axial"])
    write_mask(mask(), scan, TABLE, tmp_path / "m", "nifti")
    monkeypatch.setattr(nifti, "write", wrong)
    with pytest.raises(FormatError, match="reads other values"):
        write_mask(mask(), scan, TABLE, tmp_path / "m", "nifti")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-8] + bytes(4) + data[-4:],
                                    lambda data: data[: len(data) // 2], lambda data: data + data])  # fmt: skip
def test_a_damaged_file_is_found(tmp_path, monkeypatch, damage):
    real = nifti.write

    def damaged(path, *rest):
        real(path, *rest)
        path.write_bytes(damage(path.read_bytes()))

    scan = nifti_scan(tmp_path, GRIDS["axial"])
    monkeypatch.setattr(nifti, "write", damaged)
    with pytest.raises(FormatError, match=r"m\.nii\.gz: (nibabel reads other values|the nifti writer failed)"):
        write_mask(mask(), scan, TABLE, tmp_path / "m", "nifti")
    assert not (tmp_path / "m.nii.gz").exists()


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("format", ["nifti", "seg-nrrd"])
def test_memory_beside_the_mask_does_not_grow_with_its_depth(tmp_path, monkeypatch, format, order):
    """What ITK holds is not counted; of a NIfTI it holds the values up to 64 million voxels."""
    monkeypatch.setattr(arrays, "SLAB", 1 << 14)
    beside = []
    for depth in (40, 40, 160):  # the first time loads libraries
        where = Grid((64, 64, depth), GRIDS["axial"].affine)
        scan, values = nrrd_scan(tmp_path, where), np.zeros(where.shape, np.uint8, order=order)
        values[5:50, 9:40, 2:-3] = np.random.default_rng(0).choice([0, 1, 5], (45, 31, depth - 5))
        tracemalloc.start()
        write_mask(values, scan, TABLE, tmp_path / "m", format)
        beside.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert beside[2] < beside[1] + 50_000 < 1_500_000
