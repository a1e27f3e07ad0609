"""One scan alone: what is tested and what is trained on never touch, and a block is in no file of its training."""

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ball
from fewscan.errors import PairingError
from fewscan.runs.blocks import Block, choose_blocks, cut_blocks, profile, share_seen, write_training_scan
from fewscan.scans import open_scan
from runs.tiny import save_nifti
from scans.volumes import AFFINES


@given(st.lists(st.integers(0, 50), min_size=1, max_size=80), st.none() | st.integers(2, 6))
def test_blocks_partition_the_labelled_slices_and_keep_a_gap(labelled, wanted):
    try:
        blocks = cut_blocks(labelled, wanted, axis=1)
    except PairingError:
        return
    n = len(labelled)
    tested = [voxel for block in blocks for voxel in range(block.first, block.stop)]
    filled = np.flatnonzero(labelled)
    gap = max(1, int(filled[-1] - filled[0] + 1) // 10)
    assert tested == list(range(max(0, filled[0] - gap), min(n, filled[-1] + 1 + gap)))
    assert len(blocks) == (wanted or len(blocks)) >= 2
    for block in blocks:
        test, hidden = (set(range(n)[part[1]]) for part in (block.tested, block.hidden))
        training = set(range(n)) - hidden
        assert test <= hidden and test == set(range(block.first, block.stop))
        assert all(part[axis] == slice(None) for part in (block.tested, block.hidden) for axis in (0, 2))
        assert all(abs(one - other) > gap for one in test for other in training)
        assert any(labelled[voxel] for voxel in training)


def test_blocks_share_the_label():
    """100 slices of which 40 to 79 hold 5 voxels each: blocks of 8 labelled slices."""
    labelled = [5 if 40 <= z < 80 else 0 for z in range(100)]
    blocks = cut_blocks(labelled)
    assert [(block.first, block.stop) for block in blocks] == [(36, 48), (48, 56), (56, 64), (64, 72), (72, 84)]
    assert blocks[1].hidden == (slice(44, 60), slice(None), slice(None)) and blocks[4].hidden[0] == slice(68, 88)


@pytest.mark.parametrize("size", [6, 7, 9, 12, 20, 40, 59])
@pytest.mark.parametrize("n", [64, 256])
def test_a_small_organ_in_a_large_volume_is_parted(n, size):
    """Wherever it lies: the gap is a tenth of the organ, not of the volume; every block has labels to train on."""
    for first in (0, (n - size) // 2, n - size):
        labelled = [0] * first + [50] * size + [0] * (n - size - first)
        for block in cut_blocks(labelled):
            assert sum(labelled[block.first : block.stop]) > 0
            assert sum(labelled) > sum(labelled[block.hidden[0]])


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
    assert {block.axis for block in choose_blocks(classes, None)} == {0}
    assert {block.axis for block in choose_blocks(classes, 2)} == {2}
    classes[..., 5:14] = 0
    assert {block.axis for block in choose_blocks(classes, 2)} == {0}  # three labelled slices are too few
    np.testing.assert_array_equal(profile(classes, 2)[:6], [0, 0, 250, 250, 250, 0])
    with pytest.raises(PairingError, match="labels in 2 slices: too few for two blocks"):
        choose_blocks(np.ones((2, 2, 1), np.uint16), None)


def test_organs_that_follow_each_other_are_cut_along_another_axis():
    """The second of five blocks and its gap hold 8 + 2 x 4 slices: of 40 that is less than half, of 20 too much."""
    classes = np.zeros((20, 44, 15), np.uint16)
    classes[2:18, 2:42, 2:13] = 1
    assert {block.axis for block in choose_blocks(classes, None)} == {1}
    classes[:, 22:][classes[:, 22:] > 0] = 2
    assert share_seen(classes, cut_blocks(profile(classes, 1).tolist(), axis=1)[1])[1] == pytest.approx(4 / 20)
    assert {block.axis for block in choose_blocks(classes, None)} == {0}


def test_how_much_a_training_sees_of_a_label():
    """Label 2 lies in the block and its gap alone; of label 3 one of seven voxels of a row, farther away."""
    classes = np.zeros((30, 4, 4), np.int32)
    classes[3:27, :2] = 1
    classes[8:16, 2], classes[10:17, 3], classes[0] = 2, 3, -1
    seen = share_seen(classes, Block(axis=0, first=10, stop=14, gap=2, n=30))
    assert seen == {1: pytest.approx(16 / 24), 2: 0, 3: pytest.approx(1 / 7)}


def test_hidden_slices_are_a_mirror_of_those_beyond():
    """In closed form: from both sides, from one alone, and back and forth where the other side is the shorter."""
    assert Block(axis=0, first=4, stop=7, gap=1, n=11).seen.tolist() == [0, 1, 2, 2, 1, 0, 9, 8, 8, 9, 10]
    assert Block(axis=0, first=0, stop=3, gap=1, n=10).seen.tolist() == [7, 6, 5, 4, 4, 5, 6, 7, 8, 9]
    assert Block(axis=0, first=7, stop=10, gap=1, n=10).seen.tolist() == [0, 1, 2, 3, 4, 5, 5, 4, 3, 2]
    assert Block(axis=0, first=0, stop=6, gap=1, n=10).seen.tolist() == [7, 7, 8, 9, 9, 8, 7, 7, 8, 9]


@pytest.mark.parametrize("channels", [[{"name": "image"}], [{"name": "a", "index": 0}, {"name": "b", "index": 1}]])
def test_a_training_scan_has_the_scans_grid_and_none_of_its_hidden_voxels(tmp_path, channels):
    """Each voxel of the image has its own value, so that it is known wherever it comes up again."""
    shape = (15, 24, 11)
    image = np.arange(np.prod(shape) * len(channels), dtype=np.int32).reshape(*shape, len(channels))
    scan = open_scan([save_nifti(tmp_path / "scan.nii.gz", image.squeeze(), AFFINES["oblique"])], channels)
    label = ball(shape, (7, 12, 5), 6)
    block = cut_blocks(profile(label, 1).tolist(), 3, axis=1)[1]
    case = write_training_scan(tmp_path / "parts", block, scan, label, channels)
    written, whole = open_scan(case.image, channels), scan.read()
    assert written.grid.differs_from(scan.grid) is None
    low, high = block.first - block.gap, block.stop + block.gap
    kept = np.r_[:low, high:24]
    np.testing.assert_array_equal(written.read()[:, :, kept], whole[:, :, kept])
    assert not np.isin(whole[:, :, low:high], written.read()).any()
    values = nibabel.load(case.label[0]).get_fdata()
    np.testing.assert_array_equal(values[:, kept], label[:, kept])
    of_value = dict(zip(whole[0].ravel().tolist(), label.ravel().tolist(), strict=True))  # image and label go together
    np.testing.assert_array_equal(values.ravel(), [of_value[value] for value in written.read()[0].ravel().tolist()])
