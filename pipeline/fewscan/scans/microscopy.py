"""Photographs and microscopy: PNG, JPEG, BMP through Pillow, TIFF through tifffile."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import IN_MEMORY_ONLY, Arrays
from fewscan.errors import ScanError
from fewscan.grid import Grid
from fewscan.scans.scan import Scan
from fewscan.scans.sizes import check_holds

_DEFLATED = (8, 32946)
"""TIFF's numbers of zlib compression."""
_LZW = 5
"""TIFF's number of LZW compression."""
_JPEG = (6, 7)
"""TIFF's numbers of JPEG compression, which gives red, green, blue where YCbCr is stored."""
_COLOURS = {5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32844: "LogL", 32845: "LogLuv"}
"""TIFF's photometric interpretations that are neither grey nor red, green, blue."""
_AS_IT_IS = (1, 2, 3)
"""Those that Pillow takes as stored: black is zero, RGB, palette."""
_SETS = ("ome", "mmstack", "ndtiff")
"""tifffile's kinds of series whose planes may lie in several files."""
_AS_STORED = "the pixels are taken as they are stored"
RGB = ("red", "green", "blue")
UNITS_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "micron": 1e-3, "microns": 1e-3,
            "\\u00B5m": 1e-3, "nm": 1e-6, "Å": 1e-7, "pm": 1e-9, "inch": 25.4}  # fmt: skip


def open_photo(path: Path, name: str, channels: Sequence[str] | None = None, label: bool = False) -> Scan:
    """The scan in a PNG, JPEG or BMP: grey (1 channel) or colour (red, green, blue); i to the right, j down, k = 1.

    An opaque alpha is dropped with a note. With `label` the file is read as a label: a palette gives its indices,
    and grey saved as colour is taken. Raises ScanError where the file is broken, has a varying alpha, is a palette
    image but no label, or holds another number of channels than `channels`.
    """
    notes: list[str] = []
    image = _photo(path)
    with image:
        width, height = image.size
        mode = image.mode
        turned = image.format == "JPEG" and image.getexif().get(0x0112, 1) != 1  # asking a PNG would decode it
        frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ScanError(f"{path}: holds {frames} frames; save them as single images or as a TIFF stack")
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise ScanError(f"{path}: its colours are {mode}; save it as grey or RGB")
    if turned:
        notes.append(f"the file asks viewers to turn it (EXIF); {_AS_STORED}")
    found = 3 if mode == "RGB" else 1
    if label or mode in ("P", "PA", "LA", "RGBA"):  # the last also of grey with alpha, where it has sixteen bits
        found = len(_photo_pixels(path, label))  # refuses palettes, colours in labels, and a varying alpha
    if mode in ("LA", "PA", "RGBA"):
        notes.append("an opaque alpha channel is dropped")
    names = _names(path, found, channels)
    return Scan(
        name, "png", (path,), _flat_grid(width, height), names, notes=tuple(notes), assumed=(0, 1, 2),
        reader=read_photo_label if label else read_photo,
    )  # fmt: skip


