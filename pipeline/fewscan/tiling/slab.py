"""The sums of blended patches, of which only the unfinished planes are held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, div, mul

from fewscan.tiling.layout import Layout
from fewscan.tiling.tiles import Box, inside, relative


class Slab:
    """Weighted means of patches that come in the order of an axis, the layout's.

    Its planes are a ring: as many as a patch has hold all that is unfinished, one more what the next cores begin with.

    Args:
        layout: of blended patches.
        answer: of a patch, (classes, *spatial); the sums have its type and are on its device.
    """

    def __init__(self, layout: Layout, answer: Tensor) -> None:
        assert layout.window is not None  # patches are blended
        self.shape, self.axis, self.window = layout.shape, layout.axis, layout.window.to(answer)
        self.depth = min(layout.read[self.axis] + 1, self.shape[self.axis])
        self.begun = 0  # the first plane that is held
        held = [self.depth if axis == self.axis else n for axis, n in enumerate(self.shape)]
        self.sums, self.weights = answer.new_zeros((len(answer), *held)), answer.new_zeros((1, *held))
        # product and sum in one step are faster, but MONAI rounds in between
        self.product = answer.new_empty(self.window.numel()) if layout.zeros else None

    def add(self, answer: Tensor, start: Sequence[int]) -> None:
        """One more patch, (classes, *spatial), whose first voxel is `start`; what is beyond the volume is left out."""
        box = inside([slice(s, s + n) for s, n in zip(start, answer.shape[1:], strict=True)], self.shape)
        own = relative(box, start)
        self._forget(start[self.axis] - 1)
        answer, window = answer[:, *own], self.window[None, *own]
        for held, run in self._runs(self.weights, box):
            held += window[run]
        for held, run in self._runs(self.sums, box):
            if self.product is None:
                held.addcmul_(answer[run], window[run])
                continue
            for sums, one in zip(held, answer[run], strict=True):  # by class: the product stays in the cache
                sums += mul(one, window[run][0], out=self.product[: one.numel()].view(one.shape))

    def mean(self, box: Box) -> Tensor:
        """(classes, *box) that no further patch reaches."""
        answer = self.sums.new_empty((len(self.sums), *(along.stop - along.start for along in box)))
        for (held, run), (weights, _) in zip(self._runs(self.sums, box), self._runs(self.weights, box), strict=True):
            div(held, weights, out=answer[run])
        return answer

    def _forget(self, begin: int) -> None:
        """Planes before `begin` make room."""
        if begin > self.begun:
            box = tuple(
                slice(self.begun, begin) if axis == self.axis else slice(0, n) for axis, n in enumerate(self.shape)
            )
            for sums in (self.sums, self.weights):
                for held, _ in self._runs(sums, box):
                    held.zero_()
            self.begun = begin

    def _runs(self, sums: Tensor, box: Box) -> Iterator[tuple[Tensor, Box]]:
        """What is held of a box, and where that lies in (channels, *box): in one run of planes, or in two."""
        along = box[self.axis]
        turn = along.start - along.start % self.depth + self.depth  # the plane that is first in the ring
        for start, stop in ((along.start, min(turn, along.stop)), (turn, along.stop)):
            if start < stop:
                held, run = [slice(None), *box], [slice(None)] * (len(box) + 1)
                held[self.axis + 1] = slice(start % self.depth, start % self.depth + stop - start)
                run[self.axis + 1] = slice(start - along.start, stop - along.start)
                yield sums[tuple(held)], tuple(run)
