/* What the pages with charts share: charts that follow the width and the colour scheme, a tooltip, a chooser of
   submissions, and a state in the URL. Needs vega, vega-lite and vega-interpreter. */
"use strict";
{
  const rove = (window.rove ||= {});
  const MAX_CHOSEN = 6;
  const SHAPES = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  /** The colours of the page as they are now. */
  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const series = SHAPES.map((shape, i) => ({ shape, colour: colour(`series-${i + 1}`) }));
    const [ink, soft, line, card, accent] = ["ink", "soft", "line", "card", "accent"].map(colour);
    return { ink, soft, line, card, accent, series };
  }

  /** What a specification need not say: colours and font of the page, no frame. */
  function configOf(theme) {
    const axis = {
      domainColor: theme.soft, tickColor: theme.soft, gridColor: theme.line, labelColor: theme.ink, titleColor: theme.ink,
      titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12,
    };
    const text = { labelColor: theme.ink, titleColor: theme.ink, titleFontWeight: "normal" };
    return {
      aria: false, background: "transparent", font: "system-ui, sans-serif", view: { stroke: null }, axis,
      legend: { ...text, orient: "bottom" }, header: { ...text, labelFontSize: 12 }, text: { color: theme.ink },
    };
  }

  /**
   * Draws a chart into `holder`, and again whenever its width or the colour scheme changes.
   * `describe({width, theme})` gives a Vega-Lite specification; each datum's `tip` is shown when it is pointed at.
   * Returns a function that draws it anew; what it returns resolves when the chart stands.
   */
  function draw(holder, label, describe) {
    const canvas = document.createElement("div");
    // The holder speaks for the chart: its marks have no names.
    canvas.setAttribute("aria-hidden", "true");
    holder.setAttribute("role", "img");
    holder.setAttribute("aria-label", label);
    holder.replaceChildren(canvas);
    let width = Math.floor(holder.clientWidth);
    let view = null;
    let last = Promise.resolve();
    const redraw = () => (last = last.then(render, render));

    async function render() {
      if (!width) return;
      const theme = readTheme();
      const spec = vegaLite.compile(describe({ width, theme }), { config: configOf(theme) }).spec;
      view?.finalize();
      hideTip();
      view = new vega.View(vega.parse(spec, null, { ast: true }), {
        expr: vega.expressionInterpreter, renderer: "svg", container: canvas, hover: false,
        tooltip: (handler, event, item) => showTip(event, item?.datum?.tip),
      });
      await view.runAsync();
      holder.dataset.drawn = String(Number(holder.dataset.drawn ?? 0) + 1);
    }

    new ResizeObserver(([entry]) => {
      const found = Math.floor(entry.contentRect.width);
      if (found === width) return;
      width = found;
      redraw();
    }).observe(holder);
    dark.addEventListener("change", redraw);
    redraw();
    return redraw;
  }

  const tip = document.createElement("div");
  tip.className = "chart-tip";
  tip.hidden = true;

  function showTip(event, text) {
    if (!text) return hideTip();
    if (!tip.isConnected) document.body.append(tip);
    tip.textContent = text;
    tip.hidden = false;
    const { offsetWidth, offsetHeight } = tip;
    const left = Math.min(event.clientX + 12, window.innerWidth - offsetWidth - 8);
    const above = event.clientY - offsetHeight - 12;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 8 ? above : event.clientY + 16}px`;
  }

  function hideTip() {
    tip.hidden = true;
  }

  window.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  window.addEventListener("scroll", hideTip, { passive: true });

  /** The URL's parameters over their defaults; lists are written with commas. */
  function readState(defaults) {
    const found = new URLSearchParams(location.search);
    const read = (value, text) => (Array.isArray(value) ? text.split(",").filter(Boolean) : text);
    const told = Object.entries(defaults).filter(([key]) => found.has(key));
    return { ...defaults, ...Object.fromEntries(told.map(([key, value]) => [key, read(value, found.get(key))])) };
  }

  /** Writes what differs from the defaults into the URL. */
  function writeState(state, defaults) {
    const told = new URLSearchParams();
    for (const [key, value] of Object.entries(state)) {
      if (String(value) !== String(defaults[key])) told.set(key, String(value));
    }
    window.rove.share.writeQuery(told);
  }

  /** Fills a <select> with [value, text] pairs and chooses `value`, or the first; returns what is chosen. */
  function fill(select, pairs, value) {
    select.replaceChildren(...pairs.map(([key, text]) => new Option(text, key)));
    select.value = pairs.some(([key]) => key === value) ? value : (pairs[0]?.[0] ?? "");
    select.disabled = pairs.length < 2;
    return select.value;
  }

  /**
   * Lets the reader choose up to six of `rows`; `holder` holds an input, a list and a place for messages.
   * Calls `tell(ids)` on every change.
   */
  function choose(holder, rows, chosen, tell) {
    const parts = ["input", "datalist", "ul", "[role=status]"];
    const [input, options, list, said] = parts.map((name) => holder.querySelector(name));
    const names = nameRows(rows);
    const byName = new Map(rows.map((row) => [names.get(row.id), row.id]));
    let ids = chosen.filter((id) => names.has(id)).slice(0, MAX_CHOSEN);

    function set(next, message = "") {
      ids = next;
      said.textContent = message;
      show();
      tell(ids);
    }

    function show() {
      options.replaceChildren(...rows.filter((row) => !ids.includes(row.id)).map((row) => new Option(names.get(row.id))));
      list.replaceChildren(...ids.map((id, i) => makeChip(names.get(id), i, () => remove(id))));
    }

    function remove(id) {
      set(ids.filter((other) => other !== id), `${names.get(id)} removed.`);
      input.focus();
    }

    input.addEventListener("input", () => {
      const id = byName.get(input.value);
      if (id === undefined || ids.includes(id)) return;
      if (ids.length === MAX_CHOSEN) {
        said.textContent = `At most ${MAX_CHOSEN} are shown: remove one first.`;
        return;
      }
      input.value = "";
      set([...ids, id], `${names.get(id)} added.`);
    });
    holder.hidden = false;
    show();
    return ids;
  }

  /** Labels by id; where two rows share one, the id tells them apart. */
  function nameRows(rows) {
    const counts = new Map();
    for (const row of rows) counts.set(row.label, (counts.get(row.label) ?? 0) + 1);
    return new Map(rows.map((row) => [row.id, counts.get(row.label) > 1 ? `${row.label} (${row.id})` : row.label]));
  }

  function makeChip(name, place, remove) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const cross = document.createElement("span");
    button.type = "button";
    button.setAttribute("aria-label", `Remove ${name}`);
    cross.textContent = "×";
    cross.setAttribute("aria-hidden", "true");
    button.append(makeMark(place), ` ${name} `, cross);
    button.addEventListener("click", remove);
    item.append(button);
    return item;
  }

  /** The sign of a series, in the colour and the shape that charts give it. */
  function makeMark(place) {
    const space = "http://www.w3.org/2000/svg";
    const [svg, path] = ["svg", "path"].map((name) => document.createElementNS(space, name));
    for (const [name, value] of Object.entries({ width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" })) {
      svg.setAttribute(name, value);
    }
    path.setAttribute("d", PATHS[SHAPES[place]]);
    path.setAttribute("class", `series-${place + 1}`);
    svg.append(path);
    return svg;
  }

  const PATHS = {
    circle: "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z", square: "M-4 -4H4V4H-4Z", "triangle-up": "M0 -5L5 4H-5Z",
    diamond: "M0 -6L5 0L0 6L-5 0Z", "triangle-down": "M0 5L5 -4H-5Z", cross: "M-2 -5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
  };

  /** `81.7 % (77.9 to 85.2)` of tenths of a percent. */
  function tell(figure) {
    const [value, low, high] = figure.map((end) => (end / 10).toFixed(1));
    return `${value} % (${low} to ${high})`;
  }

  rove.charts = { draw, readState, writeState, fill, choose, tell, nameRows };
}
