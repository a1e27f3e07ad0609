"""Prediction in tiles: integer geometry, and the inferer that a bundle names."""

from typing import TYPE_CHECKING, Any

from fewscan.tiling.tiles import Tile, blend_tiles, exact_tiles, mirror

if TYPE_CHECKING:
    from fewscan.tiling.inferer import OverlapTileInferer, leave_where_it_is

BACKENDS = ("auto", "eager", "openvino")
"""What may run a network, see `fewscan.tiling.backend`."""

__all__ = ["BACKENDS", "OverlapTileInferer", "Tile", "blend_tiles", "exact_tiles", "leave_where_it_is", "mirror"]


def __getattr__(name: str) -> Any:
    if name in ("OverlapTileInferer", "leave_where_it_is"):  # MONAI is loaded only where the inferer is asked for
        from fewscan.tiling import inferer

        return getattr(inferer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
