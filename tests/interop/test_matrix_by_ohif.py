"""Every kind of series that is read has a DICOM-SEG that OHIF's reader draws on the images that have it."""

import numpy as np
import pytest

from interop.matrix import READ, write_kind
from interop.readers import assert_same_places, by_ohif, image_planes, places, points_of

pytestmark = pytest.mark.ohif
TURNED = "enhanced_mr_of_two_stacks"
"""One file of two orientations: OHIF's reader takes that of the first frame for all."""


def found_by_ohif(volume):
    planes, columns = image_planes(volume.files), volume.scan.grid.shape[0]
    for answer in by_ohif(volume.paths, volume.files):
        names = {segment["number"]: segment["label"] for segment in answer["segments"]}
        found = {}
        for image, pixels in answer["found"].items():
            uid, frame = image.split()
            plane = planes[uid, int(frame) if (uid, int(frame)) in planes else 0]
            points = [points_of(plane, np.array([pixel % columns, pixel // columns])) for pixel, _ in pixels]
            found |= places(points, [names[segment] for _, segment in pixels])
        yield found


@pytest.mark.parametrize("name", [name for name in READ if name != TURNED])
def test_every_voxel_is_drawn_where_the_source_has_it(tmp_path, name):
    for volume in write_kind(name, tmp_path):
        for found in found_by_ohif(volume):
            assert_same_places(found, volume.places)


def test_a_second_orientation_in_one_file_is_refused_never_misplaced(tmp_path):
    first, second = write_kind(TURNED, tmp_path)
    for found in found_by_ohif(first):
        assert_same_places(found, first.places)
    with pytest.raises(AssertionError, match="orthogonal to the acquisition plane"):
        list(found_by_ohif(second))
