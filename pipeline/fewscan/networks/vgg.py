"""VGG-16's convolutions (Simonyan, Zisserman 2015, configuration D): the encoder that FCN and SegNet share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from fewscan.errors import FewscanError
from fewscan.networks.layers import CONVOLUTION, NORM, POOL, Strides, he_initialise, strides_by_axis

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five stages."""

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Convolutions of the five stages."""


class VGG16(nn.Module):
    """The 13 convolutions 3x3 + ReLU of VGG-16 in five stages, and the max pooling behind each.

    It is no network by itself: FCN and SegNet call `stages[i]`, then `pools[i]`. Fewer than five widths give the
    first stages.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        widths: channels of each stage.
        norm: "batch" between convolution and ReLU, or None as published.
        strides: of each pooling; 2 everywhere by default.
        first_padding: of the very first convolution (FCN: 100).
        ceil: whether a pooling keeps an incomplete cell at the end.
        indices: whether a pooling also returns where its maxima lay (SegNet).
    """

    source = "Simonyan, Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        widths: Sequence[int] = WIDTHS,
        *,
        norm: str | None = None,
        strides: Strides | None = None,
        first_padding: int = 1,
        ceil: bool = False,
        indices: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= len(widths) <= len(WIDTHS):
            raise ValueError(f"widths needs one to five stages, not {list(widths)}")
        if norm not in (None, "batch"):
            raise ValueError(f'norm has to be "batch" or None, not {norm!r}')
        self.strides = strides_by_axis(strides, len(widths), spatial_dims)
        self.stages, self.pools = nn.ModuleList(), nn.ModuleList()
        inputs = in_channels
        for number, (width, stride) in enumerate(zip(widths, self.strides, strict=True)):
            layers: list[nn.Module] = []
            for _ in range(CONVOLUTIONS[number]):
                first = number == 0 and not layers
                layers.append(CONVOLUTION[spatial_dims](inputs, width, 3, padding=first_padding if first else 1))
                if norm is not None:
                    layers.append(NORM[norm][spatial_dims](width))
                layers.append(nn.ReLU(inplace=True))
                inputs = width
            self.stages.append(nn.Sequential(*layers))
            self.pools.append(POOL[spatial_dims](stride, stride, ceil_mode=ceil, return_indices=indices))
        self.apply(he_initialise)


def load_vgg16(encoder: VGG16, file: str | Path) -> dict[str, Tensor]:
    """Copy a torchvision-style VGG-16 or VGG-16-bn state dict from a file into a 2D encoder of the same widths.

    An encoder of one channel gets the sum over the three colours: it answers to a grey image what VGG-16 answers to
    that image in all three. With batch norm, an encoder also takes a file without it, and keeps its own statistics.
    Nothing is changed if anything does not fit. The file is read as weights only.

    Returns:
        The file's state dict.

    Raises:
        FewscanError: the layers of the file and the encoder disagree, or the encoder has neither 1 nor 3 channels.
    """
    name, state = Path(file).name, _read(file)
    numbers = sorted({int(key.split(".")[1]) for key in state if key.startswith("features.")})
    filters = [n for n in numbers if state[f"features.{n}.weight"].ndim > 1]
    norms = [n for n in numbers if state[f"features.{n}.weight"].ndim == 1]
    ours = [m for m in encoder.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    our_norms = [m for m in encoder.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
    if len(filters) != sum(CONVOLUTIONS) or len(norms) not in (0, len(filters)):
        raise FewscanError(
            f"{name} has {len(filters)} convolutions and {len(norms)} batch norms under `features.N`, "
            f"but VGG-16 has {sum(CONVOLUTIONS)} and 0, or as many"
        )
    if norms and not our_norms:
        raise FewscanError(
            f'{name} is a VGG-16 with batch norm; build the network with norm="batch", or take one without'
        )
    copies: list[tuple[str, Tensor, Tensor]] = []
    for number, layer in zip(filters, ours):  # noqa: B905  a shorter encoder takes the first
        weight = state[f"features.{number}.weight"]
        if layer is ours[0] and weight.shape[1:2] == (3,):
            if layer.in_channels not in (1, 3):
                raise FewscanError(
                    f"{name} sees three colours, the network {layer.in_channels} channels; only networks of 1 channel "
                    "(the sum over the colours) or 3 can start from it"
                )
            weight = weight.sum(1, keepdim=True) if layer.in_channels == 1 else weight
        copies.append((f"features.{number}.weight", weight, layer.weight))
        assert layer.bias is not None  # as in `VGG16`
        copies.append((f"features.{number}.bias", state[f"features.{number}.bias"], layer.bias))
    for number, norm in zip(norms, our_norms):  # noqa: B905
        for part in ("weight", "bias", "running_mean", "running_var"):
            copies.append((f"features.{number}.{part}", state[f"features.{number}.{part}"], getattr(norm, part)))
    for key, source, target in copies:
        if source.shape != target.shape:
            raise FewscanError(
                f"{name}: {key} is {tuple(source.shape)}, the network's {tuple(target.shape)}; only a 2D network of "
                "the file's widths can start from it"
            )
    with torch.no_grad():
        for _, source, target in copies:
            target.copy_(source)
    return state


def _read(file: str | Path) -> dict[str, Tensor]:
    name = Path(file).name
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError) as problem:
        raise FewscanError(f"{name} cannot be read as weights alone; save the state dict of a VGG-16") from problem
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FewscanError(f"{name} holds no state dict (names and tensors); save one of a VGG-16 alone")
    return state
