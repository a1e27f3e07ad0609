"""Every kind of series that is read has a DICOM-SEG that dciodvfy, dcmqi and highdicom read as it is meant."""

import pytest

from interop.matrix import FORMATS, READ, TILTED, write_kind
from interop.readers import (
    assert_same_places,
    by_dcmqi,
    by_highdicom,
    by_highdicom_from_the_images,
    errors,
    image_planes,
)

MISREAD = pytest.mark.xfail(strict=True, reason="dcmqi takes the planes of a tilted stack for upright")


@pytest.fixture(scope="module")
def written(request, tmp_path_factory):
    """The volumes of a kind, once for all readers."""
    return write_kind(request.param, tmp_path_factory.mktemp(request.param))


def kinds(*names):
    return pytest.mark.parametrize("written", names, indirect=True, scope="module")


@kinds(*READ)
def test_dciodvfy_finds_no_error(written):
    """Whatever it says of the source."""
    for volume in written:
        for path in volume.paths:
            assert errors(path) == []


@kinds(*(pytest.param(name, marks=MISREAD if name in TILTED else ()) for name in READ))
def test_dcmqi_puts_every_voxel_where_the_source_has_it(tmp_path, written):
    for number, volume in enumerate(written):
        for path, name in zip(volume.paths, FORMATS, strict=True):
            assert_same_places(by_dcmqi(path, tmp_path / f"{number}_{name}")[0], volume.places)


@kinds(*READ)
def test_highdicom_puts_every_voxel_on_the_image_that_has_it(written):
    for volume in written:
        for path in volume.paths:
            assert_same_places(by_highdicom_from_the_images(path, image_planes(volume.files)), volume.places)


@kinds(*(name for name in READ if name not in TILTED))
def test_highdicom_puts_every_voxel_where_the_source_has_it(written):
    for volume in written:
        for path in volume.paths:
            assert_same_places(by_highdicom(path), volume.places)


@kinds(*TILTED)
def test_highdicom_makes_no_volume_of_a_tilted_stack(written):
    for volume in written:
        for path in volume.paths:
            with pytest.raises(RuntimeError, match="do not form a regularly-spaced volume"):
                by_highdicom(path)
