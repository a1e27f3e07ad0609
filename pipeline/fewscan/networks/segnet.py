"""SegNet (Badrinarayanan, Kendall, Cipolla 2017), with dropout: Bayesian SegNet (Kendall et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from fewscan.networks.layers import (
    CONVOLUTION,
    NORM,
    POOL,
    Strides,
    cell_of,
    continue_to,
    cut,
    he_initialise,
    round_up,
    strides_by_axis,
)
from fewscan.networks.vgg import CONVOLUTIONS, VGG16, WIDTHS, load_vgg16


def unpool(x: Tensor, indices: Tensor, size: list[int]) -> Tensor:
    """Each maximum back to where the pooling of a (N, C, *size) map found it, zeros elsewhere.

    Equal to `torch.nn.functional.max_unpool2d` and `3d`, but written as a scatter: ONNX has no unpooling that
    takes the indices of one map.

    Args:
        x: (N, C, *pooled).
        indices: (N, C, *pooled), flat positions in the map before pooling.
        size: voxels of that map along each axis; odd ones are met too.
    """
    voxels = 1
    for n in size:
        voxels *= n
    shape = list(x.shape[:2])
    flat = x.new_zeros([shape[0], shape[1], voxels]).scatter(2, indices.flatten(2), x.flatten(2))
    return flat.reshape(shape + size)


class SegNet(nn.Module):
    """SegNet (Badrinarayanan et al. 2017, Fig. 2): VGG-16's 13 convolutions, mirrored by a decoder that unpools.

    (N, in_channels, *spatial) -> (N, classes, *spatial) logits, whatever the size, 2D and 3D. Each convolution is
    followed by batch norm and ReLU, but for the last. The decoder has no upsampling parameters: it puts the maxima
    back where the encoder's pooling of the same stage found them, and convolves.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        classes: classes, the background among them.
        widths: channels of VGG-16's five stages; fewer give a shallower network, which looks less far.
        strides: of each pooling, 1 or 2, for all axes or each.
        dropout: probability at the six central stages (behind the last three poolings, and behind the decoder
            stages that mirror them). Bayesian SegNet has 0.5, and leaves it on to sample answers.

    29,443,010 parameters for one channel and two classes (the 29,443,014 of a common implementation count a batch norm
    that it makes for the last convolution and never uses). Initialised as He et al. 2015; VGG-16's weights come by
    `load_vgg16`.

    Attributes:
        cell: voxels of one bottom cell along each axis.
        stride: the largest of `cell`, 32; a shift by this much shifts the answer exactly.
        halo: how far the answers in a cell look beyond it, rounded up to the stride: 192 voxels (the most of all axes).
        is_local: always; a voxel's answer depends on its surroundings only.
    """

    source = (
        "Badrinarayanan, Kendall, Cipolla 2017, SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image "
        "Segmentation, IEEE TPAMI, doi 10.1109/TPAMI.2016.2644615"
    )

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        classes: int,
        widths: Sequence[int] = WIDTHS,
        *,
        strides: Strides | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = VGG16(spatial_dims, in_channels, widths, norm="batch", strides=strides, indices=True)
        self.levels, self.is_local = len(widths), True
        self.cell = cell_of(self.encoder.strides)
        self.stride = max(self.cell)
        self.halo = _halo(self.encoder.strides, CONVOLUTIONS[: self.levels], reach=1)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.ModuleList()
        for number in reversed(range(self.levels)):
            outputs = [widths[number]] * (CONVOLUTIONS[number] - 1) + [widths[number - 1] if number else classes]
            layers: list[nn.Module] = []
            for inputs, width in zip([widths[number], *outputs], outputs):  # noqa: B905  one shorter
                layers.append(CONVOLUTION[spatial_dims](inputs, width, 3, padding=1))
                layers += [NORM["batch"][spatial_dims](width), nn.ReLU(inplace=True)]
            self.decoder.append(nn.Sequential(*(layers if number else layers[:-2])))
        self.decoder.apply(he_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) -> (N, classes, *spatial)."""
        size = list(x.shape[2:])
        x = continue_to(x, self.cell)
        indices: list[Tensor] = []
        sizes: list[list[int]] = []
        for level, (stage, pool) in enumerate(zip(self.encoder.stages, self.encoder.pools)):  # noqa: B905  TorchScript
            x = stage(x)
            sizes.append(list(x.shape[2:]))
            x, index = pool(x)
            indices.append(index)
            if level >= self.levels - 3:
                x = self.dropout(x)
        for level, stage in enumerate(self.decoder):
            x = stage(unpool(x, indices.pop(), sizes.pop()))
            if level < min(3, self.levels - 1):  # never the logits
                x = self.dropout(x)
        return cut(x, 0, size)

    def load_vgg16(self, file: str | Path) -> list[str]:
        """Start from a torchvision-style VGG-16 state dict (see `vgg.load_vgg16`); returns what was loaded."""
        load_vgg16(self.encoder, file)
        return ["encoder"]


