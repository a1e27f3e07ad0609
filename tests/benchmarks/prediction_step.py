"""What half precision and channels last are worth in a forward pass of U-Nets, and how far the answers lie apart.

    python tests/benchmarks/prediction_step.py [--device cuda:0]

Prints milliseconds, the median of interleaved rounds, the ratio to float32 with channels first (on a GPU in TF32, as
cuDNN takes it by default), and against that answer the largest difference of logits, of the largest |logit|, and the
share of voxels with another label. Weights are random.
"""

import argparse
import copy
import statistics
import time

import torch

from fewscan.networks import UNet, lay_out

SHAPES = {
    "cpu": {2: (1, 1, 512, 512), 3: (1, 1, 96, 96, 96)},
    "cuda": {2: (16, 1, 512, 512), 3: (1, 1, 192, 256, 256)},
}
WIDTHS = {2: [(32, 64, 128, 256)], 3: [(16, 32, 64, 128), (32, 64, 128, 256)]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    on_gpu = options.device.type == "cuda"
    print(torch.cuda.get_device_name(options.device) if on_gpu else f"{torch.get_num_threads()} thread(s)")
    print("| U-Net | | channels | ms (ratio) | Mvoxel/s | logits apart | labels unlike |\n" + "|---" * 7 + "|")
    for dims, widths in [(axes, each) for axes, several in WIDTHS.items() for each in several]:
        torch.manual_seed(0)
        first = UNet(dims, 1, 3, widths).to(options.device).eval()
        networks = {"first": first, "last": lay_out(copy.deepcopy(first))}
        image = torch.randn(SHAPES[options.device.type][dims], device=options.device)
        precisions = [None, torch.float16, torch.bfloat16] if on_gpu else [None]
        ways = [(precision, channels) for precision in precisions for channels in networks]
        answers, times = {}, {way: [] for way in ways}
        with torch.inference_mode():
            for number in range(options.rounds + 2):
                for way in ways:
                    taken, answers[way] = seconds(networks[way[1]], image, way[0])
                    if number >= 2:  # the first ones choose and prepare
                        times[way].append(taken)
        median = {way: statistics.median(taken) for way, taken in times.items()}
        truth = answers[ways[0]]
        for precision, channels in ways:
            way = (precision, channels)
            apart = float((answers[way] - truth).abs().max() / truth.abs().max())
            unlike = float((answers[way].argmax(1) != truth.argmax(1)).float().mean())
            print(
                f"| {dims}D, {widths[0]} to {widths[-1]} channels | {str(precision or torch.float32)[6:]} | {channels} "
                f"| {1000 * median[way]:.1f} ({median[way] / median[ways[0]]:.2f}) "
                f"| {image.numel() / median[way] / 1e6:.1f} | {apart:.1e} | {unlike:.1e} |",
                flush=True,
            )


def seconds(network: torch.nn.Module, image: torch.Tensor, precision: torch.dtype | None) -> tuple[float, torch.Tensor]:
    """Of one pass, and its answer in float32."""
    wait = torch.cuda.synchronize if image.is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    with torch.autocast(image.device.type, precision, enabled=precision is not None):
        answer = network(image)
    wait()
    return time.perf_counter() - started, answer.float()


if __name__ == "__main__":
    main()
