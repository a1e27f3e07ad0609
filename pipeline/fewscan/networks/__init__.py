"""The networks: torch only, no MONAI, no files but weights that one gives them."""

from fewscan.networks.fcn import FCN
from fewscan.networks.memory_layout import lay_out
from fewscan.networks.segnet import SegNet, SegNetBasic
from fewscan.networks.unet import UNet

__all__ = ["FCN", "SegNet", "SegNetBasic", "UNet", "lay_out"]
