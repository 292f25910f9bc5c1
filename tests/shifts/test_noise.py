"""Noise: the laws of the tables against the package, the draws against the laws, the words against SplitMix64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from imagecorruptions_oracle import load_imagecorruptions, synthetic_photo
from scipy import stats

from shifts.catalogue import apply_shift, find_shift
from shifts.image import noise
from shifts.image.random import fill_words, random_words

SEVERITIES = [1, 2, 3, 4, 5]
NOISES = ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"]
N_QUANTILES = 400
QUANTILES = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    return load_imagecorruptions()


def law(name: str, severity: int) -> np.ndarray:
    """The chance that level v (row) comes out as w (column), added up over the slots of the alias table."""
    table = getattr(noise, f"_{name.removesuffix('_noise')}_table")(severity).astype(np.int64)
    own, alias = table >> 8, table & 255
    chances = own.copy()
    np.add.at(chances, (np.arange(256)[:, np.newaxis], alias), 2**24 - own)
    assert (chances.sum(axis=1) == 2**32).all()
    return chances / 2**32


def every_level(count: int) -> np.ndarray:
    """An image whose row v holds `count` pixels of level v."""
    return np.repeat(np.arange(256, dtype=np.uint8), 3 * count).reshape(256, count, 3)


def frequencies(noisy: np.ndarray) -> np.ndarray:
    """How often each row of an `every_level` came out at each level."""
    rows = noisy.reshape(256, -1).astype(np.int64) + 256 * np.arange(256)[:, np.newaxis]
    return np.bincount(rows.ravel(), minlength=2**16).reshape(256, 256)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "speckle_noise"])
def test_the_law_is_the_package_fed_with_every_quantile(
    oracle: ModuleType, name: str, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def normal(size: tuple[int, ...], scale: float) -> np.ndarray:
        return np.broadcast_to(stats.norm.ppf(QUANTILES)[:, np.newaxis] * scale, size)

    def poisson(mean: np.ndarray) -> np.ndarray:
        counts = stats.poisson.ppf(QUANTILES, np.maximum(mean[:, :1, 0], 1e-300))
        return np.broadcast_to(counts[..., np.newaxis], mean.shape)

    monkeypatch.setattr("numpy.random.normal", normal)
    monkeypatch.setattr("numpy.random.poisson", poisson)
    noisy = oracle.corrupt(every_level(N_QUANTILES), severity, name)
    theirs = frequencies(noisy).cumsum(axis=1) / (3 * N_QUANTILES)
    assert np.abs(law(name, severity).cumsum(axis=1) - theirs).max() <= 1 / N_QUANTILES


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_law_of_impulses_is_the_package_s(
    oracle: ModuleType, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numpy.random.randint", lambda high: 7)
    count = 3000
    theirs = frequencies(oracle.corrupt(every_level(count // 3), severity, "impulse_noise"))
    ours = law("impulse_noise", severity)
    assert (theirs[ours == 0] == 0).all()
    deviation = (theirs - count * ours)[ours > 0] / np.sqrt(count * (ours * (1 - ours))[ours > 0])
    assert np.abs(deviation).max() < 5
    assert deviation.std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_normal_tails_are_exact_to_the_last_chance(severity: int) -> None:
    std = 255 * {1: 0.08, 2: 0.12, 3: 0.18, 4: 0.26, 5: 0.38}[severity]
    chances = law("gaussian_noise", severity)
    assert chances[0, 100:].sum() == pytest.approx(stats.norm.sf(100 / std), abs=2**-32)
    assert chances[200, 0] == pytest.approx(stats.norm.cdf(-199 / std), abs=2**-32)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", NOISES)
def test_draws_follow_the_law(name: str, severity: int) -> None:
    """Spread over the share of the law that each outcome has, the draws must be uniform, for every level alike."""
    n_bins, count = 12, 600
    noisy = apply_shift(find_shift(name), severity, every_level(count // 3), "levels", seed=0).reshape(256, count)
    chances, level = law(name, severity), np.arange(256)[:, np.newaxis]
    share = chances[level, noisy]
    assert share.min() > 0
    uniform = chances.cumsum(axis=1)[level, noisy] - share * np.random.default_rng(severity).random(noisy.shape)
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    bins = np.stack([np.histogram(row, n_bins, (0, 1))[0] for row in uniform])
    statistic = ((bins - count / n_bins) ** 2).sum() / (count / n_bins)
    assert 1e-3 < stats.chi2.cdf(statistic, 256 * (n_bins - 1)) < 1 - 1e-3


@pytest.mark.parametrize("name", NOISES)
def test_neighbours_and_channels_are_independent(name: str) -> None:
    grey = np.full((200, 201, 3), 120, np.uint8)
    noisy = apply_shift(find_shift(name), 5, grey, "grey", seed=0).ravel().astype(float)
    noisy = (noisy - noisy.mean()) / noisy.std()
    for lag in (1, 2, 3, 6, 201 * 3, 4095, 4096, 4097):
        assert abs((noisy[lag:] * noisy[:-lag]).mean()) < 5 / np.sqrt(noisy.size - lag)


def test_draws_go_on_from_block_to_block_whatever_the_size() -> None:
    shift = find_shift("gaussian_noise")
    large, small = (
        apply_shift(shift, 3, np.full((height, 41, 3), 120, np.uint8), "grey", 0).ravel() for height in (131, 73)
    )
    np.testing.assert_array_equal(large[: small.size], small)
    assert len({large[start : start + 64].tobytes() for start in range(0, large.size, 64)}) == -(-large.size // 64)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", NOISES)
def test_means_and_spreads_are_the_package_s(
    oracle: ModuleType, name: str, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs_rng = np.random.default_rng(severity)
    monkeypatch.setattr("numpy.random.normal", lambda size, scale: theirs_rng.normal(size=size, scale=scale))
    monkeypatch.setattr("numpy.random.poisson", theirs_rng.poisson)
    monkeypatch.setattr("numpy.random.randint", theirs_rng.integers)
    photos = [synthetic_photo(64, 64, seed) for seed in range(200)]
    ours = [apply_shift(find_shift(name), severity, photo, str(i), seed=0) for i, photo in enumerate(photos)]
    theirs = [oracle.corrupt(photo, severity, name) for photo in photos]
    for channel in range(3):
        (our_mean, our_std), (their_mean, their_std) = (
            (
                np.mean([noisy[..., channel] for noisy in all_noisy]),
                np.std([noisy[..., channel] for noisy in all_noisy]),
            )
            for all_noisy in (ours, theirs)
        )
        assert our_mean == pytest.approx(their_mean, abs=0.6)
        assert our_std == pytest.approx(their_std, abs=0.4)


@pytest.mark.parametrize("name", ["shot_noise", "speckle_noise"])
def test_black_stays_black_where_noise_comes_with_the_light(name: str) -> None:
    for severity in SEVERITIES:
        assert not apply_shift(find_shift(name), severity, np.zeros((64, 64, 3), np.uint8), "black", seed=0).any()


def test_words_are_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    words = np.empty(4, np.uint64)
    fill_words(np.uint64(1234567), 0, words)
    assert words.tolist() == published
    fill_words(np.uint64(1234567), 2, words[:2])
    assert words[:2].tolist() == published[2:]


def test_any_count_of_words_takes_as_much_from_the_generator() -> None:
    rngs = [np.random.Generator(np.random.Philox(3)) for _ in range(3)]
    none, odd, many = (random_words(rng, count) for rng, count in zip(rngs, (0, 7, 1000), strict=True))
    assert (none.size, odd.size, many.size) == (0, 7, 1000)
    np.testing.assert_array_equal(odd, many[:7])
    assert len({rng.integers(2**63) for rng in rngs}) == 1
    assert not np.array_equal(random_words(rngs[0], 7), odd)


def test_every_bit_of_a_word_is_fair() -> None:
    words = random_words(np.random.Generator(np.random.Philox(5)), 200_001)
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 32).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(words.size)
