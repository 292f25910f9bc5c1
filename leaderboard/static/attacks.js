/* Attacks: R@1 against the budget, one plot per threat model and direction, and the curve of the examination. */
"use strict";
{
  const { draw, readState, writeState, choose, tell, nameRows } = rove.charts;
  const { rows, panels } = rove.attacks;
  const names = nameRows(rows);
  const byId = new Map(rows.map((row) => [row.id, row]));
  const attacked = rows.filter((row) => row.results.length);
  const defaults = { s: attacked.slice(0, 4).map((row) => row.id) };
  const state = readState(defaults);
  const find = (id) => document.getElementById(id);

  /** Budgets double, and start at 0: the axis is that of log2(1 + budget). */
  const placeOf = (budget) => Math.log2(1 + budget);
  /** Submissions stand side by side at one budget, so that their intervals can be told apart. */
  const nudge = (place) => (place - (state.s.length - 1) / 2) * 0.06;

  function pointsOf(panel) {
    return state.s.flatMap((id, place) => {
      const results = byId.get(id).results.filter((result) => result.panel === panel);
      results.sort((a, b) => a.budget - b.budget);
      if (!results.length) return [];
      const clean = { budget: 0, figure: results[0].clean, doubt: "", more: "without the attack" };
      const under = results.map((result) => ({
        budget: result.budget, figure: result.attacked, doubt: result.doubt,
        more: `${result.budget} ${panels[panel].unit}${result.asr ? `\nASR: ${tell(result.asr)}` : ""}`,
      }));
      return [clean, ...under].map((point) => ({ ...toDatum(point, id, place), ...toEnds(point.figure) }));
    });
  }

  function toDatum({ budget, figure, doubt, more }, id, place) {
    const told = figure.length > 1 ? tell(figure) : `${(figure[0] / 10).toFixed(1)} %, no interval is recorded`;
    return {
      id, place, budget, x: placeOf(budget) + nudge(place), value: figure[0] / 10, hollow: Boolean(doubt),
      tip: [names.get(id), more, `R@1: ${told}`, doubt].filter(Boolean).join("\n"),
    };
  }

  const toEnds = ([, low, high]) => ({ low: low / 10, high: high / 10 });

  function examinedPoints() {
    const tellBudget = (budget) => `${budget} levels of 255, examined images only`;
    const pointOf = ([budget, hit]) => ({ budget, figure: [hit], doubt: "", more: tellBudget(budget) });
    return state.s.flatMap((id, place) => byId.get(id).curve.map((point) => toDatum(pointOf(point), id, place)));
  }

  function describe(pointsNow, unit, isExamined) {
    return ({ width, theme }) => {
      const found = pointsNow();
      const values = found.map((point) => {
        const { colour, shape } = theme.series[point.place];
        return { ...point, colour, shape, fill: point.hollow ? theme.card : colour };
      });
      const budgets = [...new Set(found.map((point) => point.budget))].sort((a, b) => a - b);
      const end = placeOf(budgets.at(-1) ?? 1) + 0.3;
      const x = {
        field: "x", type: "quantitative", title: `budget, ${unit}`, scale: { domain: [-0.3, end], nice: false },
        axis: { values: budgets.map(placeOf), labelExpr: "format(pow(2, datum.value) - 1, '.0f')", grid: false },
      };
      const y = { field: "value", type: "quantitative", title: "R@1, %", scale: { domain: [0, 100] }, axis: { tickCount: 5 } };
      const stroke = { field: "colour", type: "nominal", scale: null };
      const fillColour = { field: "fill", type: "nominal", scale: null };
      const shape = { field: "shape", type: "nominal", scale: null };
      const bars = {
        mark: { type: "rule", strokeWidth: 1.5 },
        encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, stroke },
      };
      const line = { type: "line", strokeWidth: 1.5, ...(isExamined ? { strokeDash: [5, 4] } : {}) };
      const tooltip = { field: "tip", type: "nominal" };
      return {
        width, height: 220, autosize: { type: "fit", contains: "padding" }, data: { values },
        layer: [
          { mark: line, encoding: { x, y, stroke, detail: { field: "place", type: "ordinal" } } },
          ...(isExamined ? [] : [bars]),
          {
            mark: { type: "point", size: 55, strokeWidth: 2, opacity: 1 },
            encoding: { x, y, stroke, fill: fillColour, shape, tooltip },
          },
        ],
      };
    };
  }

  function start() {
    if (!attacked.length) return;
    const redraws = [];
    state.s = choose(find("chooser"), attacked, state.s, (ids) => {
      state.s = ids;
      writeState(state, defaults);
      for (const redraw of redraws) redraw();
    });
    writeState(state, defaults);
    for (const holder of document.querySelectorAll("[data-panel]")) {
      const panel = Number(holder.dataset.panel);
      const label = `R@1 against the budget, ${panels[panel].title}; the table below holds the same figures.`;
      redraws.push(draw(holder, label, describe(() => pointsOf(panel), panels[panel].unit, false)));
    }
    const examined = find("examined");
    const label = "R@1 of the examined images against the budget; the table below holds the same figures.";
    if (examined) redraws.push(draw(examined, label, describe(examinedPoints, "levels of 255", true)));
  }

  start();
}
