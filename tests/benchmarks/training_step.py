"""What half precision and channels last are worth in a training step of the plans' U-Nets.

    python tests/benchmarks/training_step.py

Prints milliseconds of forward pass, loss, backward pass and AdamW, the median of interleaved rounds, and the ratio to
float32 with channels first.
"""

import argparse
import copy
import statistics
import time

import torch

from fewscan.networks import UNet, lay_out
from fewscan.training import SegmentationLoss
from fewscan.training.settings import NETWORK_DEF

BATCH, PATCH = 2, {2: (224, 224), 3: (40, 56, 40)}


class Step:
    """One way of training, ready to step again and again."""

    def __init__(self, network: torch.nn.Module, dims: int, last: bool, bfloat16: bool) -> None:
        network = copy.deepcopy(network)
        self.network = (lay_out(network) if last else network).train()
        self.optimizer, self.loss, self.bfloat16 = torch.optim.AdamW(network.parameters()), SegmentationLoss(), bfloat16
        shape = (BATCH, 1, *PATCH[dims])
        self.image, self.label = torch.randn(shape), torch.randint(0, 2, shape).float()

    def seconds(self) -> float:
        """Of one step."""
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(self.network(self.image), self.label)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"| U-Net, {torch.get_num_threads()} threads, ms (ratio) | channels first | channels last |\n|---|---|---|")
    for dims in (2, 3):
        network = UNet(dims, 1, 2, **NETWORK_DEF["unet"][dims])
        ways = {(last, half): Step(network, dims, last, half) for half in (False, True) for last in (False, True)}
        times = {way: [] for way in ways}
        for number in range(options.rounds + 2):
            for way, step in ways.items():
                taken = step.seconds()
                if number >= 2:  # the first ones choose and prepare
                    times[way].append(taken)
        median = {way: 1000 * statistics.median(taken) for way, taken in times.items()}
        patch = " x ".join(map(str, PATCH[dims]))
        for half in (False, True):
            shown = [median[last, half] for last in (False, True)]
            cells = " | ".join(f"{ms:.0f} ({ms / median[False, False]:.2f})" for ms in shown)
            print(f"| {dims}D, {BATCH} x {patch}, {'bfloat16' if half else 'float32'} | {cells} |")


if __name__ == "__main__":
    main()
