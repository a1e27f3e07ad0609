"""Slices that nobody annotated are told from objects that end: on real cases, complete and thinned out."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import ball, shared
from fewscan.training.sparse import unlabelled_slices


def kept(classes, axis, slices):
    """Only these slices annotated."""
    thinned, part = np.zeros_like(classes), (slice(None),) * axis + (slices,)
    thinned[part] = classes[part]
    return thinned


def read(path: Path) -> np.ndarray:
    return np.rint(np.asarray(nibabel.load(path).dataobj)).astype(np.int16)


@pytest.fixture(scope="module")
def hippocampi():
    return [read(path) for path in sorted(shared("data/msd_hippocampus/labels").glob("*.nii.gz"))]


def test_no_complete_hippocampus_is_taken_for_sparse(hippocampi):
    assert [unlabelled_slices(classes) for classes in hippocampi] == [None] * 100


@pytest.mark.parametrize("name", ["spinalcord", "totalseg_ref"])
def test_no_complete_scan_is_taken_for_sparse(name):
    files = [path for path in shared(f"data/{name}").rglob("*.nii.gz") if "seg" in path.name]
    assert len(files) == 2
    for path in files:
        assert unlabelled_slices(read(path), nibabel.load(path).header.get_zooms()) is None, path


def test_no_complete_stack_is_taken_for_sparse():
    """Brain structures, cells, and small mitochondria and synapses that leave slices empty across two of the axes."""
    assert unlabelled_slices(np.load(shared("data/oasis_voxelmorph/test_scan.npz"))["seg"][::2, ::2, ::2]) is None
    assert unlabelled_slices(tifffile.imread(shared("data/stardist_samples/mask3d.tif")).astype(np.int32)) is None
    for kind in ("labels", "membranes", "mitochondria", "synapses"):
        pages = sorted(shared(f"data/vnc_sstem/stack1/{kind}").glob("*.png"))
        stack = np.stack([np.asarray(Image.open(page).convert("L")) for page in pages], -1).astype(np.int16)
        assert stack.any() and unlabelled_slices(stack, (4, 4, 45)) is None


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("how", ["every fifth", "random"])
def test_a_fifth_of_the_slices_of_a_hippocampus(hippocampi, axis, how):
    """Found in nearly all cases, never along another axis; the unlabelled slices are those without any label."""
    random, missed = np.random.default_rng(axis), 0
    for classes in hippocampi:
        n = classes.shape[axis]
        slices = np.arange(random.integers(5), n, 5) if how == "every fifth" else random.permutation(n)[: n // 5]
        thinned = kept(classes, axis, slices)
        found = unlabelled_slices(thinned)
        missed += found is None
        if found is not None:
            others = tuple(other for other in range(3) if other != axis)
            assert found.axis == axis and found.why
            np.testing.assert_array_equal(found.unlabelled, ~thinned.any(axis=others))
    assert missed <= {"every fifth": 0, "random": 15}[how]


def test_one_annotated_slice_of_an_organ_and_one_of_a_lesion():
    """The organ is 30 voxels wide in a slice of 1: too flat for an object. A lesion 3 wide may be one."""
    organ, lesion = ball((40, 40, 40), (20, 20, 20), 15), ball((40, 40, 40), (20, 20, 20), 1.9)
    for axis in range(3):
        assert unlabelled_slices(kept(organ, axis, [20])).axis == axis
        assert unlabelled_slices(kept(lesion, axis, [20])) is None
    assert unlabelled_slices(kept(organ, 2, [20]), (1, 1, 8)) is None  # slices of 8 mm: a lens of 30 x 30 x 8 mm


def test_thin_structures_are_complete():
    """A gently curved layer of six voxels from border to border, and a disc 80 wide and 5 thick."""
    x, z = np.arange(96)[:, None, None], np.arange(64)
    layer = np.broadcast_to(np.abs(z - 30 - 1.5 * np.sin(x / 20)) < 3, (96, 64, 64)).astype(np.int16)
    i, j, k = np.indices((100, 100, 60))
    disc = (((i - 50) ** 2 + (j - 50) ** 2 < 40**2) & (np.abs(k - 30) < 3)).astype(np.int16)
    for axis in range(3):
        assert unlabelled_slices(np.moveaxis(layer, 2, axis)) is None
        assert unlabelled_slices(np.moveaxis(disc, 2, axis)) is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_neighbouring_slices_of_a_large_organ(count):
    organ = ball((64, 64, 64), (32, 32, 32), 26)
    for axis in range(3):
        assert unlabelled_slices(kept(organ, axis, np.arange(28, 28 + count))).axis == axis


def test_scattered_small_lesions_are_objects():
    classes = np.zeros((60, 60, 60), np.int16)
    lesions = [((10, 40, 7), 2), ((30, 12, 25), 3), ((50, 33, 50), 4), ((20, 20, 38), 1)]
    for number, (place, radius) in enumerate(lesions):
        classes[ball(classes.shape, place, radius) > 0] = number % 2 + 1
    assert unlabelled_slices(classes) is None


def test_an_organ_that_ends_inside_or_at_the_crop_is_complete():
    inside = ball((30, 30, 30), (15, 15, 15), 10)
    assert unlabelled_slices(inside) is None
    for first in range(6, 20):
        assert unlabelled_slices(inside[:, :, first:]) is None
        assert unlabelled_slices(inside[first:]) is None


@pytest.mark.parametrize("radius", np.arange(2.0, 12.0, 0.25))
def test_balls_and_boxes_of_all_sizes_are_complete(radius):
    shape = (27, 27, 27)
    for centre in ((13, 13, 13), (13.5, 13.5, 13.5), (13.3, 12.8, 13.1)):
        assert unlabelled_slices(ball(shape, centre, radius)) is None
    box = np.zeros(shape, np.int16)
    box[3 : 3 + int(radius), 5 : 6 + int(radius), 4 : 6 + int(radius)] = 1
    assert unlabelled_slices(box) is None


def test_a_block_of_slices_cut_out_of_an_organ():
    organ = ball((50, 50, 50), (25, 25, 25), 20)
    found = unlabelled_slices(kept(organ, 1, np.arange(20, 30)))
    assert found.axis == 1 and list(np.flatnonzero(~found.unlabelled)) == list(range(20, 30))


def test_bones_with_discs_between_them_are_complete():
    """Flat ends and the same place on both sides of a gap, but the gaps are thin against what lies between."""
    column = np.zeros((30, 30, 60), np.int16)
    for first in (4, 24, 44):
        column[8:22, 8:22, first : first + 15] = 1
    assert unlabelled_slices(column) is None


@pytest.mark.parametrize("shape", [(40, 50, 1), (5, 5, 5)])
def test_pictures_and_empty_labels_give_nothing(shape):
    classes = np.zeros(shape, np.int16)
    assert unlabelled_slices(classes) is None
    classes[::5] = shape[2] == 1
    assert unlabelled_slices(classes) is None


def test_where_the_file_marks_what_is_unlabelled_nothing_is_looked_for():
    organ = kept(ball((40, 40, 40), (20, 20, 20), 15).astype(np.int16), 0, [10, 20, 30])
    organ[0, 0, 0] = -1
    assert unlabelled_slices(organ) is None
