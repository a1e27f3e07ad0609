"""Border weights against the paper's authors' own code, and against one distance transform an instance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import ndimage

from conftest import shared
from fewscan.training.border import border_weights, part_touching


def by_each_instance(instances, height, sd, spacing):
    """Eq. 2 of the paper, literally."""
    each = [ndimage.distance_transform_edt(instances != n, spacing) for n in np.unique(instances) if n > 0]
    nearest, second = np.sort(np.stack(each), axis=0)[:2]
    return height * np.exp(-((nearest + second) ** 2) / (2 * sd**2))


@pytest.mark.parametrize("case", ["separated", "touching", "ignore"])
def test_equals_the_authors_code(case):
    reference = np.load(shared("parity/weight_maps.npz"))
    instances = reference[f"{case}.inst"]
    np.testing.assert_array_equal(part_touching(instances), reference[f"{case}.paper.labels"] > 0)
    np.testing.assert_allclose(border_weights(instances), reference[f"{case}.paper.weights"], rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=some.integers(0, 10_000), count=some.integers(2, 40), dims=some.sampled_from([2, 3]))
def test_equals_one_distance_transform_an_instance(seed, count, dims):
    """Numbers with gaps, unknown voxels, anisotropic spacing."""
    random = np.random.default_rng(seed)
    instances = np.zeros((17, 12, 9)[:dims] if dims == 3 else (31, 22), dtype=np.int32)
    places = random.choice(instances.size, size=count, replace=False)
    instances.flat[places] = 3 * np.arange(count) + 2
    instances.flat[random.choice(instances.size, size=5)] = -1
    spacing = (1.5, 0.7, 2.0)[:dims]
    weights = border_weights(instances, height=4.0, sd=2.5, spacing=spacing)
    if len(np.unique(instances[instances > 0])) > 1:
        term = by_each_instance(instances, 4.0, 2.5, spacing)
        gap = (instances >= 0) & ~part_touching(instances)
        expected = np.where(instances < 0, 0, np.where(gap, 1 + term, 1))
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0, 7])
def test_one_instance_or_none_has_no_border(value):
    instances = np.zeros((9, 8), dtype=np.int16)
    instances[2:5, 3:6] = value
    np.testing.assert_array_equal(border_weights(instances), 1)


def test_touching_discs_are_one_region_until_they_are_parted():
    """What a network of one class answers of two touching objects, and what the border weight trains it to answer."""
    rows, columns = np.ogrid[:40, :60]
    instances = np.zeros((40, 60), dtype=np.int32)
    for number, centre in ((1, 20), (2, 40)):
        instances[(rows - 20) ** 2 + (columns - centre) ** 2 <= 100] = number
    assert ndimage.label(instances > 0)[1] == 1
    parted = part_touching(instances)
    assert ndimage.label(parted, np.ones((3, 3)))[1] == 2
    weights = border_weights(instances)
    gap = (instances > 0) & ~parted
    assert gap.any() and weights[gap].min() > 9 > weights[~gap & (instances == 0)].mean()
