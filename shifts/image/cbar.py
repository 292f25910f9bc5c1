"""The ten corruptions of ImageNet-C-bar: noise of many kinds, flares, water and holes, chosen to be unlike ImageNet-C.

The original is written for squares of one size. Here what it measures in that size is measured in the shorter side,
what it draws from the square is drawn from the whole image, and what it states in pixels stays in pixels (but for the
water's slope and softness and a flare's least radius, which follow the shorter side), so that at 224 x 224 every
parameter is the published one. Its levels run from 0 to 10; each corruption has five of its own.

Source: Mintun, Kirillov and Xie, arXiv 2102.11273; formulae, draws and levels as in imagenet_c_bar of
facebookresearch/augmentation-corruption (`corrupt.py`, `imagenet_c_bar.csv`).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from jaxtyping import Bool, Complex128, Float32, Float64, Int64, UInt8
from numba import njit
from scipy.fft import fftfreq, irfft2, rfftfreq
from scipy.ndimage import gaussian_filter

_PUBLISHED_PX = 224

_BLUE_NOISE_LEVELS = (0.8, 1.6, 2.4, 4.0, 5.6)
_BROWNISH_LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
_CAUSTIC_LEVELS = (2.35, 3.2, 4.9, 6.6, 9.15)
_CHECKERBOARD_LEVELS = (2.0, 3.0, 4.0, 5.0, 6.0)
_WAVES_LEVELS = (3.0, 5.0, 8.0, 9.0, 10.0)
_INVERSE_SPARKLES_LEVELS = (1.0, 2.0, 4.0, 9.0, 10.0)
_PERLIN_LEVELS = (4.6, 5.2, 5.8, 7.6, 8.8)
_PLASMA_LEVELS = (4.75, 7.0, 8.5, 9.25, 10.0)
_GRATING_LEVELS = (1.0, 1.5, 2.0, 4.5, 5.0)
_SPARKLES_LEVELS = (1.0, 2.0, 3.0, 5.0, 6.0)

_N_PHASES = 2**16
_N_CAUSTIC_STEPS = 5
_REFRACTIVE_INDEX = 4.0
_UPRIGHT_COSINE = 0.999
_N_SPARKLES = 5
_RAY_SPREAD = 0.25
_N_GRADIENTS = 256
_N_OCTAVES = 5
_ROUND_TO_INTEGER = 1.5 * 2**52


def blue_noise_sample(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with scattered pixels turned black: 1, 2, 4, 10 and 21 % of them, kept apart by blue noise.

    A pixel goes where normal noise, whose amplitude rises in proportion to the frequency, is below a threshold. In
    float64, as nothing after the comparison would hide a rounding error.

    Source: arXiv 2102.11273, `BlueNoiseSample` of the original; phases as in `_spectral_noise`.
    """
    height, width = pixels.shape[:2]
    noise = _spectral_noise(_frequencies(height, width), width, rng)
    return pixels * (noise > 0.3 * _BLUE_NOISE_LEVELS[severity - 1] - 2.5)[..., np.newaxis]


