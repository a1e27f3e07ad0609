"""One scan alone: what is tested and what is trained on never touch, and the files hold the scan's own voxels."""

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ball
from fewscan.errors import PairingError
from fewscan.runs.blocks import choose_axis, cut_blocks, profile, write_parts
from fewscan.scans import open_scan
from runs.tiny import noise, save_nifti
from scans.volumes import AFFINES


@given(st.lists(st.integers(0, 50), min_size=1, max_size=80), st.none() | st.integers(2, 6))
def test_blocks_partition_the_axis_and_keep_a_gap(labelled, wanted):
    try:
        blocks = cut_blocks(labelled, wanted)
    except PairingError:
        return
    n = len(labelled)
    tested = [voxel for block in blocks for voxel in range(block.first, block.stop)]
    assert tested == list(range(n)) and len(blocks) == (wanted or len(blocks)) >= 2
    for block in blocks:
        test, read = set(range(block.first, block.stop)), set(range(*block.read))
        training = {voxel for first, stop in block.training for voxel in range(first, stop)}
        assert test <= read and not read & training and read | training == set(range(n))
        filled = np.flatnonzero(labelled)
        gap = max(1, int(filled[-1] - filled[0] + 1) // 10)
        assert all(abs(one - other) > gap for one in test for other in training)
        assert any(labelled[voxel] for voxel in training)


def test_blocks_share_the_label():
    """100 slices of which 40 to 79 hold 5 voxels each: blocks of 8 labelled slices."""
    labelled = [5 if 40 <= z < 80 else 0 for z in range(100)]
    blocks = cut_blocks(labelled)
    assert [(block.first, block.stop) for block in blocks] == [(0, 48), (48, 56), (56, 64), (64, 72), (72, 100)]
    assert blocks[1].read == (44, 60) and blocks[1].training == ((0, 44), (60, 100))


@pytest.mark.parametrize("size", [6, 7, 9, 12, 20, 40, 59])
@pytest.mark.parametrize("n", [64, 256])
def test_a_small_organ_in_a_large_volume_is_parted(n, size):
    """Wherever it lies: the gap is a tenth of the organ, not of the volume; every block has labels to train on."""
    for first in (0, (n - size) // 2, n - size):
        labelled = [0] * first + [50] * size + [0] * (n - size - first)
        for block in cut_blocks(labelled):
            assert sum(labelled[block.first : block.stop]) > 0
            assert sum(sum(labelled[a:b]) for a, b in block.training) > 0


def test_fewer_blocks_where_five_leave_nothing_to_train_on():
    """Nearly all voxels in three slices: the usual blocks would be empty."""
    labelled = [1, 1, 1, 1, 1, 90, 90, 90, 1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(PairingError, match="too close together"):
        cut_blocks(labelled, 5)
    assert 2 <= len(cut_blocks(labelled)) < 5


@pytest.mark.parametrize(
    ("labelled", "wanted"), [([0, 4, 4, 4, 4, 4, 0], None), ([1] * 20, 7), ([1, 1, 1, 1, 1, 99], 2)]
)
def test_what_cannot_be_parted_is_refused(labelled, wanted):
    with pytest.raises(PairingError, match="annotate another"):
        cut_blocks(labelled, wanted)


def test_the_axis_with_most_labelled_slices():
    classes = np.zeros((30, 40, 20), np.uint16)
    classes[3:28, 10:20, 2:14] = 1
    assert choose_axis(classes, None) == 0 and choose_axis(classes, 2) == 2
    classes[..., 5:14] = 0
    assert choose_axis(classes, 2) == 0  # three labelled slices are too few
    np.testing.assert_array_equal(profile(classes, 2)[:6], [0, 0, 250, 250, 250, 0])


@pytest.mark.parametrize("channels", [[{"name": "image"}], [{"name": "a", "index": 0}, {"name": "b", "index": 1}]])
def test_the_parts_are_the_scans_own_voxels_where_they_lie(tmp_path, channels):
    shape = (15, 24, 11)
    image = np.stack([noise(number, shape) for number in range(len(channels))], axis=-1)
    scan = open_scan([save_nifti(tmp_path / "scan.nii.gz", image.squeeze(), AFFINES["oblique"])], channels)
    label = ball(shape, (7, 12, 5), 6)
    block = cut_blocks(profile(label, 1).tolist(), 3)[1]
    training, test, counted = write_parts(tmp_path / "parts", block, 1, scan, label, channels)
    assert len(training) == 2
    whole = scan.read()
    for case, (first, stop) in zip((test, *training), (block.read, *block.training), strict=True):
        part = open_scan(case.image, channels)
        np.testing.assert_array_equal(part.read(), whole[:, :, first:stop])
        np.testing.assert_allclose(part.grid.to_mm([0, 0, 0]), scan.grid.to_mm([0, first, 0]), atol=1e-4)
        np.testing.assert_array_equal(nibabel.load(case.label[0]).get_fdata(), label[:, first:stop])
    inside = open_scan(test.image, channels).read()[(slice(None), *counted)]
    np.testing.assert_array_equal(inside, whole[:, :, block.first : block.stop])
