/* Trade-offs: what is found under shift, or lost to it, against one or two costs, and which submissions no other beats. */
"use strict";
{
  const { draw, readState, writeState, fill, tell, nameRows } = rove.charts;
  const rows = rove.plots;
  const names = nameRows(rows);
  const MEASURES = { r1: "R@1 under shift, %", lost: "share of clean R@1 lost, %" };
  const COSTS = {
    parameters: "parameters", image: "ms per image while scoring", text: "ms per caption while scoring",
    query: "ms of one query end to end, p50",
  };
  const NOTHING = "none";
  const defaults = { y: "r1", x: "parameters", z: NOTHING, hardware: "", items: "" };
  const find = (id) => document.getElementById(id);
  const selects = Object.fromEntries(Object.keys(defaults).map((key) => [key, find(`choose-${key}`)]));
  const state = readState(defaults);

  /** A row's cost on the chosen terms: {value, hardware, detail}; null where it is not known. */
  function costOf(row, cost, items) {
    if (cost !== "query") {
      const value = row[cost];
      return value === null ? null : { value, hardware: cost === "parameters" ? null : row.hardware, detail: "" };
    }
    return row.queries.filter((query) => String(query.n_items) === items);
  }

  /** The same on one class of hardware; parameters are the same on each. */
  function costOn(row, cost, { items, hardware }) {
    const found = costOf(row, cost, items);
    if (!Array.isArray(found)) return found && (found.hardware ?? hardware) === hardware ? found : null;
    const query = found.find((one) => one.hardware === hardware);
    return query ? { value: query.p50, hardware, detail: describeQuery(query) } : null;
  }

  function describeQuery(query) {
    const flags = query.flags.length ? `; ${query.flags.join(", ")}` : "";
    const p95 = query.p95 === null ? "" : `p95 ${format(query.p95)} ms; `;
    return `${p95}${query.index}, finds ${tell(query.overlap)} of exact search${flags}`;
  }

  function format(number) {
    return number >= 1000 ? Math.round(number).toLocaleString("en") : String(Number(number.toPrecision(3)));
  }

  function costsChosen() {
    return [state.x, state.z].filter((cost) => cost !== NOTHING);
  }

  /** Classes of hardware that rows were measured on, those of most rows first. */
  function listHardware() {
    const counts = new Map();
    const add = (name) => counts.set(name, (counts.get(name) ?? 0) + 1);
    for (const row of rows) {
      const cost = costsChosen().find((one) => one !== "parameters");
      if (cost === "query") costOf(row, cost, state.items).forEach((query) => add(query.hardware));
      else if (cost && row[cost] !== null) add(row.hardware);
    }
    return [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => [name, `${name} (${count})`]);
  }

  function listItems() {
    const sizes = new Set(rows.flatMap((row) => row.queries.map((query) => query.n_items)));
    return [...sizes].sort((a, b) => a - b).map((size) => [String(size), `${size.toLocaleString("en")} items`]);
  }

  /** Which points no other dominates: as small in every column, and smaller in one. */
  function findFront(points) {
    const beats = (a, b) => a.every((value, i) => value <= b[i]) && a.some((value, i) => value < b[i]);
    return points.map((point) => !points.some((other) => beats(other, point)));
  }

  /** Rows with all that is drawn, and how many lack it, by the reason. */
  function select() {
    const kept = [];
    const left = { unknown: 0, elsewhere: 0, zero: 0 };
    for (const row of rows) {
      const costs = costsChosen().map((cost) => costOn(row, cost, state));
      if (row[state.y] === null) left.unknown += 1;
      else if (costs.includes(null)) left[isElsewhere(row) ? "elsewhere" : "unknown"] += 1;
      else if (costs.some((cost) => cost.value <= 0)) left.zero += 1;
      else kept.push({ row, costs });
    }
    return { kept, left };
  }

  /** Whether every chosen cost is known, but on other hardware. */
  function isElsewhere(row) {
    const known = (found) => (Array.isArray(found) ? found.length > 0 : found !== null);
    return costsChosen().every((cost) => known(costOf(row, cost, state.items)));
  }

  function toPoints(kept) {
    const sign = state.y === "r1" ? -1 : 1;
    const table = kept.map(({ row, costs }) => [sign * row.exact[state.y], ...costs.map((cost) => cost.value)]);
    const onFront = findFront(table);
    return kept.map(({ row, costs }, i) => {
      const [value, low, high] = row[state.y].map((end) => end / 10);
      const [x, z = 1] = costs.map((cost) => cost.value);
      return { id: row.id, label: names.get(row.id), x, y: value, low, high, z, front: onFront[i], tip: tipOf(row, costs) };
    });
  }

  function tipOf(row, costs) {
    const lines = costsChosen().map((cost, i) => {
      const { value, detail } = costs[i];
      const told = cost === "parameters" ? `${(value / 1e6).toFixed(1)} M` : format(value);
      return `${COSTS[cost]}: ${told}${detail ? ` (${detail})` : ""}`;
    });
    const known = ["r1", "lost"].filter((key) => row[key]);
    const held = known.map((key) => `${MEASURES[key].replace(", %", "")}: ${tell(row[key])}`);
    return [names.get(row.id), ...held, ...lines, state.hardware].filter(Boolean).join("\n");
  }

  /** Marks the points of the front whose labels would not lie on one another; the others are listed below the plot. */
  function placeLabels(points, { width, height, domain }) {
    const [low, high] = [Math.min(...points.map((point) => point.low)), Math.max(...points.map((point) => point.high))];
    const across = (x) => (width * Math.log(x / domain[0])) / Math.log(domain[1] / domain[0]);
    const up = (y) => (height * (y - low)) / (high - low || 1);
    const middle = Math.sqrt(domain[0] * domain[1]);
    const taken = [];
    return points.map((point) => {
      const name = cut(point.label);
      const right = point.x > middle;
      const [start, y] = [across(point.x) - (right ? 7 * name.length : 0), up(point.y)];
      const end = start + 7 * name.length;
      const isMet = (other) => Math.abs(other.y - y) < 13 && start < other.end && other.start < end;
      const labelled = point.front && !taken.some(isMet);
      if (labelled) taken.push({ start, end, y });
      return { ...point, name, right, labelled };
    });
  }

  const cut = (label) => (label.length > 28 ? `${label.slice(0, 27)}…` : label);

  function describe({ width, theme }) {
    const xs = points.map((point) => point.x);
    const domain = points.length ? [Math.min(...xs) / 1.5, Math.max(...xs) * 1.5] : [1, 10];
    const height = Math.max(280, Math.min(520, width * 0.6));
    const values = placeLabels(points, { width: width - 60, height: height - 50, domain });
    const formatOf = (cost) => (cost === "parameters" ? "~s" : ",~r");
    const x = {
      field: "x", type: "quantitative", title: COSTS[state.x], scale: { type: "log", domain, nice: false },
      axis: { format: formatOf(state.x), labelOverlap: true, tickCount: Math.max(2, Math.floor(width / 90)) },
    };
    const y = { field: "y", type: "quantitative", title: MEASURES[state.y], scale: { zero: false } };
    const color = { condition: { test: "datum.front", value: theme.accent }, value: theme.soft };
    const shape = { condition: { test: "datum.front", value: "circle" }, value: "diamond" };
    const size = state.z === NOTHING ? { value: 70 } : {
      field: "z", type: "quantitative", title: COSTS[state.z], scale: { type: "log", range: [30, 500] },
      legend: { format: formatOf(state.z), values: ends(points), symbolFillColor: theme.soft },
    };
    const tooltip = { field: "tip", type: "nominal" };
    const text = (right) => ({
      transform: [{ filter: `datum.labelled && datum.right === ${right}` }],
      mark: { type: "text", align: right ? "right" : "left", dx: right ? -7 : 7, dy: -8, fontSize: 11 },
      encoding: { x, y, text: { field: "name", type: "nominal" } },
    });
    const line = {
      transform: [{ filter: "datum.front" }],
      mark: { type: "line", interpolate: "step-after", color: theme.accent, opacity: 0.6 },
      encoding: { x, y },
    };
    return {
      width, height, autosize: { type: "fit", contains: "padding" }, data: { values },
      layer: [
        ...(state.z === NOTHING ? [line] : []),
        {
          mark: { type: "rule", opacity: 0.55 },
          encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color, tooltip },
        },
        { mark: { type: "point", filled: true, opacity: 0.9 }, encoding: { x, y, color, size, shape, tooltip } },
        text(false), text(true),
      ],
    };
  }

  function ends(points) {
    const sizes = points.map((point) => point.z).sort((a, b) => a - b);
    return [...new Set([sizes[0], sizes[sizes.length >> 1], sizes.at(-1)])].filter((size) => size !== undefined);
  }

  function tellLeft({ unknown, elsewhere, zero }, n_drawn) {
    const parts = [`${n_drawn} of ${rows.length} submissions are drawn.`];
    if (elsewhere) parts.push(`${elsewhere} not, because they were measured on other hardware.`);
    if (unknown) parts.push(`${unknown} not, because a figure is not known.`);
    if (zero) parts.push(`${zero} not, because 0 has no place on a logarithmic axis.`);
    return parts.join(" ");
  }

  let points = [];
  let redraw = null;

  function update() {
    state.items = costsChosen().includes("query") ? fill(selects.items, listItems(), state.items) : "";
    const needsHardware = costsChosen().some((cost) => cost !== "parameters");
    state.hardware = needsHardware ? fill(selects.hardware, listHardware(), state.hardware) : "";
    selects.items.closest("label").hidden = !state.items;
    selects.hardware.closest("label").hidden = !needsHardware;
    const { kept, left } = select();
    points = toPoints(kept);
    const front = points.filter((point) => point.front).sort((a, b) => a.x - b.x);
    const told = front.map((point) => point.label).join(", ");
    find("front").textContent = front.length ? `Not beaten: ${told}.` : "Nothing to compare.";
    find("front").dataset.ids = front.map((point) => point.id).join(" ");
    find("left-out").textContent = tellLeft(left, points.length);
    writeState(state, defaults);
    redraw?.();
  }

  function start() {
    const costs = Object.entries(COSTS).filter(([cost]) => cost !== "query" || rows.some((row) => row.queries.length));
    state.y = fill(selects.y, Object.entries(MEASURES), state.y);
    state.x = fill(selects.x, costs, state.x);
    state.z = fill(selects.z, [[NOTHING, "no third cost"], ...costs], state.z);
    for (const [key, select] of Object.entries(selects)) {
      select.addEventListener("change", () => { state[key] = select.value; update(); });
    }
    find("plot-tools").hidden = false;
    update();
    const label = "Scatter plot of robustness against cost; the table below holds the same figures.";
    redraw = draw(find("plot"), label, describe);
  }

  start();
}
