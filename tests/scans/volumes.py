"""Small volumes that no symmetric mistake survives: odd sizes, unequal spacing, oblique, one bright corner."""

from __future__ import annotations

import numpy as np
import tifffile

SHAPE = (7, 5, 4)
SPACING = (0.9, 0.8, 2.5)


def rotation() -> np.ndarray:
    """A rotation (3, 3) by odd angles about all three axes."""
    a, b, c = 0.3, -0.2, 0.1
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def affine(directions: np.ndarray, spacing=SPACING, origin=(-31.5, 12.25, 80.0)) -> np.ndarray:
    """Voxel to RAS+ mm from directions (columns), spacing and origin."""
    matrix = np.eye(4)
    matrix[:3, :3] = directions * np.asarray(spacing)
    matrix[:3, 3] = origin
    return matrix


AFFINES = {
    "straight": affine(np.eye(3)),
    "lps": affine(np.diag([-1.0, -1.0, 1.0])),
    "reversed": affine(np.diag([1.0, -1.0, -1.0])),
    "permuted": affine(np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]])),
    "oblique": affine(rotation()),
}


def image(shape=SHAPE, dtype=np.int16) -> np.ndarray:
    """Noise from 0 to 99 with one bright corner, 1000, at the last voxel of every axis."""
    values = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    values[-1, -1, -1] = 1000
    return values


def bright_mm(matrix: np.ndarray, shape=SHAPE) -> np.ndarray:
    """Where the bright corner lies, in RAS+ mm."""
    return (matrix @ [shape[0] - 1, shape[1] - 1, shape[2] - 1, 1])[:3]


def ome_set(folder, planes=3, seed=0) -> np.ndarray:
    """An OME-TIFF of a file a plane, of which each file's metadata names all; the pages (k, j, i)."""
    pages = np.random.default_rng(seed).integers(1, 65535, (planes, 5, 7)).astype(np.uint16)
    place = '<TiffData IFD="0" FirstZ="{0}" PlaneCount="1"><UUID FileName="x{0}.ome.tif">urn:uuid:{0}</UUID></TiffData>'
    folder.mkdir(exist_ok=True)
    for k, page in enumerate(pages):
        text = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{k}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="7" SizeY="5" '
            f'SizeZ="{planes}" SizeC="1" SizeT="1"><Channel ID="Channel:0"/>'
            f"{''.join(place.format(n) for n in range(planes))}</Pixels></Image></OME>"
        )
        tifffile.imwrite(folder / f"x{k}.ome.tif", page, description=text, metadata=None)
    return pages