class SegNetBasic(nn.Module):
    """SegNet-Basic (Badrinarayanan et al. 2017, Sec. 3.1): four levels of one 7x7 convolution each; the light one.

    (N, in_channels, *spatial) -> (N, classes, *spatial) logits, whatever the size, 2D and 3D. The encoder has
    convolution, batch norm, ReLU, pooling; the decoder unpools by the same stage's indices, then convolution and
    batch norm without ReLU; a 1x1 convolution classifies.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        classes: classes, the background among them.
        width: channels of all levels.
        strides: of each of the four poolings, 1 or 2, for all axes or each.

    1,409,730 parameters for one channel and two classes. Initialised as He et al. 2015.

    Attributes:
        cell: voxels of one bottom cell along each axis.
        stride: the largest of `cell`, 16; a shift by this much shifts the answer exactly.
        halo: how far the answers in a cell look beyond it, rounded up to the stride: 96 voxels (the most of all axes).
        is_local: always; a voxel's answer depends on its surroundings only.
    """

    source = SegNet.source

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        classes: int,
        width: int = 64,
        *,
        strides: Strides | None = None,
    ) -> None:
        super().__init__()
        pooled = strides_by_axis(strides, 4, spatial_dims)
        self.is_local, self.cell = True, cell_of(pooled)
        self.stride = max(self.cell)
        self.halo = _halo(pooled, (1,) * 4, reach=3)

        def block(inputs: int) -> list[nn.Module]:
            return [CONVOLUTION[spatial_dims](inputs, width, 7, padding=3), NORM["batch"][spatial_dims](width)]

        self.encoder = nn.ModuleList(
            nn.Sequential(*block(inputs), nn.ReLU(inplace=True)) for inputs in (in_channels, width, width, width)
        )
        self.pools = nn.ModuleList(POOL[spatial_dims](s, s, return_indices=True) for s in pooled)
        self.decoder = nn.ModuleList(nn.Sequential(*block(width)) for _ in pooled)
        self.head = CONVOLUTION[spatial_dims](width, classes, 1)
        self.apply(he_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) -> (N, classes, *spatial)."""
        size = list(x.shape[2:])
        x = continue_to(x, self.cell)
        indices: list[Tensor] = []
        sizes: list[list[int]] = []
        for stage, pool in zip(self.encoder, self.pools):  # noqa: B905  TorchScript knows no strict
            x = stage(x)
            sizes.append(list(x.shape[2:]))
            x, index = pool(x)
            indices.append(index)
        for stage in self.decoder:
            x = stage(unpool(x, indices.pop(), sizes.pop()))
        return cut(self.head(x), 0, size)


def _halo(strides: Sequence[Sequence[int]], convolutions: Sequence[int], *, reach: int) -> int:
    """Voxels that the answers in a bottom cell look beyond it, the most of all axes, rounded up to the stride.

    `reach` is how many voxels of its own map one convolution looks to each side; an unpooled voxel comes from its own
    cell. The way leads back from the answer: through the decoder down to the bottom, through the encoder up.
    """
    farthest = 0
    for along in zip(*strides, strict=True):
        cells = 0
        for stride, count in zip(along, convolutions, strict=True):
            cells = -(-(cells + reach * count) // stride)
        for stride, count in zip(reversed(along), reversed(convolutions), strict=True):
            cells = stride * cells + reach * count
        farthest = max(farthest, cells)
    return round_up(farthest, max(cell_of(strides)))
