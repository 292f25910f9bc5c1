"use strict";
// The paired bootstrap of bench/stats.py with the same resamples of images, so that a page gives the intervals and
// p-values that `rove compare` gives. NumPy draws the images with Philox4x64-10 and Lemire's bounded integers: both are
// written here in 32-bit words, because BigInt is too slow for ten million draws.
// Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011); Lemire, arXiv 1805.10941.
{
  const N_RESAMPLES = 10_000;
  const TAILS = [0.025, 0.975];
  const TWO_32 = 2 ** 32;
  const EXACT_BITS = 53;
  const SLICE_MS = 30;

  const ROUNDS = 10;
  // 64-bit constants: two multipliers, and what is added to each half of the key after a round.
  const [FIRST_LOW, FIRST_HIGH] = [0xe14c6c93, 0xd2e7470e];
  const [SECOND_LOW, SECOND_HIGH] = [0x95121157, 0xca5a8263];
  const STEPS = [[0x7f4a7c15, 0x9e3779b9], [0x84caa73b, 0xbb67ae85]];

  /** The 32-bit integers that NumPy's Philox gives: of each 64-bit output the low half, then the high half. */
  class Philox {
    /** @param {number[]} key its four 32-bit words, lowest first; the counter starts at 0. */
    constructor(key) {
      this.keys = expandKey(key);
      this.counter = 0; // its lowest word: the others stay 0 for the first 2 ** 35 draws
      this.block = new Uint32Array(8);
      this.first = new Uint32Array(4);
      this.second = new Uint32Array(4);
      this.used = 8;
    }

    next() {
      if (this.used === 8) {
        this.refill();
      }
      return this.block[this.used++];
    }

    refill() {
      this.block.fill(0);
      this.block[0] = ++this.counter;
      for (let round = 0; round < ROUNDS; round++) {
        this.mix(4 * round);
      }
      this.used = 0;
    }

    /** One round on the block, four 64-bit words x: x0 and x2 are multiplied, x1 and x3 and the key are mixed in. */
    mix(key) {
      const { block, keys, first, second } = this;
      multiply(block[0], block[1], FIRST_LOW, FIRST_HIGH, first);
      multiply(block[4], block[5], SECOND_LOW, SECOND_HIGH, second);
      block[0] = second[2] ^ block[2] ^ keys[key];
      block[1] = second[3] ^ block[3] ^ keys[key + 1];
      block[4] = first[2] ^ block[6] ^ keys[key + 2];
      block[5] = first[3] ^ block[7] ^ keys[key + 3];
      block[2] = second[0];
      block[3] = second[1];
      block[6] = first[0];
      block[7] = first[1];
    }
  }

  /** The key of every round, four words each. */
  function expandKey(key) {
    const keys = new Uint32Array(4 * ROUNDS);
    keys.set(key);
    for (let word = 4; word < keys.length; word += 2) {
      const [low, high] = STEPS[(word / 2) % 2];
      const sum = keys[word - 4] + low;
      keys[word] = sum;
      keys[word + 1] = keys[word - 3] + high + (sum >= TWO_32);
    }
    return keys;
  }

  /** The four words of a product of two 64-bit numbers; stores keep what is below 2 ** 32. */
  function multiply(low, high, otherLow, otherHigh, product) {
    const crossed = multiplyHigh(low, otherLow) + (Math.imul(low, otherHigh) >>> 0) + (Math.imul(high, otherLow) >>> 0);
    const upper =
      Math.floor(crossed / TWO_32) +
      multiplyHigh(low, otherHigh) +
      multiplyHigh(high, otherLow) +
      (Math.imul(high, otherHigh) >>> 0);
    product[0] = Math.imul(low, otherLow);
    product[1] = crossed;
    product[2] = upper;
    product[3] = Math.floor(upper / TWO_32) + multiplyHigh(high, otherHigh);
  }

  /** The upper word of a product of two 32-bit numbers. */
  function multiplyHigh(one, other) {
    const oneLow = one & 0xffff;
    const otherLow = other & 0xffff;
    const oneHigh = one >>> 16;
    const otherHigh = other >>> 16;
    const middle = (Math.imul(oneHigh, otherLow) >>> 0) + (Math.imul(oneLow, otherLow) >>> 16);
    const carried = (Math.imul(oneLow, otherHigh) >>> 0) + (middle & 0xffff);
    return (Math.imul(oneHigh, otherHigh) >>> 0) + (middle >>> 16) + (carried >>> 16);
  }

  /**
   * How often each image stands in each resample, N_RESAMPLES rows of nImages.
   *
   * @param {number} nImages
   * @param {number[]} key of Philox, as NumPy's SeedSequence makes it of the seed and nImages.
   * @param {(share: number) => void} report is told how much is done.
   */
  async function drawWeights(nImages, key, report = () => {}) {
    const weights = new Uint8Array(N_RESAMPLES * nImages);
    const philox = new Philox(key);
    const rowOf = (row) => weights.subarray(row * nImages, (row + 1) * nImages);
    await inSlices(N_RESAMPLES, report, (row) => countDraws(philox, rowOf(row)));
    return weights;
  }

  /** One resample: as many draws as there are images. */
  function countDraws(philox, counts) {
    const nImages = counts.length;
    if (nImages === 1) {
      counts[0] = 1; // of one image NumPy draws nothing
      return;
    }
    const rejected = (TWO_32 - nImages) % nImages;
    for (let drawn = 0; drawn < nImages; drawn++) {
      let number = philox.next();
      while (Math.imul(number, nImages) >>> 0 < rejected) {
        number = philox.next();
      }
      counts[multiplyHigh(number, nImages)]++;
    }
  }

  /**
   * Every column's sum in every resample, exactly.
   *
   * @param {Uint8Array} weights of `drawWeights`.
   * @param {Uint8Array[]} columns a count per image each.
   * @param {(share: number) => void} report is told how much is done.
   * @returns {Promise<Float64Array[]>} N_RESAMPLES sums per column.
   */
  async function sumColumns(weights, columns, report = () => {}) {
    const { table, width, parts } = pack(columns);
    const sums = columns.map(() => new Float64Array(N_RESAMPLES));
    const nImages = weights.length / N_RESAMPLES;
    await inSlices(N_RESAMPLES, report, (row) => {
      const totals = sumRow(weights, row * nImages, nImages, table, width);
      parts.forEach((columnsOf, place) => unpack(totals[place], columnsOf, sums, row));
    });
    return sums;
  }

  /** Several columns as digits of one number, as many as a double holds exactly: one product in place of several. */
  function pack(columns) {
    const parts = [];
    let bitsUsed = EXACT_BITS;
    columns.forEach((column, index) => {
      const largest = column.length * column.reduce((most, count) => Math.max(most, count), 0);
      const bits = Math.ceil(Math.log2(largest + 2));
      if (bitsUsed + bits > EXACT_BITS) {
        parts.push([]);
        bitsUsed = 0;
      }
      parts.at(-1).push({ index, unit: 2 ** bitsUsed });
      bitsUsed += bits;
    });
    const width = parts.length;
    const table = new Float64Array(width * (columns[0]?.length ?? 0));
    parts.forEach((columnsOf, place) => {
      for (const { index, unit } of columnsOf) {
        columns[index].forEach((count, image) => (table[image * width + place] += count * unit));
      }
    });
    return { table, width, parts };
  }

  function sumRow(weights, start, nImages, table, width) {
    const totals = new Float64Array(width);
    for (let image = 0; image < nImages; image++) {
      const weight = weights[start + image];
      if (weight) {
        const offset = image * width;
        for (let place = 0; place < width; place++) {
          totals[place] += weight * table[offset + place];
        }
      }
    }
    return totals;
  }

  function unpack(total, columnsOf, sums, row) {
    let rest = total;
    for (let place = columnsOf.length - 1; place >= 0; place--) {
      const { index, unit } = columnsOf[place];
      sums[index][row] = Math.floor(rest / unit);
      rest -= sums[index][row] * unit;
    }
  }

  /** The mean of several rows of resamples, each weighing the same; NaN where one is. */
  function meanOf(rows) {
    const mean = new Float64Array(N_RESAMPLES);
    for (let resample = 0; resample < N_RESAMPLES; resample++) {
      let sum = 0;
      for (const row of rows) {
        sum += row[resample];
      }
      mean[resample] = sum / rows.length;
    }
    return mean;
  }

  /** The 95 % percentile interval [low, high], undefined resamples left out; null where half of them are. */
  function interval(resamples) {
    const defined = resamples.filter((value) => !Number.isNaN(value)).sort();
    return 2 * defined.length > resamples.length ? TAILS.map((level) => quantile(defined, level)) : null;
  }

  /** As numpy.quantile interpolates: linearly. */
  function quantile(ordered, level) {
    const place = level * (ordered.length - 1);
    const below = Math.floor(place);
    const above = Math.min(below + 1, ordered.length - 1);
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below);
  }

  /** Two-sided p-value of no difference: twice the smaller share of resamples on either side of 0, never 0 itself. */
  function pValue(differences) {
    let [notAbove, notBelow, defined] = [0, 0, 0];
    for (const difference of differences) {
      notAbove += difference <= 0;
      notBelow += difference >= 0;
      defined += !Number.isNaN(difference);
    }
    return Math.min(1, (2 * (Math.min(notAbove, notBelow) + 1)) / (defined + 1));
  }

  /** p-values adjusted for being several, in the order given. */
  function holm(pValues) {
    const order = pValues.map((_, index) => index).sort((one, other) => pValues[one] - pValues[other]);
    const adjusted = new Array(pValues.length);
    let largest = 0;
    order.forEach((index, rank) => {
      largest = Math.max(largest, pValues[index] * (pValues.length - rank));
      adjusted[index] = Math.min(1, largest);
    });
    return adjusted;
  }

  /** Works through the rows and lets the page breathe in between. */
  async function inSlices(nRows, report, work) {
    let since = performance.now();
    for (let row = 0; row < nRows; row++) {
      work(row);
      if (performance.now() - since > SLICE_MS) {
        report((row + 1) / nRows);
        await new Promise((resume) => setTimeout(resume));
        since = performance.now();
      }
    }
  }

  window.rove ||= {};
  window.rove.bootstrap = { N_RESAMPLES, drawWeights, sumColumns, meanOf, interval, pValue, holm };
}
