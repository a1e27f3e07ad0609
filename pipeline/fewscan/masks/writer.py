"""Our masks from inside MONAI: `SaveImaged(writer=...)` of a bundle writes what `fewscan segment` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_writer import ImageWriter
from monai.utils.type_conversion import convert_data_type
from numpy.typing import NDArray

from fewscan.errors import FormatError
from fewscan.labels import LabelTable
from fewscan.masks.write import FORMATS, default_format, write_mask
from fewscan.scans.find import find_scans
from fewscan.scans.reader import scan_from_meta
from fewscan.scans.scan import Scan


class MaskWriter(ImageWriter):  # type: ignore[misc]
    """Writes one channel of label values through `write_mask`: in the scan's geometry, read back, all or nothing.

    `labels` are the rows of the bundle's label table, `provenance` as for `write_mask`. The format follows the
    suffix of the file's name (`output_ext` of SaveImaged) or, where that is empty, the scan's own format.
    """

    def __init__(
        self, labels: Iterable[Mapping[str, Any] | str], provenance: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        """`kwargs` are what SaveImage gives every writer (output_dtype, scale); a mask has no use for them."""
        super().__init__(**kwargs)
        self.table = LabelTable.from_json(labels)
        self.provenance = dict(provenance or {})
        self.values: NDArray[Any] | None = None
        self.scan: Scan | None = None

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Take label values on the scan's grid, (1, i, j, k); axes of length 1 may be missing."""
        self.values = np.asarray(convert_data_type(data_array, np.ndarray)[0])

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = False, **options: Any) -> None:
        """Open the scan again that the metadata came from; its geometry is the mask's."""
        if resample:
            raise FormatError("masks are brought back to the scan's grid before the argmax; set resample to false")
        self.scan = scan_from_meta(dict(meta_dict or {}))

    def write(self, filename: str | Path, verbose: bool = False, **kwargs: Any) -> None:
        """Write the mask as `filename`, or as `filename` + the scan's own suffix where it has none of ours."""
        if self.values is None or self.scan is None:
            raise FormatError(f"{Path(filename).name}: set_data_array and set_metadata come before write")
        shape = self.scan.grid.shape
        if [n for n in self.values.shape if n > 1] != [n for n in shape if n > 1]:
            raise FormatError(
                f"{self.scan.name}: a mask is one channel of label values on the scan's grid, {(1, *shape)}, not "
                f"{self.values.shape}; take the argmax and go back to the scan's grid before saving"
            )
        stem, format = _split(str(filename))
        format = format or default_format(self.scan)
        write_mask(self.values.reshape(shape), self.scan, self.table, Path(stem), format, self.provenance)


class MaskName:
    """For `output_name_formatter` of SaveImaged: the name that the scan has in its folder, so that masks mirror it.

    `data_root` is the folder in which the scans were found, `channels` as the bundle has them. A scan from elsewhere
    keeps its own name. Goes with `data_root_dir: "."`, `separate_folder: false` and an empty `output_ext`.
    """

    def __init__(self, data_root: str | Path, channels: Sequence[Mapping[str, Any] | str] | None = None) -> None:
        self.data_root = Path(data_root)
        self.channels = channels
        self._names: dict[frozenset[str], str] | None = None

    def __call__(self, meta: Mapping[str, Any], saver: Any = None) -> dict[str, str]:
        """The arguments of MONAI's FolderLayout. `.nii` is put on since MONAI takes off what follows the last dot."""
        scan = scan_from_meta(meta)
        if self._names is None:
            self._names = {_key(found): found.name for found in find_scans(self.data_root, self.channels).scans}
        return {"subject": f"{self._names.get(_key(scan), scan.name)}.nii"}


def _key(scan: Scan) -> frozenset[str]:
    return frozenset(str(path.resolve()) for path in scan.files) | {str(scan.frames)}


def _split(filename: str) -> tuple[str, str | None]:
    """Stem and format of a file's name; None where the suffix is none of ours."""
    for format, suffix in FORMATS.items():
        if filename.lower().endswith(suffix):
            return filename[: -len(suffix)], format
    return filename, None
