"""Headers whose voxels lie in other files: beside the header they are read, elsewhere never."""

import numpy as np
import pytest
import SimpleITK

from fewscan.errors import ScanError
from fewscan.scans import open_scan
from fewscan.scans.nrrd_header import check_header

SHAPE = (4, 3, 2)
VALUES = np.arange(24, dtype="<i2").reshape(SHAPE, order="F")
NRRD = "NRRD0005\ntype: short\ndimension: 3\nsizes: 4 3 2\nspace: left-posterior-superior\nendian: little\n" \
       "space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (0,0,0)\nencoding: {encoding}\n"  # fmt: skip
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementSpacing = 1 1 2\nElementType = MET_SHORT\n"


def raw():
    return VALUES.tobytes(order="F")


def slices(folder, name):
    for k in range(2):
        (folder / name.format(k)).write_bytes(VALUES[..., k].tobytes(order="F"))


@pytest.mark.parametrize("form", ["name", "below", "list", "pattern", "gzip", "text", "hex"])
def test_voxels_beside_an_nrrd_header(tmp_path, form):
    import gzip

    (tmp_path / "sub").mkdir()
    slices(tmp_path, "s{:02d}.raw")
    encoding, data, lines = "raw", raw(), "data file: x.raw\n"
    if form == "below":
        lines = "data file: sub/x.raw\n"
    elif form == "list":
        lines = "datafile: LIST\ns00.raw\ns01.raw\n"
    elif form == "pattern":
        lines = "data file: s%02d.raw 0 1 1\n"
    elif form == "gzip":
        encoding, data = "gzip", gzip.compress(raw())
    elif form == "text":
        encoding, data = "text", " ".join(map(str, VALUES.ravel("F"))).encode()
    elif form == "hex":
        encoding, data = "hex", raw().hex().encode()
    for path in (tmp_path / "x.raw", tmp_path / "sub" / "x.raw"):
        path.write_bytes(data)
    (tmp_path / "x.nhdr").write_text(NRRD.format(encoding=encoding) + lines)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "x.nhdr"))).T, VALUES)
    scan = open_scan([tmp_path / "x.nhdr"])
    np.testing.assert_array_equal(scan.read()[0], VALUES)
    assert scan.grid.spacing_mm == (1, 1, 2)


@pytest.mark.parametrize("form", ["name", "list", "pattern", "local", "compressed"])
def test_voxels_beside_a_metaimage_header(tmp_path, form):
    import zlib

    slices(tmp_path, "s{:02d}.raw")
    (tmp_path / "x.raw").write_bytes(zlib.compress(raw()) if form == "compressed" else raw())
    lines = {
        "name": "ElementDataFile = x.raw\n", "list": "ElementDataFile = LIST\ns00.raw\ns01.raw\n",
        "pattern": "ElementDataFile = s%02d.raw 0 1 1\n", "local": "ElementDataFile = LOCAL\n",
        "compressed": f"CompressedData = True\nCompressedDataSize = {len(zlib.compress(raw()))}\n"
                      "ElementDataFile = x.raw\n",
    }[form]  # fmt: skip
    path = tmp_path / ("x.mha" if form == "local" else "x.mhd")
    path.write_bytes((META + lines).encode() + (raw() if form == "local" else b""))
    np.testing.assert_array_equal(open_scan([path]).read()[0], VALUES)


PLACES = ("../x.raw", "{outside}/x.raw", "sub/../../x.raw", "..\\x.raw", "C:\\x.raw", "\\\\server\\x.raw", "//server/x",
          "./../x.raw", "sub/%02d/../../../x.raw 0 1 1", "../x%d.raw 0 1 1")  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["nhdr", "nrrd", "mhd", "mha", "list.nhdr", "list.mhd"])
def test_voxels_elsewhere_are_not_read(tmp_path, kind, place):
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    for name in ("x.raw", "x0.raw"):
        (tmp_path / name).write_bytes(raw())
    place = place.format(outside=tmp_path)
    if "list" in kind:
        place = f"LIST\n{place.split(' ')[0]}"
    path = folder / f"a.{kind}"
    is_nrrd = kind.endswith(("nhdr", "nrrd"))
    path.write_text(
        f"{NRRD.format(encoding='raw')}data file: {place}\n" if is_nrrd else f"{META}ElementDataFile = {place}\n"
    )
    with pytest.raises(ScanError, match=rf"a\.{kind}: .*outside its folder") as caught:
        open_scan([path])
    assert "x.raw" not in str(caught.value) and "server" not in str(caught.value)


def test_more_voxels_than_the_file_holds(tmp_path):
    path = tmp_path / "x.nrrd"
    for encoding, most in (("raw", 48), ("gzip", 48 * 1032)):
        path.write_bytes(NRRD.format(encoding=encoding).replace("4 3 2", "4000 3000 2").encode() + b"\n" + raw())
        with pytest.raises(ScanError, match=rf"x\.nrrd: is cut short: 48 bytes.*{most if most > 48 else ''}"):
            check_header(path)
    path.write_bytes(META.replace("4 3 2", "70000 70000 70000").encode() + b"ElementDataFile = LOCAL\n" + raw())
    with pytest.raises(ScanError, match=r"48 bytes where the header needs 686000000000000"):
        check_header(path)


@pytest.mark.parametrize(
    "line",
    [
        "x" * 1500,
        "kinds: " + "x" * 1500,
        "units: " + '"' * 1500,
        "nothing: " + "1 " * 900,
        "data file: LIST\n" + "x" * 1500,
    ],
)
def test_a_line_that_would_end_the_process(tmp_path, line):
    """ITK writes field lines that it does not understand into a buffer of a kilobyte."""
    (tmp_path / "x.nrrd").write_text(f"{NRRD.format(encoding='raw')}{line}\n\n")
    with pytest.raises(ScanError, match=r"x\.nrrd: .*(characters|no names)"):
        open_scan([tmp_path / "x.nrrd"])
    (tmp_path / "x.mha").write_bytes(f"{META}Name = {'x' * 300}\nElementDataFile = LOCAL\n".encode() + raw())
    with pytest.raises(ScanError, match=r"x\.mha: its Name has 300 characters"):
        open_scan([tmp_path / "x.mha"])


def test_long_keys_and_values_are_no_fields(tmp_path):
    """3D Slicer writes tags of any length."""
    long = f"# {'y' * 3000}\ncontent: {'z' * 3000}\nSegment0_Tags:={'t: ' * 3000}\n"
    (tmp_path / "x.nrrd").write_bytes(f"{NRRD.format(encoding='raw')}{long}\n".encode() + raw())
    np.testing.assert_array_equal(open_scan([tmp_path / "x.nrrd"]).read()[0], VALUES)


def test_a_missing_file_is_said_without_its_name(tmp_path):
    (tmp_path / "x.nhdr").write_text(NRRD.format(encoding="raw") + "data file: Doe_Jane.raw\n")
    with pytest.raises(ScanError, match=r"x\.nhdr: 1 of the files that it names for its voxels are missing") as caught:
        open_scan([tmp_path / "x.nhdr"])
    assert "Doe" not in str(caught.value)
