"""Small valid files of every format, and damaged ones made from them: seeded, so that each can be made again."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK
import tifffile
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.scans import open_scan
from scans.dicom_series import write_series
from scans.volumes import AFFINES

SHAPE = (9, 8, 7)
TABLE = LabelTable.from_json(["left kidney", "spleen"])
BOMB = 1 << 29
"""Bytes that a bomb of half a megabyte inflates to."""

INTEGERS = (0, -1, 1, 2, 7, 255, 256, 32767, -32768, 65535, 1 << 30, -(1 << 31), (1 << 31) - 1, 4242)
REALS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e300, 1e38, -1e38, 1e-45, 352.5, 1e9, 4294967296.0)
ELSEWHERE = ("../secret.raw", "{outside}/secret.raw", "./../secret.raw", "..\\secret.raw", "sub/../../secret.raw")
"""Names that a detached header may give to data that are not its own; {outside} is the folder above it."""


@dataclass(frozen=True)
class Mutant:
    """A damaged file: its name, its bytes and what was done to it."""

    name: str
    data: bytes
    what: str


def image() -> np.ndarray:
    return np.random.default_rng(11).integers(0, 1000, SHAPE).astype(np.int16)


def labels() -> np.ndarray:
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[1:4, 2:6, 1:5], values[5:8, 1:4, 2:6], values[-1, -1, -1] = 1, 2, 1
    return values


def valid_files(folder: Path, array: np.ndarray) -> dict[str, bytes]:
    """Bytes of a valid file of each kind, by a name whose end says the kind; written to `folder` on the way."""
    folder.mkdir(parents=True)
    affine = AFFINES["lps"]
    for kind, name in ((nibabel.Nifti1Image, "one.nii"), (nibabel.Nifti2Image, "two.nii")):
        nibabel.save(kind(array, affine), folder / name)
    files = {name: (folder / name).read_bytes() for name in ("one.nii", "two.nii")}
    files["one.nii.gz"] = gzip.compress(files["one.nii"], 1, mtime=0)
    picture = SimpleITK.GetImageFromArray(array.T)
    lps = LPS_FROM_RAS @ affine
    picture.SetSpacing(np.linalg.norm(lps[:3, :3], axis=0).tolist())
    picture.SetOrigin(lps[:3, 3].tolist())
    for name, compressed in (("raw.nrrd", False), ("gzip.nrrd", True), ("raw.mha", False), ("zlib.mha", True)):
        SimpleITK.WriteImage(picture, str(folder / name), compressed)
        files[name] = (folder / name).read_bytes()
    stored = array[:, :, 3].T.astype(np.uint8 if array.max() < 256 else np.uint16)
    pictures = {"grey.png": stored, "rgb.png": np.repeat((stored >> 2).astype(np.uint8)[..., None], 3, axis=-1)}
    for name, pixels in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files[name] = buffer.getvalue()
    for name, how in (("plain.tif", None), ("zlib.tif", "zlib")):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.ascontiguousarray(array.T), photometric="minisblack", compression=how)
        files[name] = buffer.getvalue()
    return files


def dicom_files(folder: Path, array: np.ndarray) -> dict[str, bytes]:
    """One image plane in each of five transfer syntaxes."""
    (path,) = write_series(folder, np.tile(array[..., :1], (4, 5, 1)), AFFINES["lps"])  # JPEG 2000 needs 32 pixels
    files = {"explicit.dcm": path.read_bytes()}
    for name, syntax in (("implicit", ImplicitVRLittleEndian), ("deflated", DeflatedExplicitVRLittleEndian)):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(folder / name, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
        files[f"{name}.dcm"] = (folder / name).read_bytes()
    for name, syntax in (("rle", RLELossless), ("j2k", JPEG2000Lossless)):
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(folder / name)
        files[f"{name}.dcm"] = (folder / name).read_bytes()
    return files


def own_series(valid: dict[str, bytes], number: int) -> dict[str, bytes]:
    """The same files, the DICOM ones in a series of that number: else all mutants of one would be one series."""
    changed = dict(valid)
    for name in valid:
        if name.endswith(".dcm"):
            deflated = DeflatedExplicitVRLittleEndian.encode() in valid[name][:1000]
            start, plain = _inflated(valid[name]) if deflated else (b"", valid[name])
            at = plain.index(b"\x20\x00\x0e\x00") + 8  # SeriesInstanceUID
            end = plain.index(b"\x20\x00", at)
            uid = plain[at:end].rstrip(b"\0")
            plain = plain[:at] + uid[:-7] + b"1%06d" % number + plain[at + len(uid) :]
            changed[name] = start + (_deflate(plain) if start else plain)
    return changed


def _inflated(data: bytes) -> tuple[bytes, bytes]:
    """Preamble and meta information of a deflated file, and its data set."""
    start = 144 + struct.unpack("<I", data[140:144])[0]
    return data[:start], zlib.decompress(data[start:], -zlib.MAX_WBITS)


def _deflate(plain: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(plain) + packer.flush()


def mask_files(folder: Path) -> dict[str, bytes]:
    """A `.seg.nrrd` and a DICOM SEG of `labels()`, as our own writers make them."""
    series = folder / "series"
    write_series(series, image(), AFFINES["lps"])
    scan = open_scan([series])
    assert isinstance(scan.grid, Grid)
    files = {}
    for format, name in (("seg-nrrd", "mask.seg.nrrd"), ("dicom-seg", "mask.dcm")):
        (path,) = write_mask(labels(), scan, TABLE, folder / "mask", format)
        files[name] = path.read_bytes()
    return files


def mutant(seed: int, valid: dict[str, bytes], outside: Path) -> Mutant:
    """The mutant of that number, of one of the valid files in turn."""
    random = np.random.default_rng(seed)
    source = sorted(valid)[seed % len(valid)]
    own = _by_kind(source)
    if own is not None and random.random() < 0.65:
        data, what = own(valid[source], random, outside)
    else:
        data, what = _bytes(valid[source], random)
    return Mutant(f"m{seed:05d}_{source}", data, f"{source}: {what}")


def _by_kind(name: str) -> Callable[[bytes, np.random.Generator, Path], tuple[bytes, str]] | None:
    for end, change in (
        (".nii", _nifti),
        (".nii.gz", _nifti_gz),
        (".nrrd", _nrrd),
        (".mha", _meta),
        (".png", _png),
        ("explicit.dcm", _dicom),
        ("rle.dcm", _dicom),
        ("j2k.dcm", _dicom),
        ("deflated.dcm", _deflated),
        ("mask.dcm", _dicom),
    ):
        if name.endswith(end):
            return change
    return None


def _pick(random: np.random.Generator, choices):
    return choices[int(random.integers(len(choices)))]


def _bytes(data: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """What can befall any file."""
    kind = _pick(
        random, ("flip", "flip early", "cut", "cut early", "zero", "ones", "insert", "twice", "append", "swap")
    )
    changed = bytearray(data)
    early = min(len(data), 600)
    if kind.startswith("flip"):
        for _ in range(int(random.integers(1, 30))):
            changed[int(random.integers(early if "early" in kind else len(data)))] = int(random.integers(256))
    elif kind.startswith("cut"):
        changed = changed[: int(random.integers(early if "early" in kind else len(data)))]
    elif kind == "append":
        changed += random.bytes(int(random.integers(1, 5000)))
    else:
        first, size = int(random.integers(len(data))), int(random.integers(1, 64))
        part = bytes(changed[first : first + size])
        new = {"zero": bytes(len(part)), "ones": b"\xff" * len(part), "insert": random.bytes(size) + part,
               "twice": part + part, "swap": part[::-1]}[kind]  # fmt: skip
        changed[first : first + len(part)] = new
    return bytes(changed), kind


_NIFTI_1 = {
    "sizeof_hdr": (0, "i"), "dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"),
    "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"), "xyzt_units": (123, "B"),
    "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "3f"), "srow": (280, "12f"),
    "magic": (344, "4s"), "extension": (348, "4s"),
}  # fmt: skip
_NIFTI_2 = {
    "sizeof_hdr": (0, "i"), "magic": (4, "8s"), "datatype": (12, "h"), "bitpix": (14, "h"), "dim": (16, "8q"),
    "pixdim": (104, "8d"), "vox_offset": (168, "q"), "scl_slope": (176, "d"), "scl_inter": (184, "d"),
    "srow": (400, "12d"), "qform_code": (344, "i"), "sform_code": (348, "i"), "xyzt_units": (500, "i"),
}  # fmt: skip


def _nifti(data: bytes, random: np.random.Generator, outside: Path) -> tuple[bytes, str]:
    changed, said = bytearray(data), []
    fields = _NIFTI_2 if data[:4] == struct.pack("<i", 540) else _NIFTI_1
    for _ in range(int(random.integers(1, 4))):
        name = _pick(random, sorted(fields))
        at, form = fields[name]
        count, letter = int(form[:-1] or 1), form[-1]
        if letter == "s":
            value = random.bytes(count) if random.random() < 0.5 else b"\x01" + bytes(count - 1)
            changed[at : at + count] = value
        else:
            place = at + struct.calcsize(f"<{letter}") * int(random.integers(count))
            value = _pick(random, REALS if letter in "fd" else INTEGERS)
            changed[place : place + struct.calcsize(f"<{letter}")] = _packed(letter, value)
        said.append(f"{name}={value!r}")
    if random.random() < 0.15:  # an extension that is longer than it is, of DICOM or CIFTI, before the voxels
        code, size = _pick(random, (2, 4, 32, 99)), _pick(random, (-16, 0, 8, 24, 1 << 20, (1 << 31) - 16))
        changed[348:352] = b"\x01\0\0\0"
        changed[352:352] = struct.pack("<ii", size, code) + random.bytes(24)
        changed[108:112] = struct.pack("<f", 384.0)
        said.append(f"extension {code} of {size}")
    return bytes(changed), "; ".join(said)


def _packed(letter: str, value) -> bytes:
    if letter in "fd":
        with np.errstate(over="ignore"):
            return np.array(value).astype(f"<{letter}").tobytes()
    bits = struct.calcsize(f"<{letter}") * 8
    return (int(value) & ((1 << bits) - 1)).to_bytes(bits // 8, "little")


def _nifti_gz(data: bytes, random: np.random.Generator, outside: Path) -> tuple[bytes, str]:
    plain = gzip.decompress(data)
    kind = _pick(random, ("header", "header", "bomb", "size", "sum", "many 2**32", "members", "offset bomb"))
    if kind == "header":
        changed, what = _nifti(plain, random, outside)
        return gzip.compress(changed, 1, mtime=0), what
    if kind == "bomb":
        return gzip.compress(plain, 1, mtime=0) + _zeros_gz(), kind
    if kind == "offset bomb":
        head = bytearray(plain[:352])
        head[108:112], head[348:352] = struct.pack("<f", float(BOMB)), b"\x01\0\0\0"
        extension = struct.pack("<ii", BOMB - 352, 6)
        return gzip.compress(bytes(head) + extension, 1, mtime=0) + _zeros_gz(), kind
    if kind == "many 2**32":  # the size that the file states, modulo 2**32, is what the header needs
        head = bytearray(plain)
        head[40:56] = struct.pack("<8h", 3, 2048, 2048, 512, 1, 1, 1, 1)
        stated = (352 + 2048 * 2048 * 512 * 2) % (1 << 32)
        return gzip.compress(bytes(head), 1, mtime=0)[:-4] + struct.pack("<I", stated), kind
    if kind == "members":
        half = len(plain) // 2
        return b"".join(gzip.compress(p, 1, mtime=0) for p in (plain[:half], b"", plain[half:])), kind
    at = len(data) - (4 if kind == "size" else 8)
    return data[:at] + random.bytes(4) + data[at + 4 :], kind


_ZEROS: list[bytes] = []


def _zeros_gz() -> bytes:
    if not _ZEROS:
        _ZEROS.append(gzip.compress(bytes(BOMB), 9, mtime=0))
    return _ZEROS[0]


def _nrrd(data: bytes, random: np.random.Generator, outside: Path) -> tuple[bytes, str]:
    head, body = data.split(b"\n\n", 1)
    lines = head.decode("utf-8").split("\n")
    kind = _pick(random, ("field", "field", "field", "elsewhere", "drop", "again", "line", "bomb", "no body", "no end"))
    if kind in ("field", "again"):
        name, value = _pick(random, _NRRD_FIELDS)
        line = f"{name}: {value}"
        if kind == "field":
            lines = [old for old in lines if not old.startswith(f"{name}:")]
        lines.insert(int(random.integers(1, len(lines) + 1)), line)
        what = line
    elif kind == "elsewhere":
        target = _pick(random, (*ELSEWHERE, *_LISTS)).format(outside=outside)
        lines = [line for line in lines if not line.startswith("encoding:")]
        lines += ["encoding: raw", f"{_pick(random, ('data file', 'datafile', 'Data File'))}: {target}"]
        what = lines[-1]
    elif kind == "drop":
        what = f"without {lines.pop(int(random.integers(len(lines))))}"
    elif kind == "line":
        lines.insert(1, _pick(random, ("x" * (1 << 20), "Doe^Jane", ":=", "a:=b\\", "\0\0", "# " + "y" * 5000, ": :")))
        what = f"line {lines[1][:20]}"
    elif kind == "bomb":
        lines = [line for line in lines if not line.startswith("encoding:")] + ["encoding: gzip"]
        body, what = _zeros_gz(), "a bomb"
    elif kind == "no body":
        body, what = b"", kind
    else:
        return head, kind
    return "\n".join(lines).encode("utf-8") + b"\n\n" + body, what[:60]


_NRRD_FIELDS = (
    ("sizes", "70000 70000 70000"), ("sizes", "-9 8 7"), ("sizes", "0 8 7"), ("sizes", "9 8"), ("sizes", "9 8 7 6"),
    ("sizes", "4294967297 8 7"), ("sizes", "2097152 2097152 2097152"), ("sizes", "9.5 8 7"), ("sizes", "nan 8 7"),
    ("sizes", "900 800 700"), ("sizes", "9 8 8"), ("sizes", "7 8 9"),
    ("dimension", "0"), ("dimension", "-3"), ("dimension", "17"), ("dimension", "2"), ("dimension", "4"),
    ("dimension", "99999999999"), ("dimension", "3.5"),
    ("type", "double"), ("type", "block"), ("type", "nothing"), ("type", "int64"), ("type", "unsigned char"),
    ("encoding", "gzip"), ("encoding", "raw"), ("encoding", "bzip2"), ("encoding", "text"), ("encoding", "hex"),
    ("encoding", "none of these"), ("endian", "big"), ("endian", "middle"),
    ("byte skip", "-1"), ("byte skip", "-2"), ("byte skip", "99999999999"), ("byte skip", "100"),
    ("line skip", "1000000000"), ("line skip", "-1"), ("line skip", "2"),
    ("space", "left-anterior-superior"), ("space", "nowhere"), ("space dimension", "3"), ("space dimension", "900"),
    ("space origin", "(nan,0,0)"), ("space origin", "(inf,0,0)"), ("space origin", "(1,2)"), ("space origin", "none"),
    ("space directions", "(nan,0,0) (0,1,0) (0,0,1)"), ("space directions", "(0,0,0) (0,1,0) (0,0,1)"),
    ("space directions", "(1,0,0) (1,0,0) (0,0,1)"), ("space directions", "none none none"),
    ("space directions", "(1e300,0,0) (0,1e300,0) (0,0,1e300)"), ("space directions", "(1,0,0) (0,1,0)"),
    ("kinds", "vector domain domain"), ("kinds", "x y z"), ("kinds", "domain domain"), ("spacings", "0 nan inf"),
    ("min", "nan nan nan"), ("block size", "-5"), ("measurement frame", "(nan,0,0) (0,1,0) (0,0,1)"),
    ("kinds", "x" * 1500), ("units", '"' * 3000), ("space directions", "(1,0,0) " * 300), ("nothing", "y" * 2000),
)  # fmt: skip
_LISTS = ("LIST", "LIST 2", "%s%s%s%n 1 5 1", "slice%03d.raw 1 999999999 1", "../secret%d.raw 1 1 1", "LOCAL", "",
          "sub", "gone.raw", "/dev/zero", "/dev/stdin")  # fmt: skip


def _meta(data: bytes, random: np.random.Generator, outside: Path) -> tuple[bytes, str]:
    mark = b"ElementDataFile = LOCAL\n"
    head, body = data.split(mark, 1)
    name, value = _pick(random, _META_FIELDS)
    if name == "ElementDataFile":
        value = _pick(random, (*ELSEWHERE, *_LISTS)).format(outside=outside)
        return head + f"{name} = {value}\n".encode() + body, f"{name}={value}"
    lines = [line for line in head.decode().splitlines() if not line.startswith(f"{name} ")]
    lines.insert(int(random.integers(1, len(lines) + 1)), f"{name} = {value}")
    return "\n".join(lines).encode() + b"\n" + mark + body, f"{name}={value}"


_META_FIELDS = (
    ("DimSize", "70000 70000 70000"), ("DimSize", "-9 8 7"), ("DimSize", "0 8 7"), ("DimSize", "9 8"),
    ("DimSize", "2097152 2097152 2097152"), ("DimSize", "900 800 700"), ("NDims", "0"), ("NDims", "-1"),
    ("NDims", "11"), ("NDims", "2"), ("ElementType", "MET_DOUBLE"), ("ElementType", "MET_NONE"),
    ("ElementType", "what"), ("ElementNumberOfChannels", "1000000"), ("ElementNumberOfChannels", "-1"),
    ("CompressedData", "True"), ("CompressedDataSize", "99999999999"), ("HeaderSize", "-1"),
    ("HeaderSize", "99999999"), ("TransformMatrix", "nan 0 0 0 1 0 0 0 1"), ("TransformMatrix", "0 0 0 0 0 0 0 0 0"),
    ("ElementSpacing", "0 0 0"), ("ElementSpacing", "nan inf -1"), ("Offset", "inf nan 0"),
    ("ElementDataFile", ""), ("ElementDataFile", ""), ("ElementDataFile", ""), ("Name", "x" * 300),
    ("Comment", "x" * 2000), ("NDims", "1" * 900),
)  # fmt: skip


def _png(data: bytes, random: np.random.Generator, outside: Path) -> tuple[bytes, str]:
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    kind = _pick(random, ("size", "size", "depth", "colour", "interlace", "bomb", "ztxt", "length", "order", "frames"))
    head = bytearray(chunks[0][1])
    what = kind
    if kind == "size":
        width, height = (_pick(random, (0, 1, 9, 13000, 65535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)) for _ in "xy")
        head[:8], what = struct.pack(">II", width, height), f"{width} x {height}"
    elif kind in ("depth", "colour", "interlace"):
        place = {"depth": 8, "colour": 9, "interlace": 12}[kind]
        head[place] = _pick(random, (0, 1, 2, 3, 4, 6, 7, 8, 16, 32, 255))
        what = f"{kind} {head[place]}"
        if random.random() < 0.3:
            head[:8] = struct.pack(">II", 12000, 12000)
    chunks[0] = (b"IHDR", bytes(head))
    if kind == "bomb":
        chunks = [chunks[0], (b"IDAT", zlib.compress(bytes(BOMB // 4), 9)), (b"IEND", b"")]
    elif kind == "ztxt":
        chunks.insert(1, (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (BOMB // 4), 9)))
    elif kind == "order":
        chunks = [chunks[int(n)] for n in random.permutation(len(chunks))]
    elif kind == "frames":
        chunks.insert(1, (b"acTL", struct.pack(">II", _pick(random, (0, 1, 9, (1 << 31) - 1)), 0)))
    result = data[:8]
    for name, value in chunks:
        size = len(value) if kind != "length" or random.random() < 0.5 else int(random.integers(1 << 32))
        result += struct.pack(">I", size) + name + value + struct.pack(">I", zlib.crc32(name + value))
    return result, what


_DICOM_FIELDS: tuple[tuple[int, bytes, tuple], ...] = (
    (0x00280010, b"US", INTEGERS), (0x00280011, b"US", INTEGERS), (0x00280100, b"US", (0, 1, 8, 12, 16, 32, 64, 65535)),
    (0x00280101, b"US", (0, 1, 7, 12, 17, 65535)), (0x00280102, b"US", (0, 3, 14, 16, 65535)),
    (0x00280103, b"US", (0, 1, 2, 65535)), (0x00280002, b"US", (0, 1, 3, 4, 65535)),
    (0x00280008, b"IS", ("0", "-1", "2", "99999999999", "x", "1e9")),
    (0x00281052, b"DS", ("nan", "inf", "-1e308", "x", "", "1e400")),
    (0x00281053, b"DS", ("nan", "0", "1e38", "-1e-300", "x", "1\\2")),
    (0x00200032, b"DS", ("nan\\0\\0", "1e308\\1e308\\1e308", "1\\2", "", "a\\b\\c", "1\\2\\3\\4")),
    (0x00200037, b"DS", ("0\\0\\0\\0\\0\\0", "nan\\0\\0\\0\\1\\0", "1\\0\\0\\1\\0\\0", "1\\0", "2\\0\\0\\0\\2\\0")),
    (0x00280030, b"DS", ("0\\0", "-1\\-1", "nan\\1", "1", "1e300\\1e300", "1e-300\\1e-300")),
    (0x00280004, b"CS", ("RGB", "PALETTE COLOR", "YBR_FULL", "nothing", "")),
    (0x00020010, b"UI", ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.90", "1.2.3", "",
                         "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "Doe")),
    (0x00080016, b"UI", ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.11", "", "9.9.9")),
    (0x00080018, b"UI", ("", "not a uid", "1" * 200)), (0x00080005, b"CS", ("nothing", "ISO 2022 IR 87\\x", "")),
    (0x00280120, b"US", INTEGERS), (0x00200011, b"IS", ("x", "99999999999999999999", "1.5", "")),
    (0x00180050, b"DS", ("nan", "-5", "0", "1e308", "x")), (0x00180088, b"DS", ("nan", "0", "1e-320", "x")),
    (0x0020000D, b"UI", ("", "x" * 99)), (0x00200052, b"UI", ("", "x y z")), (0x00620001, b"CS", ("FRACTIONAL", "x")),
)  # fmt: skip


def _dicom(data: bytes, random: np.random.Generator, outside: Path) -> tuple[bytes, str]:
    """Values, lengths and VRs of elements of an explicit little endian file, and elements that nobody asked for."""
    kind = _pick(random, ("value", "value", "value", "value", "length", "vr", "sequence", "private", "gone"))
    tag, vr, values = _DICOM_FIELDS[int(random.integers(len(_DICOM_FIELDS)))]
    found = data.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr, 132)
    if kind in ("sequence", "private") or found < 0:
        at = data.find(b"\x08\x00\x60\x00CS", 132)
        return data[:at] + _stranger(random) + data[at:], kind
    (size,) = struct.unpack("<H", data[found + 6 : found + 8])
    end = found + 8 + size
    what = f"{tag:08x} {kind}"
    if kind == "value":
        value = _pick(random, values)
        stored = struct.pack("<H", value & 0xFFFF) if vr == b"US" else value.encode()
        stored += (b"\0" if vr == b"UI" else b" ") * (len(stored) % 2)
        changed = data[: found + 6] + struct.pack("<H", len(stored)) + stored + data[end:]
        return changed, f"{what} {value!r}"
    if kind == "length":
        return data[: found + 6] + struct.pack("<H", _pick(random, (0, 1, 3, 65534, 65535, size + 2))) + data[
            found + 8 :
        ], what
    if kind == "vr":
        return data[: found + 4] + _pick(random, (b"SQ", b"UN", b"??", b"OB", b"PN", b"AT")) + data[found + 6 :], what
    return data[:found] + data[end:], what


def _stranger(random: np.random.Generator) -> bytes:
    head = struct.pack("<HH", *_pick(random, ((0x0009, 0x0010), (0x0009, 0x1001), (0x0008, 0x1140), (0x0011, 0x0000))))
    deep = b"".join(head + b"SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" for _ in range(3000))
    length = _pick(random, (0, 10, 1 << 20, (1 << 32) - 2, (1 << 32) - 1))
    return _pick(random, (
        deep,
        head + b"SQ\0\0" + struct.pack("<I", length),
        head + b"UN\0\0" + struct.pack("<I", length) + b"Doe^Jane",
        head + b"LO\x04\0x\\y ",
        head + b"OW\0\0" + struct.pack("<I", 6) + b"abcdef",
    ))  # fmt: skip


def _deflated(data: bytes, random: np.random.Generator, outside: Path) -> tuple[bytes, str]:
    """The data set changed before it is deflated; or zeros without end behind it."""
    start, plain = _inflated(data)
    what = "bomb"
    if random.random() < 0.3:
        plain += struct.pack("<HH", 0x7FE1, 0x0010) + b"OB\0\0" + struct.pack("<I", BOMB) + bytes(BOMB)
    else:
        both, what = _dicom(start + plain, random, outside)
        meta = 144 + struct.unpack("<I", both[140:144])[0]
        start, plain = both[:meta], both[meta:]
    return start + _deflate(plain), f"inflated, {what}"
