"""Copies are found, different scans are not taken for copies, and slices of one stack are told."""

import numpy as np
import pytest

from conftest import shared
from fewscan.scans import open_scan
from fewscan.training.alike import Thumbnail, near_identical, stack_correlation


def thumbnails(files):
    return [Thumbnail.of(open_scan([file]).read()) for file in files]


def test_a_thumbnail_is_the_mean_of_its_blocks():
    image = np.random.default_rng(0).normal(5, 2, (2, 64, 96, 1))
    image[1] = 1000 + 40 * image[1]
    blocks = image.reshape(2, 32, 2, 32, 3, 1).mean(axis=(2, 4)).reshape(2, -1)
    expected = (blocks - blocks.mean(axis=1, keepdims=True)) / blocks.std(axis=1, keepdims=True)
    np.testing.assert_allclose(Thumbnail.of(image).values, expected.ravel() / np.linalg.norm(expected), atol=1e-6)


def test_channels_of_different_brightness_make_no_copies():
    """Noise around 1000 beside noise around 100, as two sequences of a scanner: different scans stay different."""
    random = np.random.default_rng(3)
    channels = [(1000, 80), (100, 20)]
    images = [np.stack([random.normal(m, sd, (24, 24, 12)) for m, sd in channels]) for _ in range(5)]
    made = [Thumbnail.of(image) for image in images]
    assert near_identical(made) == []
    constant = np.stack([images[0][0], np.full((24, 24, 12), 7.0)])
    assert near_identical([made[0], *(Thumbnail.of(image) for image in (constant, 2 * constant))])[0][:2] == (1, 2)


def test_a_copy_with_noise_and_another_contrast_is_found():
    random = np.random.default_rng(1)
    images = [random.normal(size=(1, 30, 34, 20)).cumsum(1).cumsum(2).cumsum(3) for _ in range(4)]
    copy = 3 * images[1] + 40 + random.normal(0, 0.1 * 3 * images[1].std(), images[1].shape)
    (pair,) = near_identical([Thumbnail.of(image) for image in [*images, copy, images[0][:, 1:]]])
    assert pair[:2] == (1, 4) and 0.99 < pair[2] < 1


def test_sections_of_isbi_are_no_copies_but_one_stack():
    files = sorted((shared("data") / "isbi2012_em" / "train" / "image").iterdir())[:15]
    made = thumbnails(files)
    assert near_identical(made) == []
    assert stack_correlation(made) > 0.3
    assert stack_correlation([made[n] for n in (0, 10, 3, 13, 6, 1, 11, 4, 14, 7)]) is None  # no neighbours


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [("msd_hippocampus", "images/*.nii.gz"), ("chasedb1", "**/*.jpg"), ("dsb2018", "**/images/*.png")],
)
def test_different_scans_are_neither(folder, pattern):
    files = sorted((shared("data") / folder).glob(pattern))[:40]
    made = thumbnails(files)
    assert len(made) > 10 and near_identical(made) == [] and stack_correlation(made) is None


def test_a_constant_image_is_like_nothing():
    assert near_identical([Thumbnail.of(np.full((1, 8, 8, 1), value)) for value in (0.0, 0.0, 5.0)]) == []
