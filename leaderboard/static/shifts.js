/* Shifts: the map of a chosen submission, and curves over severities of several. */
"use strict";
{
  const { draw, readState, writeState, fill, choose, tell, nameRows } = rove.charts;
  const { rows, lanes, changes, mean } = rove.shifts;
  const MEASURES = { r1: "R@1", lost: "share of clean R@1 lost" };
  const ALL = "mean";
  const N_STEPS = 10;
  const names = nameRows(rows);
  const byId = new Map(rows.map((row) => [row.id, row]));
  const defaults = { of: ALL, by: "r1", s: rows.slice(0, 4).map((row) => row.id) };
  const find = (id) => document.getElementById(id);
  const state = readState(defaults);
  const cells = [...document.querySelectorAll("#map td[data-lane]")];
  const places = new Map(lanes.map(([change, column], i) => [`${change}\n${column}`, i]));

  function showMap() {
    const shown = state.of === ALL ? mean : byId.get(state.of);
    for (const cell of cells) {
      const place = places.get(`${cell.dataset.lane}\n${cell.dataset.column}`);
      showCell(cell, shown[state.by][place], state.by);
    }
    showCell(find("canvas"), shown.canvas, "r1");
    const whose = state.of === ALL ? "mean of all submissions" : names.get(state.of);
    find("map-of").textContent = `${MEASURES[state.by]}, ${whose}, percent`;
    find("map").dataset.by = state.by;
    find("scale").dataset.by = state.by;
  }

  function showCell(cell, figure, by) {
    const interval = document.createElement("span");
    interval.className = "ci";
    cell.className = figure ? `${by}-${stepOf(figure[0])}` : "";
    if (!figure) return cell.replaceChildren();
    const [value, low, high] = figure.map((end) => (end / 10).toFixed(1));
    interval.textContent = `${low} to ${high}`;
    cell.replaceChildren(value, interval);
  }

  const stepOf = (value) => Math.min(N_STEPS - 1, Math.max(0, Math.floor((value * N_STEPS) / 1000)));

  const isSeverity = (column) => /^\d+$/.test(column);

  /** A point per chosen submission, shift and severity; the clean canvas stands at 0. */
  function listPoints() {
    const drawn = (change) => (id, place) =>
      curveOf(byId.get(id), change).map((point) => ({ ...point, place, change: facetOf(change) }));
    return changes.flatMap((change) => state.s.flatMap(drawn(change)));
  }

  // Vega keeps facets in an object under their names: with a space before it, none is a name that objects have already.
  function facetOf(change) {
    return ` ${change.name}`;
  }

  function curveOf(row, change) {
    const shifted = lanes
      .map(([name, column], i) => ({ name, column, figure: row[state.by][i] }))
      .filter(({ name, column }) => name === change.name && isSeverity(column))
      .map(({ column, figure }) => [Number(column), figure]);
    const clean = state.by === "r1" ? row.clean[change.baseline] : [0, 0, 0];
    const curve = shifted.length ? [[0, clean], ...shifted] : [];
    return curve.filter(([, figure]) => figure).map(([severity, figure]) => toDatum(row, change, severity, figure));
  }

  function toDatum(row, change, severity, figure) {
    const [value, low, high] = figure.map((end) => end / 10);
    const where = severity ? `severity ${severity}` : "clean canvas";
    const told = severity || state.by === "r1" ? tell(figure) : "0 by definition";
    const tip = `${names.get(row.id)}\n${change.name}, ${where}\n${MEASURES[state.by]}: ${told}`;
    return { severity, value, low, high, tip };
  }

  function describe({ width, theme }) {
    const values = listPoints().map((point) => ({ ...point, ...theme.series[point.place] }));
    const columns = Math.max(1, Math.floor((width - 40) / 140));
    const own = (field) => ({ field, type: "nominal", scale: null });
    const detail = { field: "place", type: "ordinal" };
    const x = {
      field: "severity", type: "quantitative", title: null, scale: { domain: [0, 5] },
      axis: { values: [0, 1, 2, 3, 4, 5], format: "d", grid: false },
    };
    const y = {
      field: "value", type: "quantitative", title: state.by === "r1" ? "R@1, %" : "lost, %", axis: { tickCount: 5 },
      ...(state.by === "r1" ? { scale: { domain: [0, 100] } } : {}),
    };
    return {
      data: { values }, columns, spacing: { row: 12, column: 14 },
      facet: {
        field: "change", type: "nominal", title: null, sort: changes.map(facetOf),
        header: { labelLimit: 150, labelFontSize: 11 },
      },
      spec: {
        width: Math.max(80, Math.floor((width - 65) / columns) - 20), height: 110,
        layer: [
          {
            mark: { type: "area", opacity: 0.16 },
            encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, fill: own("colour"), detail },
          },
          { mark: { type: "line", strokeWidth: 1.5 }, encoding: { x, y, stroke: own("colour"), detail } },
          {
            mark: { type: "point", filled: true, size: 36, opacity: 1 },
            encoding: { x, y, color: own("colour"), shape: own("shape"), tooltip: { field: "tip", type: "nominal" } },
          },
        ],
      },
    };
  }

  let redraw = null;

  function update() {
    writeState(state, defaults);
    showMap();
    redraw?.();
  }

  function start() {
    const whose = [[ALL, "mean of all"], ...rows.map((row) => [row.id, names.get(row.id)])];
    state.of = fill(find("choose-of"), whose, state.of);
    state.by = fill(find("choose-by"), Object.entries(MEASURES), state.by);
    for (const key of ["of", "by"]) {
      find(`choose-${key}`).addEventListener("change", (event) => { state[key] = event.target.value; update(); });
    }
    state.s = choose(find("chooser"), rows, state.s, (ids) => { state.s = ids; update(); });
    find("map-tools").hidden = false;
    if (state.of !== ALL || state.by !== "r1") showMap();
    writeState(state, defaults);
    const label = "Curves over severities, one panel per shift; the pages of the shifts hold the same figures as tables.";
    if (lanes.some(([, column]) => isSeverity(column))) redraw = draw(find("curves"), label, describe);
  }

  if (rows.length) start();
}
