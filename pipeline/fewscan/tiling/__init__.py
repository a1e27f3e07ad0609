"""Prediction in tiles: integer geometry, and the inferer that a bundle names."""

from typing import TYPE_CHECKING, Any

from fewscan.tiling.tiles import Tile, blend_tiles, exact_tiles, mirror

if TYPE_CHECKING:
    from fewscan.tiling.inferer import OverlapTileInferer, prepare_batch_of

BACKENDS = ("auto", "eager", "openvino")
"""What may run a network, see `fewscan.tiling.backend`."""

__all__ = ["BACKENDS", "OverlapTileInferer", "Tile", "blend_tiles", "exact_tiles", "mirror", "prepare_batch_of"]


def __getattr__(name: str) -> Any:
    if name in ("OverlapTileInferer", "prepare_batch_of"):  # MONAI is loaded only where the inferer is asked for
        from fewscan.tiling import inferer

        return getattr(inferer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
