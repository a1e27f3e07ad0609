"""Each change of intensities against SciPy or a closed form; how often each comes."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from fewscan.training import RandomIntensityd
from fewscan.training import intensity as module
from fewscan.training.intensity import (
    add_noise,
    blur,
    change_brightness,
    change_contrast,
    change_gamma,
    change_inverted_gamma,
    lower_resolution,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def image(shape=(40, 30), seed=0):
    return torch.from_numpy(rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("shape", [(40, 30), (9, 12, 7)])
def test_blur_is_scipys_gaussian_filter(shape):
    for seed in range(4):
        sd = rng(seed).uniform(0.5, 1.0)
        theirs = ndimage.gaussian_filter(image(shape).double().numpy(), sd, mode="nearest", radius=int(np.ceil(4 * sd)))
        np.testing.assert_allclose(blur(rng(seed), image(shape)).numpy(), theirs, atol=1e-6)


def test_noise_is_gaussian_of_the_drawn_spread():
    noise = add_noise(rng(4), image((200, 200))) - image((200, 200))
    random = rng(4)
    random.integers(2**63)
    assert float(noise.std()) == pytest.approx(random.uniform(0, 0.1), rel=0.02)
    assert abs(float(noise.mean())) < 1e-3


def test_brightness_and_contrast():
    factors = []
    for seed in range(200):
        brighter = change_brightness(rng(seed), image()) / image()
        factors.append(float(brighter[0, 0]))
        torch.testing.assert_close(brighter, torch.full_like(brighter, factors[-1]))
        before, after = image(), change_contrast(rng(seed), image())
        wanted = ((before - before.mean()) * factors[-1] + before.mean()).clamp(before.min(), before.max())
        torch.testing.assert_close(after, wanted)
    assert 0.75 <= min(factors) < 0.77 and 1.23 < max(factors) <= 1.25
    assert 80 < sum(factor < 1 for factor in factors) < 120


def test_gamma_keeps_mean_spread_and_order():
    for seed in range(10):
        before, after = image(), change_gamma(rng(seed), image())
        torch.testing.assert_close(after.mean(), before.mean(), rtol=0, atol=1e-5)
        torch.testing.assert_close(after.std(), before.std(), rtol=1e-4, atol=0)
        assert torch.equal(after.flatten().argsort(stable=True), before.flatten().argsort(stable=True))
        torch.testing.assert_close(change_inverted_gamma(rng(seed), image()), -change_gamma(rng(seed), -image()))
    ramp = torch.linspace(0, 1, 1001)[:, None]
    shares = (change_gamma(rng(1), ramp) - change_gamma(rng(1), ramp).min()).flatten()
    exponents = (shares[1:-1] / shares[-1]).log() / ramp[1:-1, 0].log()
    assert 0.7 <= float(exponents.mean()) <= 1.5 and float(exponents.std()) < 0.01  # one power for all


@pytest.mark.parametrize("shape", [(41, 31), (13, 11, 9)])
def test_low_resolution_goes_down_and_back(shape):
    """SciPy at the places of the coarse voxels' centres, nearest, then back at those of the fine ones, linear.

    Of odd sizes, so that no two voxels are equally near.
    """

    def sampled(values, size, order):
        centres = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(size, values.shape, strict=True)]
        places = np.stack(np.meshgrid(*centres, indexing="ij"))
        return ndimage.map_coordinates(values, places, order=order, mode="nearest")

    for seed in range(8):
        scale = rng(seed).uniform(0.5, 1.0)
        coarse = sampled(image(shape).double().numpy(), [round(n * scale) for n in shape], 0)
        np.testing.assert_allclose(lower_resolution(rng(seed), image(shape)), sampled(coarse, shape, 1), atol=3e-5)


def test_each_change_comes_as_often_as_it_says(monkeypatch):
    """Each change replaced by one that writes its own number, in a channel of its own."""
    seen = dict.fromkeys(module.PROBABILITY, 0)

    def counter(name):
        def count(random, channel):
            seen[name] += 1
            return channel

        return count

    monkeypatch.setattr(module, "_CHANGES", {name: counter(name) for name in seen})
    step = RandomIntensityd()
    for seed in range(1000):
        step.set_random_state(seed)({"image": torch.zeros(2, 3, 3)})
    for name, probability in module.PROBABILITY.items():
        channels = 1 if name in ("blur", "low_resolution") else 2  # of two: one by half
        assert seen[name] == pytest.approx(1000 * probability * channels, rel=0.2), name


def test_a_seed_repeats_and_the_input_stays():
    step, before = RandomIntensityd(), image((2, 20, 20))
    results = [step.set_random_state(seed)({"image": before, "label": 1})["image"] for seed in range(30)]
    again = [step.set_random_state(seed)({"image": before})["image"] for seed in range(30)]
    assert all(torch.equal(one, other) for one, other in zip(results, again, strict=True))
    assert sum(not torch.equal(one, before) for one in results) > 10
    assert torch.equal(before, image((2, 20, 20)))


def test_a_constant_channel_stays_finite():
    step = RandomIntensityd()
    for seed in range(40):
        changed = step.set_random_state(seed)({"image": torch.zeros(2, 5, 5)})["image"]
        assert torch.isfinite(changed).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", sorted(set(module.PROBABILITY) - {"noise"}))
def test_a_gpu_gives_what_the_cpu_gives(name):
    change = module._CHANGES[name]
    torch.testing.assert_close(change(rng(1), image().cuda()).cpu(), change(rng(1), image()), rtol=1e-4, atol=1e-5)