def brownish_noise(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with large coloured blotches: normal noise of amplitude 1 / (f^2 + 1), f in cycles per shorter side.

    Its mean is drawn along with the rest, so that the colour of the whole image shifts too.

    Source: arXiv 2102.11273, `BrownishNoise` of the original; phases as in `_spectral_noise`.
    """
    height, width = pixels.shape[:2]
    amplitudes = 1 / ((_frequencies(height, width) * min(height, width)) ** 2 + 1)
    layer = np.empty(pixels.shape, np.float32)
    for channel in range(3):
        layer[..., channel] = _spectral_noise(amplitudes, width, rng)
    layer *= 6.4 * _BROWNISH_LEVELS[severity - 1]
    return _laid_over(pixels, layer)


def caustic_refraction(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image seen through moving water: displaced and lit by the slope of a pattern of caustics.

    The slope is taken per 1/224 of the shorter side, where the original takes it per pixel: otherwise the water would
    be calmer on larger images. Beyond the border the pattern is 0 and the image black, as in the original.

    Source: arXiv 2102.11273, `CausticRefraction` of the original; its refraction worked out by hand for light that
    comes from straight above.
    """
    level = _CAUSTIC_LEVELS[severity - 1]
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    time, relative_size = rng.uniform(0.5, 2.0), rng.uniform(0.75, 1.25)
    unit_px = shorter / _PUBLISHED_PX
    brightness = (1.17 - (_caustic_sum(height, width, relative_size * shorter, time) / 5) ** 1.4) ** 8
    pattern = np.pad(gaussian_filter(np.minimum(brightness, 1), unit_px), 1) * unit_px
    # A copy, as numba would compile anew for pixels that may not be written to.
    return _refracted(np.array(pixels, order="C"), pattern, 0.05 * level * shorter, 0.2 * level * 255)


def checkerboard_cutout(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with squares of a turned checkerboard in grey: 20, 30, 40, 50 and 60 % of those of one colour.

    The squares have 0.1 to 0.25 of the shorter side. Which of them are cut repeats after four shorter sides.

    Source: arXiv 2102.11273, `CheckerBoardCutOut` of the original.
    """
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    square_px, angle = rng.uniform(0.1, 0.25) * shorter, rng.uniform(0, 2 * math.pi)
    side = int(4 * shorter // square_px)
    chosen = rng.uniform(size=(side, side)) < 0.1 * _CHECKERBOARD_LEVELS[severity - 1]
    cut = _chosen_squares(height, width, angle, square_px, chosen)
    return np.where(cut[..., np.newaxis], np.uint8(128), pixels)


def cocentric_sine_waves(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with rings around a random centre laid over it: wavy circles, each a ramp from dark to bright.

    Source: arXiv 2102.11273, `CocentricSineWaves` of the original, its spelling included.
    """
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
    n_lobes, amplitude_px = rng.uniform(0, 10), rng.uniform(0, shorter / 10)
    ring_px = (1 - rng.uniform()) * shorter / 10
    y, x = np.arange(height)[:, np.newaxis] - centre_y, np.arange(width) - centre_x
    radii = np.sqrt(x**2 + y**2) + np.sin(np.arctan2(x, y) * n_lobes) * amplitude_px
    rings = radii / ring_px
    rings -= np.floor(rings) + 0.5
    return _laid_over(pixels, 12.8 * _WAVES_LEVELS[severity - 1] * rings)


def inverse_sparkles(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image faded to white outside a star in its middle, the faster the higher the severity.

    Source: arXiv 2102.11273, `InverseSparkles` of the original.
    """
    height, width = pixels.shape[:2]
    centre = rng.uniform(0.25, 0.75, 2) * (height, width)
    rays = _ray_lengths(0.25 * min(height, width), int(rng.integers(50, 200)), rng)
    star = _star(height, width, centre, rays, 0.13 * _INVERSE_SPARKLES_LEVELS[severity - 1])
    return _whitened(pixels, star)


def perlin_noise(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image mixed with grey clouds: five octaves of Perlin's turbulence, the coarsest 1/7 of the shorter side.

    Source: arXiv 2102.11273, `PerlinNoise` of the original.
    """
    height, width = pixels.shape[:2]
    share = 0.05 * _PERLIN_LEVELS[severity - 1]
    order = rng.permutation(_N_GRADIENTS)
    gradients = rng.integers(-_N_GRADIENTS, _N_GRADIENTS, (_N_GRADIENTS, 2)).astype(np.float64)
    gradients /= np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1)
    clouds = _turbulence(height, width, min(height, width) / 7, order, gradients)
    return _laid_over(pixels, 255 * share * np.minimum(0.5 * clouds + 0.5, 1), share)


def plasma_noise(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with swirls of all colours: sines of coordinates that were bent four to six times by sines.

    Source: arXiv 2102.11273, `PlasmaNoise` of the original.
    """
    height, width = pixels.shape[:2]
    strength = 6.4 * _PLASMA_LEVELS[severity - 1]
    time, n_steps, sharpness = rng.uniform(0, 6 * math.pi), int(rng.integers(4, 7)), rng.uniform(0.5, 1)
    scale_px = rng.uniform(0.075, 0.2) * min(height, width)
    swirls = _swirls(height, width, scale_px, time, n_steps, sharpness)
    swirls *= strength
    return _laid_over(pixels, swirls, strength / 255)


def single_frequency_greyscale(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with one grey sine grating laid over it, of any direction and any frequency that pixels can show.

    Source: arXiv 2102.11273, `SingleFrequencyGreyscale` of the original.
    """
    height, width = pixels.shape[:2]
    larger = rng.uniform(-math.pi, math.pi)
    x_step, y_step = rng.permutation([larger, rng.uniform(-abs(larger), abs(larger))])
    x_angles = np.arange(width) * x_step + rng.uniform(0, 2 * math.pi)
    y_angles = np.arange(height)[:, np.newaxis] * y_step
    grating = np.sin(x_angles) * np.cos(y_angles) + np.cos(x_angles) * np.sin(y_angles)
    return _laid_over(pixels, 19.6 * _GRATING_LEVELS[severity - 1] * grating)


def sparkles(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with five white flares of 50 to 199 rays; a radius is 0.01 to 0.06 of the shorter side.

    Source: arXiv 2102.11273, `Sparkles` of the original.
    """
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    centres = rng.uniform(size=(_N_SPARKLES, 2)) * (height, width)
    kept = np.ones((height, width))
    for centre, n_rays in zip(centres, rng.integers(50, 200, _N_SPARKLES), strict=True):
        rays = _ray_lengths(0.01 * _SPARKLES_LEVELS[severity - 1] * shorter, int(n_rays), rng)
        kept *= 1 - _star(height, width, centre, np.maximum(rays, shorter / _PUBLISHED_PX), 1.0)
    return _whitened(pixels, kept)


def _laid_over(
    pixels: UInt8[np.ndarray, "height width 3"], layer: np.ndarray, share: float = 0.0
) -> UInt8[np.ndarray, "height width 3"]:
    """The image, darkened by `share`, plus a layer in levels, clipped and truncated.

    Args:
        layer: (height, width) for all channels or (height, width, 3).
    """
    mixed = pixels * np.float32(1 - share)
    mixed += layer[..., np.newaxis] if layer.ndim == 2 else layer
    np.clip(mixed, 0, 255, out=mixed)
    return mixed.astype(np.uint8)


def _whitened(
    pixels: UInt8[np.ndarray, "height width 3"], kept: Float64[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image where `kept` is 1, white where it is 0; truncated, which cannot darken a pixel."""
    darkness = (255 - pixels).astype(np.float32)
    darkness *= kept[..., np.newaxis].astype(np.float32)
    return (255 - darkness).astype(np.uint8)


def _frequencies(height: int, width: int) -> Float64[np.ndarray, "height half_width"]:
    """The frequency of each value that `irfft2` takes, in cycles per pixel."""
    frequencies: np.ndarray = np.hypot(fftfreq(height)[:, np.newaxis], rfftfreq(width))
    return frequencies


def _spectral_noise(
    amplitudes: Float64[np.ndarray, "height half_width"], width: int, rng: np.random.Generator
) -> Float64[np.ndarray, "height width"]:
    """Normal noise of that spectrum, standard deviation 1, with a mean of its own.

    It is the real part of a sum of complex waves of random phase, one for each frequency of the whole plane. The
    original mirrors the phases of one half, about a point half a step off, so that its noise repeats itself mirrored
    in parts of the image; here all are independent.
    """
    spectrum = _random_phasors(amplitudes.shape, rng)
    # Outermost columns are their own mirror images: of those, irfft2 takes the real part itself.
    inner = slice(1, (width + 1) // 2)
    spectrum[:, inner] += _random_phasors(amplitudes[:, inner].shape, rng).conj()
    spectrum[:, inner] /= 2
    spectrum *= amplitudes
    noise: np.ndarray = irfft2(spectrum, (len(amplitudes), width), overwrite_x=True)
    noise /= noise.std()
    return noise


def _random_phasors(shape: tuple[int, ...], rng: np.random.Generator) -> Complex128[np.ndarray, "height n_columns"]:
    """Complex numbers of length 1, looked up: an exponential each would cost more than the Fourier transform."""
    phasors: np.ndarray = _phasors()[rng.integers(0, _N_PHASES, shape, dtype=np.uint16)]
    return phasors


@cache
def _phasors() -> Complex128[np.ndarray, " n_phases"]:
    phasors: np.ndarray = np.exp(2j * math.pi * np.arange(_N_PHASES) / _N_PHASES)
    return phasors


def _chosen_squares(
    height: int, width: int, angle: float, square_px: float, chosen: Bool[np.ndarray, "side side"]
) -> Bool[np.ndarray, "height width"]:
    """Where a square of the checkerboard's first colour is chosen; squares beside the axes share their choice."""
    y, x = np.arange(height)[:, np.newaxis] / square_px, np.arange(width) / square_px
    down, right = math.cos(angle) * y + math.sin(angle) * x, math.cos(angle) * x - math.sin(angle) * y
    first_colour = (np.floor(down) + np.floor(right)) % 2 == 0
    # Truncated, not floored: the original's choice for the squares around the corner.
    cut: np.ndarray = chosen[down.astype(np.int64) % len(chosen), right.astype(np.int64) % len(chosen)]
    cut &= first_colour
    return cut


def _ray_lengths(radius_px: float, n_rays: int, rng: np.random.Generator) -> Float64[np.ndarray, " n_rays"]:
    lengths: np.ndarray = radius_px * (1 + _RAY_SPREAD * rng.standard_normal(n_rays))
    return lengths


@njit(cache=True, nogil=True, error_model="numpy")
def _angle(y: float, x: float) -> float:
    """As `math.atan2`, to 1e-7 and three times as fast.

    Source: the polynomial is 4.4.49 of Abramowitz and Stegun, Handbook of Mathematical Functions.
    """
    smaller, larger = min(abs(x), abs(y)), max(abs(x), abs(y))
    ratio = smaller / (larger + 1e-30)
    square = ratio * ratio
    series = 0.0028662257 * square - 0.0161657367
    series = series * square + 0.0429096138
    series = series * square - 0.0752896400
    series = series * square + 0.1065626393
    series = series * square - 0.1420889944
    series = series * square + 0.1999355085
    series = series * square - 0.3333314528
    angle = ratio + ratio * square * series
    if abs(y) > abs(x):
        angle = math.pi / 2 - angle
    if x < 0:
        angle = math.pi - angle
    return -angle if y < 0 else angle


@njit(cache=True, nogil=True, error_model="numpy")
def _star(
    height: int,
    width: int,
    centre: Float64[np.ndarray, " 2"],
    rays: Float64[np.ndarray, " n_rays"],
    power: float,
) -> Float64[np.ndarray, "height width"]:
    """1 in the middle of a star, falling off outwards as the distance to -2 `power`."""
    star = np.empty((height, width))
    n_rays = len(rays)
    for y in range(height):
        down = y - centre[0]
        for x in range(width):
            right = x - centre[1]
            turn = (_angle(right, down) + math.pi) / (2 * math.pi) * n_rays
            ray = int(turn)
            between = turn - ray
            ray = ray if ray < n_rays else 0
            following = ray + 1 if ray + 1 < n_rays else 0
            length = rays[ray] + between * (rays[following] - rays[ray])
            glow = length * length / (right * right + down * down + 1e-4)
            if power != 1:
                glow = glow**power
            star[y, x] = min((1 - (between - 0.5) ** 2) * glow, 1)
    return star


@njit(cache=True, nogil=True)
def _turbulence(
    height: int,
    width: int,
    cell_px: float,
    order: Int64[np.ndarray, " 256"],
    gradients: Float64[np.ndarray, "256 2"],
) -> Float64[np.ndarray, "height width"]:
    """The absolute values of octaves of Perlin's gradient noise, summed, each at half the weight of the one before."""
    total = np.zeros((height, width))
    for octave in range(_N_OCTAVES):
        scale = 2.0**octave
        for y in range(height):
            down = scale * y / cell_px
            top = int(down)
            down -= top
            down_weight = down * down * (3 - 2 * down)
            upper, lower = order[top & 255], order[(top + 1) & 255]
            for x in range(width):
                right = scale * x / cell_px
                left = int(right)
                right -= left
                right_weight = right * right * (3 - 2 * right)
                corner = order[(upper + left) & 255]
                upper_left = down * gradients[corner, 0] + right * gradients[corner, 1]
                corner = order[(lower + left) & 255]
                lower_left = (down - 1) * gradients[corner, 0] + right * gradients[corner, 1]
                corner = order[(upper + left + 1) & 255]
                upper_right = down * gradients[corner, 0] + (right - 1) * gradients[corner, 1]
                corner = order[(lower + left + 1) & 255]
                lower_right = (down - 1) * gradients[corner, 0] + (right - 1) * gradients[corner, 1]
                at_left = upper_left + down_weight * (lower_left - upper_left)
                at_right = upper_right + down_weight * (lower_right - upper_right)
                total[y, x] += abs(1.5 * (at_left + right_weight * (at_right - at_left))) / scale
    return total


@njit(cache=True, nogil=True)
def _sine(angle: float) -> float:
    """The sine to 1e-11, of sums and products alone: loops over it are vectorised, and no processor's differs."""
    half_turns = (angle * (1 / math.pi) + _ROUND_TO_INTEGER) - _ROUND_TO_INTEGER
    half_of_them = 0.5 * half_turns
    odd = half_of_them - ((half_of_them + _ROUND_TO_INTEGER) - _ROUND_TO_INTEGER)
    rest = angle - half_turns * math.pi
    square = rest * rest
    series = 1 - square * (1 / 210)
    series = 1 - square * (1 / 156) * series
    series = 1 - square * (1 / 110) * series
    series = 1 - square * (1 / 72) * series
    series = 1 - square * (1 / 42) * series
    series = 1 - square * (1 / 20) * series
    series = 1 - square * (1 / 6) * series
    return (1 - 4 * abs(odd)) * rest * series


@njit(cache=True, nogil=True)
def _swirls(
    height: int, width: int, scale_px: float, time: float, n_steps: int, sharpness: float
) -> Float32[np.ndarray, "height width 3"]:
    """Red, green and blue in [-1, 1]: coordinates bent `n_steps` times, ever finer, then their sines."""
    swirls = np.empty((height, width, 3), np.float32)
    xs, ys = np.empty(width), np.empty(width)
    quarter = math.pi / 2
    for row in range(height):
        for column in range(width):
            xs[column] = column / scale_px
            ys[column] = row / scale_px
        frequency, delay, calm = 1.0, time, 1.0
        for _ in range(n_steps):
            for column in range(width):
                x, y = xs[column], ys[column]
                a = _sine(y * frequency + delay + quarter) / calm
                b = _sine(x * frequency + delay) / calm
                xs[column] = x + (a - 0.3 * b)
                ys[column] = y + (b + 0.3 * a)
            frequency, delay, calm = frequency * 1.93, delay / 1.15, calm * (2.25 - sharpness)
        for column in range(width):
            x, y = xs[column], ys[column]
            swirls[row, column, 0] = _sine(x - time)
            swirls[row, column, 1] = _sine((x + y + math.sin(time)) * 0.5)
            swirls[row, column, 2] = _sine(y + time)
    return swirls


@njit(cache=True, nogil=True, error_model="numpy")
def _caustic_sum(height: int, width: int, size_px: float, time: float) -> Float64[np.ndarray, "height width"]:
    """The sum, from 1 up, of a caustic shader's steps: each bends the coordinates of the one before by sines.

    Args:
        size_px: the period of the pattern.
        time: at which the moving pattern is seen.
    """
    total = np.ones((height, width))
    quarter = math.pi / 2
    across = np.empty(width)
    for x in range(width):
        across[x] = x / size_px % 1 * (2 * math.pi) - 250
    rights = np.empty(width)
    downs = np.empty(width)
    for y in range(height):
        along = y / size_px % 1 * (2 * math.pi) - 250
        for x in range(width):
            downs[x] = along
            rights[x] = across[x]
        for step in range(_N_CAUSTIC_STEPS):
            t = time * (1 - 3.5 / (step + 1))
            for x in range(width):
                a, b = downs[x], rights[x]
                down = along + _sine(t - a + quarter) + _sine(t + b)
                right = across[x] + _sine(t - b) + _sine(t + a + quarter)
                i = along / _sine(down + t)
                j = across[x] / _sine(right + t + quarter)
                total[y, x] += 200 / math.sqrt(i * i + j * j)
                downs[x] = down
                rights[x] = right
    return total


@njit(cache=True, nogil=True)
def _refracted(
    pixels: UInt8[np.ndarray, "height width 3"],
    pattern: Float64[np.ndarray, "height_plus_2 width_plus_2"],
    depth_px: float,
    light: float,
) -> UInt8[np.ndarray, "height width 3"]:
    """Each pixel from where a ray from above, bent by the slope of the pattern, meets the image; lit by that slope.

    With the surface's normal at angle a to the ray and sin b = sin a / 4, the ray moves by sin(a - b) of the depth;
    where cos a >= 0.999, by nothing.

    Args:
        pattern: with a border of one pixel all round.
        depth_px: from the surface to the image.
        light: levels per unit of slope.
    """
    height, width, _ = pixels.shape
    out = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            down = pattern[y + 2, x + 1] - pattern[y, x + 1]
            right = pattern[y + 1, x + 2] - pattern[y + 1, x]
            cosine = 1 / math.sqrt(down * down + right * right + 1)
            shift = 0.0
            if cosine < _UPRIGHT_COSINE:
                sine_b = math.sqrt(1 - cosine * cosine) / _REFRACTIVE_INDEX
                shift = depth_px * cosine * (math.sqrt(1 - sine_b * sine_b) - cosine / _REFRACTIVE_INDEX)
            from_y, from_x = y + shift * down, x + shift * right
            top, left = math.floor(from_y), math.floor(from_x)
            lower, righter = from_y - top, from_x - left
            glint = light * (down - right)
            for channel in range(3):
                level = 0.0
                for i in range(2):
                    for j in range(2):
                        if 0 <= top + i < height and 0 <= left + j < width:
                            weight = abs(1 - i - lower) * abs(1 - j - righter)
                            level += weight * pixels[top + i, left + j, channel]
                out[y, x, channel] = int(min(max(level + glint, 0), 255))
    return out
