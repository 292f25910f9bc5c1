// The order by somebody's own weights: scores, their intervals and how stable each place is, from resamples.
"use strict";
(() => {
  const root = document.getElementById("weights");
  if (!root) return;

  const { families, presets, rows, n_resamples: N, scale } = window.rove.weights;
  const { writeQuery, copyLink } = window.rove.share;
  const byId = (id) => document.getElementById(id);
  const table = byId("order");
  const SHOWN = 100;
  const MOST = 1000;
  const tables = new Map();
  const state = readState();

  function readState() {
    const params = new URLSearchParams(location.search);
    return {
      weights: families.map((name) => toWeight(params.get(name) ?? "1") ?? 1),
      by: params.get("by") === "lost" ? "lost" : "r1",
      all: false,
    };
  }

  // Null of what is no weight: a field that is being typed in may hold anything.
  function toWeight(text) {
    const weight = text.trim() === "" ? Number.NaN : Number(text);
    return weight >= 0 && weight <= MOST ? weight : null;
  }

  function writeState() {
    const params = new URLSearchParams();
    families.forEach((name, i) => { if (state.weights[i] !== 1) params.set(name, state.weights[i]); });
    if (state.by === "lost") params.set("by", "lost");
    writeQuery(params);
  }

  // Resamples of a measure are megabytes on a large board: the second measure is loaded when it is asked for.
  function loadResamples(measure) {
    if (!tables.has(measure)) tables.set(measure, fetchScript(`weights-${measure}.js`).then(() => decode(measure)));
    return tables.get(measure);
  }

  function fetchScript(path) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = path;
      script.addEventListener("load", resolve);
      script.addEventListener("error", () => reject(new Error(`cannot load ${path}`)));
      document.head.append(script);
    });
  }

  // Little-endian int16, row by row and family by family; kept as integers, so that equal scores stay equal.
  function decode(measure) {
    const name = `resamples_${measure}`;
    const bytes = atob(window.rove[name]);
    delete window.rove[name];
    const decoded = new Int16Array(bytes.length / 2);
    for (let i = 0; i < decoded.length; i++) {
      decoded[i] = bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8);
    }
    return decoded;
  }

  function weigh(values) {
    const total = state.weights.reduce((sum, weight) => sum + weight, 0);
    return values.reduce((sum, value, i) => sum + state.weights[i] * value, 0) / total;
  }

  // Scores of every row in every resample, resample by resample.
  function weighResamples(resamples) {
    const total = state.weights.reduce((sum, weight) => sum + weight, 0);
    const scores = new Float64Array(rows.length * N);
    for (let row = 0; row < rows.length; row++) {
      for (let family = 0; family < families.length; family++) {
        const weight = state.weights[family] / (total * scale);
        const start = (row * families.length + family) * N;
        if (weight) for (let k = 0; k < N; k++) scores[k * rows.length + row] += weight * resamples[start + k];
      }
    }
    return scores;
  }

  // One more than there are rows with a better score. Sums of floats are equal to a billionth at best.
  function placesOf(scores) {
    const sign = state.by === "lost" ? 1 : -1;
    const keys = Float64Array.from(scores, (score) => Math.round(sign * score * 1e9));
    const sorted = keys.slice().sort();
    const places = new Map();
    sorted.forEach((key, i) => { if (!places.has(key)) places.set(key, i + 1); });
    return Array.from(keys, (key) => places.get(key));
  }

  // The percentile of sorted numbers, with linear interpolation as NumPy does by default.
  function quantile(sorted, share) {
    const at = share * (sorted.length - 1);
    const below = Math.floor(at);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
  }

  // The percentile that occurs: `inverted_cdf`.
  function occurring(sorted, share) {
    return sorted[Math.max(0, Math.ceil(share * sorted.length - 1e-9) - 1)];
  }

  function holding(value, low, high) {
    return [Math.min(low, value), Math.max(high, value)];
  }

  function rank(resamples) {
    const scores = rows.map((row) => weigh(row[state.by]));
    const places = placesOf(scores);
    const drawn = weighResamples(resamples);
    const drawnPlaces = Array.from({ length: N }, (_, k) => placesOf(drawn.subarray(k * rows.length, (k + 1) * rows.length)));
    const ranked = rows.map((row, i) => {
      const sorted = Float64Array.from({ length: N }, (_, k) => drawn[k * rows.length + i]).sort();
      const sortedPlaces = Float64Array.from(drawnPlaces, (of) => of[i]).sort();
      return {
        row,
        score: scores[i],
        ends: holding(scores[i], quantile(sorted, 0.025), quantile(sorted, 0.975)),
        place: places[i],
        placeEnds: holding(places[i], occurring(sortedPlaces, 0.025), occurring(sortedPlaces, 0.975)),
        kept: drawnPlaces.filter((of) => of[i] === places[i]).length / N,
      };
    });
    return ranked.sort((a, b) => a.place - b.place || a.row.place - b.row.place);
  }

  function element(name, text, ...children) {
    const made = document.createElement(name);
    made.append(...(text === "" ? [] : [text]), ...children);
    return made;
  }

  function interval(low, high) {
    const made = element("span", `${low} to ${high}`);
    made.className = "ci";
    return made;
  }

  function percent(value) {
    return (100 * value).toFixed(1);
  }

  function move({ row, place }) {
    const by = row.place - place;
    const made = element("span", by === 0 ? "same place" : `${by > 0 ? "↑ up" : "↓ down"} ${Math.abs(by)}`);
    made.className = by > 0 ? "ci up" : by < 0 ? "ci down" : "ci";
    return made;
  }

  function toLine(found) {
    const link = element("a", found.row.label);
    link.href = `submissions/${found.row.id}.html`;
    const name = element("th", "", link);
    name.scope = "row";
    name.className = "text";
    return element("tr", "",
      element("td", String(found.place), interval(...found.placeEnds)),
      name,
      element("td", percent(found.score), interval(...found.ends.map(percent))),
      element("td", String(found.row.place), move(found)),
      element("td", (100 * found.kept).toFixed(1)));
  }

  function say(ranked) {
    const moved = ranked.filter(({ row, place }) => row.place !== place).length;
    const [first] = ranked;
    byId("said").textContent = `First: ${first.row.label}, in ${(100 * first.kept).toFixed(1)} % of ${N} resamples. `
      + `${moved} of ${rows.length} rows stand elsewhere than in the table.`;
    const measure = state.by === "lost" ? "share of the clean R@1 that is lost" : "R@1 under shift";
    byId("caption").textContent = `Weighted mean over families: ${measure} in percent, with its 95 % interval over ${N} resamples.`;
  }

  function sayNothing(text) {
    byId("said").textContent = text;
    table.classList.add("stale");
  }

  async function update() {
    writeState();
    showWeights();
    if (!state.weights.some((weight) => weight > 0)) {
      sayNothing("All weights are 0, so there is nothing to order by. Give at least one family a weight.");
      return;
    }
    const asked = state.by;
    let resamples;
    try {
      resamples = await loadResamples(asked);
    } catch (error) {
      sayNothing(`${error.message}, which lies beside this page in the whole site.`);
      return;
    }
    if (asked !== state.by || !state.weights.some((weight) => weight > 0)) return;
    const ranked = rank(resamples);
    const shown = state.all ? ranked : ranked.slice(0, SHOWN);
    table.tBodies[0].replaceChildren(...shown.map(toLine));
    table.classList.remove("stale");
    byId("more").hidden = shown.length === ranked.length;
    say(ranked);
  }

  // A field that has the focus keeps what is being typed.
  function showWeights() {
    for (const input of root.querySelectorAll("[data-family]")) {
      const weight = String(state.weights[input.dataset.family]);
      if (input !== document.activeElement || toWeight(input.value) !== Number(weight)) input.value = weight;
    }
    for (const radio of root.querySelectorAll("[name=by]")) radio.checked = radio.value === state.by;
    for (const button of root.querySelectorAll("[data-preset]")) {
      const isOn = presets[button.dataset.preset].every((weight, i) => weight === state.weights[i]);
      button.setAttribute("aria-pressed", String(isOn));
    }
  }

  // Many events may come between two frames while a slider is drawn; the last one counts.
  let isDue = false;
  function schedule() {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      update();
    });
  }

  root.addEventListener("input", ({ target }) => {
    if (target.name === "by") state.by = target.value;
    const weight = "family" in target.dataset ? toWeight(target.value) : null;
    if (weight !== null) state.weights[target.dataset.family] = weight;
    if (weight !== null || target.name === "by") schedule();
  });
  root.addEventListener("change", showWeights);
  root.addEventListener("click", ({ target }) => {
    if (!("preset" in target.dataset)) return;
    state.weights = [...presets[target.dataset.preset]];
    schedule();
  });
  byId("copy").addEventListener("click", ({ target }) => copyLink(target));
  byId("more").addEventListener("click", () => {
    state.all = true;
    schedule();
  });
  root.hidden = false;
  update();
})();
