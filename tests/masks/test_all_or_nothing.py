"""A mask's name appears when the mask is complete and read back; before that, and after a failure, there is nothing."""

import os
import stat

import numpy as np
import pytest

from fewscan.errors import FormatError
from fewscan.masks import nifti, seg_nrrd, write_mask
from masks.cases import GRIDS, TABLE, dicom_scan, mask, nifti_scan


def left_by(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture
def scan(tmp_path):
    return nifti_scan(tmp_path, GRIDS["oblique"])


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt(), ValueError("x"), MemoryError()])
@pytest.mark.parametrize("step", ["write", "check"])
def test_nothing_stays_after_a_failure(tmp_path, scan, monkeypatch, step, failure):
    real = getattr(nifti, step)

    def interrupted(*arguments):
        real(*arguments)
        raise failure

    monkeypatch.setattr(nifti, step, interrupted)
    raised = FormatError if isinstance(failure, ValueError | MemoryError) else type(failure)
    with pytest.raises(raised):
        write_mask(mask(), scan, TABLE, tmp_path / "out" / "m_seg", "nifti")
    assert left_by(tmp_path / "out") == []


def test_an_earlier_mask_survives_a_failure(tmp_path, scan, monkeypatch):
    path, colours = write_mask(mask(), scan, TABLE, tmp_path / "out" / "m_seg", "nifti")
    before = path.read_bytes(), colours.read_bytes()

    def broken(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(nifti, "write", broken)
    with pytest.raises(OSError, match="disk full"):
        write_mask(np.zeros_like(mask()), scan, TABLE, tmp_path / "out" / "m_seg", "nifti")
    assert (path.read_bytes(), colours.read_bytes()) == before
    assert left_by(tmp_path / "out") == ["m_seg.ctbl", "m_seg.nii.gz"]


def test_what_reads_back_differently_is_refused(tmp_path, scan, monkeypatch):
    for module, format in ((nifti, "nifti"), (seg_nrrd, "seg-nrrd")):
        real = module.write
        monkeypatch.setattr(
            module, "write", lambda path, values, *rest, real=real: real(path, np.flip(values, 0).copy(), *rest)
        )
        with pytest.raises(FormatError, match="reads other values"):
            write_mask(mask(), scan, TABLE, tmp_path / "out" / "m_seg", format)
    assert left_by(tmp_path / "out") == []


def test_another_grid_is_refused(tmp_path, scan, monkeypatch):
    other = nifti_scan(tmp_path, GRIDS["axial"])
    series = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    for module, format in ((nifti, "nifti"), (seg_nrrd, "seg-nrrd")):
        real = module.write
        monkeypatch.setattr(
            module, "write", lambda path, values, scan, *rest, real=real: real(path, values, other, *rest)
        )
        with pytest.raises(FormatError, match=r"corners|orientation|spacing"):
            write_mask(mask(), series, TABLE, tmp_path / "out" / "m_seg", format)
    assert left_by(tmp_path / "out") == []


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path, scan):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        write_mask(mask(), scan, TABLE, tmp_path / "file" / "m_seg", "nifti")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root and Windows write anywhere")
def test_a_folder_without_permission_is_an_oserror(tmp_path, scan):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OSError):
        write_mask(mask(), scan, TABLE, closed / "m_seg", "nifti")
    assert left_by(closed) == []
