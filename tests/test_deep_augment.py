"""Crops and flips are those of a slow loop, and depend on seed, epoch and example alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from deep.augment import crop_and_flip, uniforms

MASK = 2**64 - 1
IMAGES = torch.randn(12, 3, 5, 7, generator=torch.Generator().manual_seed(0))
FILL = torch.tensor([-1.0, 0.5, 2.0])


def split_mix(counter):
    """SplitMix64 in Python's unbounded integers."""
    z = ((counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_split_mix_gives_its_published_first_outputs():
    """Of seed 0: the reference implementation's stream starts so."""
    assert [split_mix(k) for k in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize(("seed", "epoch", "sample"), [(0, 0, 0), (1, 2, 5), (2**40, 799, 49999)])
def test_uniforms_are_those_of_split_mix(seed, epoch, sample):
    key = split_mix(((split_mix((split_mix(seed) + epoch) & MASK)) + sample) & MASK)
    expected = [(split_mix((key + k) & MASK) >> 11) / 2**53 for k in range(3)]
    found = uniforms(torch.tensor([sample]), 3, seed=seed, epoch=epoch)
    assert found[:, 0].tolist() == expected


def test_uniforms_are_uniform_and_independent():
    """Kolmogorov–Smirnov and correlations over 20,000 examples, with neighbours and epochs too."""
    samples = torch.arange(20000)
    first = uniforms(samples, 3, seed=3, epoch=0).numpy()
    second = uniforms(samples, 3, seed=3, epoch=1).numpy()
    for row in (*first, *second):
        assert stats.kstest(row, "uniform").pvalue > 1e-4
    rows = np.stack([*first, *second, np.roll(first[0], 1)])
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 5 / np.sqrt(len(samples))


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (3, False), (0, True), (0, False)])
def test_crops_and_flips_are_those_of_a_loop(padding, flip):
    samples = torch.arange(12) * 7
    found = crop_and_flip(IMAGES, samples, 4, seed=1, padding=padding, flip=flip, fill=FILL)
    u = uniforms(samples, 3, seed=1, epoch=4)
    for k, image in enumerate(IMAGES):
        canvas = FILL[:, None, None].repeat(1, 5 + 2 * padding, 7 + 2 * padding)
        canvas[:, padding : padding + 5, padding : padding + 7] = image
        top, left = (int(u[axis, k] * (2 * padding + 1)) for axis in (0, 1))
        cut = canvas[:, top : top + 5, left : left + 7]
        expected = cut.flip(2) if flip and u[2, k] < 0.5 else cut
        assert torch.equal(found[k], expected)


def test_an_example_fares_alike_in_any_batch():
    samples = torch.tensor([5, 3, 8])
    options = {"seed": 1, "padding": 2, "flip": True, "fill": FILL}
    together = crop_and_flip(IMAGES[samples], samples, 0, **options)
    for k, sample in enumerate(samples):
        alone = crop_and_flip(IMAGES[sample, None], sample[None], 0, **options)
        assert torch.equal(together[k], alone[0])
    assert not torch.equal(together, crop_and_flip(IMAGES[samples], samples, 1, **options))