def read_photo(scan: Scan, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[Any]:
    """The pixels (channel, i, j, 1) of a scan that `open_photo` gave, 16 bit where the file has 16."""
    return _photo_pixels(scan.files[0], False)[: len(scan.channels)]


def read_photo_label(scan: Scan, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[Any]:
    """The values (1, i, j, 1) of a label image, a palette's indices."""
    return _photo_pixels(scan.files[0], True)[:1]


def open_tiff(path: Path, name: str, channels: Sequence[str] | None = None, label: bool = False) -> Scan:
    """The scan in a TIFF: i to the right, j down, pages along k; channels as the file's metadata says.

    The voxel size is taken from OME or ImageJ metadata, or a resolution per cm, where the unit is stated; else the
    affine is ITK's identity, diag(-1, -1, 1, 1). Raises ScanError on a time series, several series, palettes (unless
    `label`), a varying alpha, or another number of channels than `channels`.
    """
    with _tiff(path) as file:
        if not file.series:
            raise ScanError(f"{path}: the TIFF holds no image")
        series = file.series[0]
        if len(file.series) > 1:
            raise ScanError(f"{path}: the TIFF holds {len(file.series)} series of images; save the one to use")
        sizes: dict[str, int] = dict(zip(series.axes, series.shape, strict=True))
        _check_tiff_axes(path, series.axes, sizes)
        if series.dtype is None or series.dtype.kind not in "iufb":
            raise ScanError(f"{path}: holds {series.dtype} numbers; save real ones")
        if series.keyframe.compression in (1, *_DEFLATED):
            deflated = series.keyframe.compression in _DEFLATED
            bits = math.prod(series.shape) * series.keyframe.bitspersample
            check_holds(path, bits // 8, path.stat().st_size, deflated)
        if series.keyframe.photometric == 3 and not label:
            raise ScanError(f"{path}: is a palette image: its numbers are indices; save it as grey or RGB")
        _check_colours(path, series.keyframe)
        _check_planes(path, series)
        others = _other_files(path, series)
        notes = ["white is zero in this file (MINISWHITE); taken as stored"] if series.keyframe.photometric == 0 else []
        if (tag := series.keyframe.tags.get("Orientation")) is not None and tag.value != 1:
            notes.append(f"the file asks viewers to turn it (orientation {int(tag.value)}); {_AS_STORED}")
        found: int = sizes.get("S", sizes.get("C", 1))
        if "S" in sizes and found in (2, 4):
            _drop_alpha(path, _arranged(_pixels(path, series), series.axes))
            notes.append("an opaque alpha channel is dropped")
            found -= 1
        pages = int(np.prod([sizes.get(axis, 1) for axis in "ZIQ"]))
        spacing, assumed, source = _tiff_spacing(file, pages)
        if source:
            notes.append(source)
        if label and found == 3:
            _one_of_equal(path, _arranged(_pixels(path, series), series.axes)[:3])
            found = 1
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    grid = Grid((sizes["X"], sizes["Y"], pages), affine)
    return Scan(
        name, "tiff", (path,), grid, _names(path, found, channels), notes=tuple(notes), companions=others,
        assumed=assumed, reader=read_tiff,
    )  # fmt: skip


def read_tiff(scan: Scan, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[Any]:
    """The voxels (channel, i, j, k) of a scan that `open_tiff` gave."""
    path = scan.files[0]
    with _tiff(path) as file:
        series = file.series[0]
        arranged = _arranged(_pixels(path, series, empty), series.axes)[: len(scan.channels)]
    return arranged.astype(np.uint8) if arranged.dtype == bool else arranged


def _pixels(path: Path, series: Any, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[Any]:
    """The numbers of a series along its axes, as they are stored."""
    data: NDArray[Any] = empty(series.shape, series.dtype)
    try:
        if series.keyframe.compression == _LZW and find_spec("imagecodecs") is None:
            _fill_by_pillow(path, series, data)
        else:
            data = series.asarray(out=data)
    except Exception as problem:  # the codecs raise types of their own
        raise ScanError(f"{path}: the TIFF cannot be decoded ({_line(problem, path)})") from None
    return data


def _fill_by_pillow(path: Path, series: Any, data: NDArray[Any]) -> None:
    """As tifffile does with imagecodecs, where LZW is; ValueError where Pillow scales, inverts or orders otherwise.

    Fax and JPEG are not read so: libtiff warns of damage in them, and goes on.
    """
    from PIL import Image

    page, planes = series.keyframe, list(series)
    if page.photometric not in _AS_IT_IS or page.bitspersample not in (1, 8, 16, 32):
        raise ValueError("LZW of such pixels needs imagecodecs: pip install imagecodecs")
    if len({plane.parent.filehandle.path for plane in planes}) > 1:
        raise ValueError("the planes lie in several files")
    with Image.open(path) as image:
        for pixels, plane in zip(data.reshape(-1, *page.shape), planes, strict=True):
            image.seek(plane.index)
            found = np.asarray(image)
            if found.dtype.newbyteorder("=") != data.dtype.newbyteorder("=") or found.shape != pixels.shape:
                raise ValueError(f"Pillow gives {found.dtype} {found.shape}")
            pixels[...] = found


def _flat_grid(width: int, height: int) -> Grid:
    return Grid((width, height, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))


def _names(path: Path, found: int, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Names for `found` channels: the wanted ones, whose number has to fit; else those of grey and colour."""
    if wanted:
        if len(wanted) == 1 and found > 1:
            raise ScanError(
                f"{path}: holds {found} channels, where 1 is expected; convert it to grey, or plan with RGB images"
            )
        if len(wanted) != found:
            raise ScanError(f"{path}: holds {found} channel(s), where {len(wanted)} are expected ({', '.join(wanted)})")
        return tuple(wanted)
    if found == 1:
        return ("image",)
    return RGB if found == 3 else tuple(f"channel-{number}" for number in range(1, found + 1))


def _photo(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    _check_png(path)
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ScanError(f"{path}: more than {most} pixels are not read from a picture; save it as TIFF") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as problem:
        raise ScanError(f"{path}: is no image that Pillow can read ({_line(problem, path)})") from None


def _check_png(path: Path) -> None:
    """Refuse a PNG whose header says more pixels than its bytes can give."""
    with path.open("rb") as file:
        head = file.read(26)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26:
        width, height, depth, colour = struct.unpack(">IIBB", head[16:])
        numbers = {2: 3, 4: 2, 6: 4}.get(colour, 1)
        check_holds(path, width * height * numbers * depth // 8, path.stat().st_size, deflated=True)


def _photo_pixels(path: Path, label: bool) -> NDArray[Any]:
    """(channel, i, j, 1) as stored; alpha is checked and dropped, palettes are refused unless `label`."""
    with _photo(path) as image:
        try:
            if image.mode in ("P", "PA"):
                if not label:
                    raise ScanError(f"{path}: is a palette image: its numbers are indices; save it as grey or RGB")
                data = np.asarray(image if image.mode == "P" else image.getchannel(0))
            elif channels := _deep_channels(path):
                data = _deep_pixels(path, channels)  # Pillow would cut 16-bit colours to 8 bits
            else:
                data = np.asarray(image)
        except ScanError:
            raise
        except (OSError, ValueError, SyntaxError, RuntimeError) as problem:
            raise ScanError(f"{path}: the file is cut short or damaged ({_line(problem, path)})") from None
    if data.dtype == bool:
        data = data.astype(np.uint8)
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    data = (data[..., None] if data.ndim == 2 else data).transpose(2, 1, 0)[..., None]
    if data.shape[0] in (2, 4):
        data = _drop_alpha(path, data)
    return _one_of_equal(path, data) if label and data.shape[0] == 3 else data


def _drop_alpha(path: Path, data: NDArray[Any]) -> NDArray[Any]:
    alpha = data[-1]
    if alpha.min() != alpha.max():
        raise ScanError(f"{path}: its alpha channel varies from {alpha.min()} to {alpha.max()}; save it without alpha")
    return data[:-1]


def _one_of_equal(path: Path, data: NDArray[Any]) -> NDArray[Any]:
    if (data == data[:1]).all():
        return data[:1]
    raise ScanError(f"{path}: a label in colours; save it with one number a pixel (grey or palette)")


def _deep_channels(path: Path) -> int:
    """Of a PNG of 16 bits with more than one channel, by its IHDR chunk; 0 of any other picture."""
    with path.open("rb") as file:
        head = file.read(26)
    deep = head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16
    return {2: 3, 4: 2, 6: 4}.get(head[25], 0) if deep else 0


def _deep_pixels(path: Path, channels: int) -> NDArray[Any]:
    """(j, i, channels)."""
    if channels == 2:  # which SimpleITK does not read
        import itk

        image = itk.imread(str(path), pixel_type=itk.Vector[itk.F, 2])
        pixels: NDArray[Any] = itk.array_from_image(image).astype(np.uint16)
        return pixels
    import SimpleITK

    data: NDArray[Any] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return data[0] if data.ndim == 4 else data


def _tiff(path: Path) -> Any:
    import tifffile

    _check_directories(path)
    try:
        return tifffile.TiffFile(path)
    except (tifffile.TiffFileError, OSError, ValueError) as problem:
        raise ScanError(f"{path}: is no TIFF ({_line(problem)})") from None


def _check_directories(path: Path) -> None:
    """Refuse a TIFF whose chain of pages leaves the file or comes back to itself: tifffile follows it for minutes."""
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return  # tifffile says what is wrong
        big = struct.unpack(f"{order}H", head[2:4])[0] == 43
        count, link, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
        (at,) = struct.unpack_from(f"{order}{link}", head, 8 if big else 4)
        seen: set[int] = set()
        while at:
            file.seek(at)
            number = file.read(struct.calcsize(count))
            if at in seen or len(number) < struct.calcsize(count):
                raise ScanError(f"{path}: its chain of pages is broken behind page {len(seen)}; save it again")
            seen.add(at)
            file.seek(at + len(number) + entry * struct.unpack(f"{order}{count}", number)[0])
            following = file.read(struct.calcsize(link))
            if len(following) < struct.calcsize(link):
                raise ScanError(f"{path}: its chain of pages is broken behind page {len(seen)}; save it again")
            (at,) = struct.unpack(f"{order}{link}", following)


def _check_tiff_axes(path: Path, axes: str, sizes: dict[str, int]) -> None:
    if sizes.get("T", 1) > 1:
        raise ScanError(f"{path}: a time series of {sizes['T']} images; save the time points as single files")
    strange = [axis for axis, size in sizes.items() if axis not in "YXSCZIQT" and size > 1]
    if strange or len(sizes) != len(axes) or not {"X", "Y"} <= set(sizes):
        raise ScanError(f"{path}: the axes {axes} ({'x'.join(map(str, sizes.values()))}) are no volume; save Z, Y, X")
    for pair in ("SC", "ZQ", "ZI", "IQ"):
        if all(sizes.get(axis, 1) > 1 for axis in pair):
            raise ScanError(f"{path}: has both axes {pair[0]} and {pair[1]} ({axes}); save it with one of them")


def _check_colours(path: Path, page: Any) -> None:
    decoded = page.photometric == 6 and page.compression in _JPEG
    if page.photometric in _COLOURS and not decoded:
        raise ScanError(f"{path}: its colours are {_COLOURS[page.photometric]}; save it as grey or RGB")


def _check_planes(path: Path, series: Any) -> None:
    """Refuse an OME-TIFF that lacks planes, for which tifffile gives zeros, or takes them from beyond its folder."""
    if series.kind != "ome":
        return
    planes = list(series)
    missing = sum(plane is None for plane in planes)
    if missing:
        raise ScanError(
            f"{path}: {missing} of the {len(planes)} planes that its OME metadata names are missing; copy all files of "
            "the set here, or save the planes that there are as a TIFF without OME"
        )
    folder = path.resolve().parent
    if any(not Path(plane.parent.filehandle.path).resolve().is_relative_to(folder) for plane in planes):
        raise ScanError(f"{path}: planes of it lie in a file outside its folder, which is not read; save them in one")


def _other_files(path: Path, series: Any) -> tuple[Path, ...]:
    """The files beside this one that planes of a set lie in, in the order of the planes."""
    planes = series if series.kind in _SETS else ()
    files = dict.fromkeys(Path(plane.parent.filehandle.path).resolve() for plane in planes if plane is not None)
    return tuple(file for file in files if file != path.resolve())


def _arranged(data: NDArray[Any], axes: str) -> NDArray[Any]:
    """An array along `axes` as (channel, i, j, k); axes of other names have one element."""
    wanted = "SCXYZQIT"
    order = sorted(range(len(axes)), key=lambda axis: wanted.index(axes[axis]) if axes[axis] in wanted else 99)
    sizes = dict(zip(axes, data.shape, strict=True))
    channels, pages = sizes.get("S", 1) * sizes.get("C", 1), int(np.prod([sizes.get(axis, 1) for axis in "ZIQT"]))
    return data.transpose(order).reshape(channels, sizes["X"], sizes["Y"], pages)


def _tiff_spacing(file: Any, pages: int) -> tuple[tuple[float, float, float], tuple[int, ...], str | None]:
    """Voxel size in mm, the axes of which it is assumed, and where it is from; 1 mm and None where no unit is stated.

    `pages` are those along k: a file may hold several in one directory, or channels in several.
    """
    x, y, z, source = 1.0, 1.0, None, None
    tags = file.pages[0].tags
    if file.is_ome and file.ome_metadata:
        pixels = next((e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("Pixels")), None)
        sizes = [None if pixels is None else _ome_size(pixels, axis) for axis in "XYZ"]
        if sizes[0] and sizes[1]:
            (x, y), z, source = (sizes[0], sizes[1]), sizes[2], "OME metadata"
    elif file.is_imagej and (factor := UNITS_MM.get(str((file.imagej_metadata or {}).get("unit", "")))):
        per_unit = _resolution(tags)
        if per_unit:
            x, y = factor / per_unit[0], factor / per_unit[1]
            unsaid = 1 if pages > 1 and "ImageJ" in file.imagej_metadata else None  # ImageJ leaves a distance of 1 out
            distance = _length(file.imagej_metadata.get("spacing", unsaid))  # below 0 where the stage went down
            z, source = (distance * factor if distance else None), "ImageJ metadata"
    elif "ResolutionUnit" in tags and int(tags["ResolutionUnit"].value) == 3 and (per_cm := _resolution(tags)):
        x, y, source = 10 / per_cm[0], 10 / per_cm[1], "resolution per cm"  # inches are those of print and screens
    if source is None:
        return (1.0, 1.0, 1.0), (0, 1, 2), None
    note = f"voxel size from {source}"
    if z is None and pages > 1:
        return (x, y, x), (2,), f"{note}; it does not say how far the pages are apart: the pixel size is assumed"
    return (x, y, z or 1.0), () if z else (2,), note


def _ome_size(pixels: ElementTree.Element, axis: str) -> float | None:
    unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")  # µm is OME's default
    size, factor = _length(pixels.get(f"PhysicalSize{axis}")), UNITS_MM.get(unit)
    return size * factor if size and factor else None


def _length(stated: Any) -> float | None:
    """A number of metadata without its sign; None for 0 and for what is no finite number."""
    try:
        length = abs(float(stated))
    except (TypeError, ValueError):
        return None
    return length if 0 < length < math.inf else None


def _resolution(tags: Any) -> tuple[float, float] | None:
    """Pixels per unit along x and y."""
    if "XResolution" not in tags or "YResolution" not in tags:
        return None
    (x, x_by), (y, y_by) = tags["XResolution"].value, tags["YResolution"].value
    return (x / x_by, y / y_by) if min(x, x_by, y, y_by) > 0 else None


def _line(problem: BaseException, path: Path | None = None) -> str:
    text = (str(problem).splitlines() or [""])[-1][:120]
    return type(problem).__name__ + (f": {text}" if text and (path is None or str(path) not in text) else "")
