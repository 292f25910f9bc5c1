"use strict";
// The page that compares submissions: what is chosen stands in the URL, what is compared is resampled in bootstrap.js,
// and everything that a submitter wrote goes into the page as text.
{
  const { drawWeights, sumColumns, meanOf, interval, pValue, holm } = rove.bootstrap;
  const { writeQuery, download, toCsv } = rove.share;
  const board = rove.compare;
  const ROLES = ["a", "b", "c", "d"];
  const CROSS_MODAL = ["t2i", "i2t"];
  const SVG = "http://www.w3.org/2000/svg";
  const DEFAULT_MARGIN = 1;
  const SHOWN = { overall: "Overall", clean: "Clean", attacks: "Attacks" };

  const rowOfId = new Map(board.rows.map((row) => [row.id, row]));
  const rowOfName = new Map(board.rows.map((row) => [row.name, row]));
  const form = document.getElementById("choose");
  const status = document.getElementById("progress");
  const bar = document.getElementById("share");
  const place = document.getElementById("found");
  const downloadButton = document.getElementById("download");

  const tables = new Map(); // by row id, a promise of its tables
  const resampled = new Map(); // by row id, a promise of its cells' R@1 and resamples
  const weights = new Map(); // by number of images, a promise of how often each is drawn
  let state = readState();
  let compared = null;
  let turn = 0;

  // What is chosen.

  function readState() {
    const asked = new URLSearchParams(location.search);
    const ids = ROLES.map((role) => asked.get(role) ?? "");
    const isOpen = ids.every((id) => !id);
    const margin = Number(asked.get("margin"));
    return {
      ids: isOpen ? [board.rows[0].id, board.rows[1].id, "", ""] : ids,
      margin: margin > 0 && margin <= 20 ? margin : DEFAULT_MARGIN,
      sort: /^-?(order|r1|difference|p)[0-3]$/.test(asked.get("sort")) ? asked.get("sort") : "order0",
    };
  }

  function writeState() {
    const asked = new URLSearchParams();
    ROLES.forEach((role, index) => state.ids[index] && asked.set(role, state.ids[index]));
    if (state.margin !== DEFAULT_MARGIN) {
      asked.set("margin", state.margin);
    }
    if (state.sort !== "order0") {
      asked.set("sort", state.sort);
    }
    writeQuery(asked);
  }

  function fillForm() {
    ROLES.forEach((role, index) => {
      const id = state.ids[index];
      form.elements[role].value = rowOfId.get(id)?.name ?? id;
    });
    form.elements.margin.value = state.margin;
  }

  function readForm() {
    const typed = ROLES.map((role) => form.elements[role].value.trim());
    const margin = form.elements.margin.valueAsNumber;
    const ids = typed.map((name) => (rowOfName.get(name) ?? rowOfId.get(name))?.id ?? name);
    state = { ...state, ids, margin: margin > 0 && margin <= 20 ? margin : state.margin };
  }

  /** Why the choice cannot be compared; empty if it can. */
  function findFault() {
    const [first, second] = state.ids;
    const stranger = state.ids.find((id) => id && !rowOfId.has(id));
    if (stranger) {
      return `No submission of ${board.suite} is called ${stranger}; choose one of the list.`;
    }
    if (!first || !second) {
      return "Choose two submissions, A and B.";
    }
    const chosen = state.ids.filter(Boolean);
    return new Set(chosen).size < chosen.length ? "One submission is chosen twice; choose different ones." : "";
  }

  // A row's tables: hits at 1 and queries of every image, by cell and direction.

  function loadTables(id) {
    return remember(tables, id, async () => {
      const data = await loadHits(id);
      const [hits, queries] = await Promise.all([inflate(data.hits), inflate(data.queries)]);
      return { keys: data.keys, cells: splitCells(data, hits, queries) };
    });
  }

  /** By a script element: a page opened from disk may fetch nothing. */
  function loadHits(id) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `hits/${id}.js`;
      script.addEventListener("load", () => {
        resolve(rove.hits);
        delete rove.hits;
        script.remove();
      });
      script.addEventListener("error", () => reject(new Error(`hits/${id}.js is missing; download the whole site.`)));
      document.head.append(script);
    });
  }

  async function inflate(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function splitCells(data, hits, queries) {
    const cells = new Map();
    let start = 0;
    data.names.forEach((name, index) => {
      const nImages = data.n_images[index];
      const [slug, direction] = name.split("/");
      const cell = cells.get(slug) ?? { items: data.items[index], nImages, directions: [] };
      const part = [start, start + nImages];
      cell.directions.push({ direction, hits: hits.subarray(...part), queries: queries.subarray(...part) });
      cells.set(slug, cell);
      start += nImages;
    });
    return cells;
  }

  // Resampling.

  /** By cell, the mean R@1 over its directions and its resamples. */
  function resample(id) {
    return remember(resampled, id, async () => {
      const { keys, cells } = await loadTables(id);
      const found = new Map();
      for (const [size, key] of Object.entries(keys)) {
        const nImages = Number(size);
        const ofSize = [...cells].filter(([, cell]) => cell.nImages === nImages);
        const drawn = await loadWeights(nImages, key);
        await resampleCells(ofSize, drawn, found, (share) => showProgress(`Resampling ${rowOfId.get(id).name}`, share));
      }
      return found;
    });
  }

  function loadWeights(nImages, key) {
    const report = (share) => showProgress(`Drawing 10,000 resamples of ${nImages} images`, share);
    return remember(weights, nImages, () => drawWeights(nImages, key, report));
  }

  async function resampleCells(cells, drawn, found, report) {
    const columns = [];
    const placeOf = new Map();
    const askFor = (column) => {
      const known = String(column);
      if (!placeOf.has(known)) {
        placeOf.set(known, columns.push(column) - 1);
      }
      return placeOf.get(known);
    };
    const asked = cells.map(([slug, cell]) => {
      const parts = scoredParts(cell);
      return { slug, parts, places: parts.map((part) => [askFor(part.hits), askFor(part.queries)]) };
    });
    const sums = await sumColumns(drawn, columns, report);
    for (const { slug, parts, places } of asked) {
      const value = mean(parts.map((part) => total(part.hits) / total(part.queries)));
      found.set(slug, { value, resamples: meanOf(places.map(([over, under]) => divide(sums[over], sums[under]))) });
    }
  }

  /** The directions that R@1 is averaged over: the cross-modal ones where there are any. */
  function scoredParts(cell) {
    const crossed = cell.directions.filter((part) => CROSS_MODAL.includes(part.direction));
    const parts = crossed.length ? crossed : cell.directions;
    return [...parts].sort((one, other) => CROSS_MODAL.indexOf(one.direction) - CROSS_MODAL.indexOf(other.direction));
  }

  // Comparing.

  /** Groups of lines, and the cells that cannot be compared. */
  async function compare(ids) {
    const loaded = [];
    for (const id of ids) {
      loaded.push(await resample(id));
    }
    const shared = await findShared(ids);
    const ofCell = (cell) => loaded.map((cells) => cells.get(cell.slug));
    const lines = shared.cells.map((cell) => ({ cell, title: cell.id, parts: ofCell(cell) }));
    const families = [...group(lines.filter(({ cell }) => cell.group === "shifted"), ({ cell }) => cell.family)].map(
      ([name, members]) => ({ name, members, mean: averageFamily(name, members) }),
    );
    const overall = families.length ? [averageLines(SHOWN.overall, families.map((family) => family.mean))] : [];
    [lines, families.map((family) => family.mean), overall].forEach(compareLines);
    const others = (kind) => ({ name: SHOWN[kind], members: lines.filter(({ cell }) => cell.group === kind) });
    const means = overall.map((line) => ({ mean: line, members: [] }));
    const groups = [...means, others("clean"), ...families, others("attacks")];
    return {
      ids,
      groups: groups.filter((found) => found.mean || found.members.length),
      excluded: shared.excluded,
    };
  }

  /** The cells that all have on the same items; of the others why they are left out. */
  async function findShared(ids) {
    const loaded = await Promise.all(ids.map(loadTables));
    const [cells, excluded] = [[], []];
    for (const cell of board.cells) {
      const found = loaded.map((table) => table.cells.get(cell.slug));
      if (found.every((one) => one && one.items === found[0].items)) {
        cells.push(cell);
      } else if (found.some(Boolean)) {
        excluded.push({ id: cell.id, why: describeExclusion(ids, found) });
      }
    }
    return { cells, excluded };
  }

  function describeExclusion(ids, found) {
    const lacking = ids.filter((_, index) => !found[index]).map((id) => rowOfId.get(id).name);
    return lacking.length ? `not scored by ${lacking.join(", ")}` : "scored on other items";
  }

  /** The mean over shifts of the mean over each shift's cells. */
  function averageFamily(name, members) {
    const shifts = [...group(members, ({ cell }) => cell.change).values()];
    return averageLines(name, shifts.map((lines) => averageLines("", lines)));
  }

  function averageLines(title, lines) {
    const parts = lines[0].parts.map((_, index) => ({
      value: mean(lines.map((line) => line.parts[index].value)),
      resamples: meanOf(lines.map((line) => line.parts[index].resamples)),
    }));
    return { title, parts };
  }

  /** Adds intervals, the differences of the first from the others, and p-values that are corrected over these lines. */
  function compareLines(lines) {
    for (const line of lines) {
      line.scores = line.parts.map(({ value, resamples }) => ({ value, ends: interval(resamples) }));
      line.pairs = line.parts.slice(1).map((other) => subtract(line.parts[0], other));
    }
    for (let pair = 0; pair < (lines[0]?.pairs.length ?? 0); pair++) {
      const adjusted = holm(lines.map((line) => line.pairs[pair].p));
      lines.forEach((line, index) => (line.pairs[pair].adjusted = adjusted[index]));
    }
  }

  function subtract(first, second) {
    const differences = first.resamples.map((value, index) => value - second.resamples[index]);
    return { value: first.value - second.value, ends: interval(differences), p: pValue(differences) };
  }

  function judge({ ends }) {
    if (!ends) {
      return "undecided";
    }
    const isWithin = -state.margin / 100 < ends[0] && ends[1] < state.margin / 100;
    return ends[0] > 0 ? "better" : ends[1] < 0 ? "worse" : isWithin ? "equal" : "undecided";
  }

  /** Whether a difference that is there is also smaller than what counts as one. */
  function isSlight({ ends }) {
    return Boolean(ends) && -state.margin / 100 < ends[0] && ends[1] < state.margin / 100;
  }

  // Showing.

  function show() {
    const { ids, groups, excluded } = compared;
    const table = element("table", {}, element("caption", {}, describe()), drawHead(ids));
    const scale = findScale(groups);
    for (const found of sortGroups(groups)) {
      table.append(drawGroup(found, scale));
    }
    const scroll = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Comparison" }, table);
    place.replaceChildren(element("div", {}, ...describeCounts(ids)), scroll, ...drawExcluded(excluded));
  }

  function describe() {
    return `R@1 of ${compared.ids.map((id) => rowOfId.get(id).name).join(", ")} on ${board.suite}, cell by cell`;
  }

  function describeCounts(ids) {
    const lines = compared.groups.flatMap((found) => found.members);
    return ids.slice(1).map((id, pair) => {
      const pairs = lines.map((line) => line.pairs[pair]);
      const count = (verdict) => pairs.filter((found) => judge(found) === verdict).length;
      const corrected = pairs.filter((found) => found.adjusted < 0.05).length;
      return element(
        "p",
        {},
        element("b", {}, rowOfId.get(ids[0]).name),
        " against ",
        element("b", {}, rowOfId.get(id).name),
        `, ${lines.length} cells: better on ${count("better")}, worse on ${count("worse")}, equal within ` +
          `${state.margin} pp on ${count("equal")}, undecided on ${count("undecided")}; ` +
          `${corrected} differ at the corrected 5 % level.`,
      );
    });
  }

  function drawHead(ids) {
    const names = ids.map((id, index) =>
      element(
        "th",
        { colspan: index ? 5 : 1, scope: "colgroup", class: index ? "starts" : "" },
        `${ROLES[index].toUpperCase()}: `,
        element("a", { href: `submissions/${id}.html` }, rowOfId.get(id).name),
      ),
    );
    const columns = ids.flatMap((_, index) =>
      index
        ? [
            drawHeading(`r1${index}`, "R@1, %", "starts"),
            drawHeading(`difference${index}`, `A − ${ROLES[index].toUpperCase()}, pp`),
            element("th", { scope: "col" }, "95 % interval"),
            drawHeading(`p${index}`, "p (Holm)"),
            element("th", { scope: "col", class: "text" }, `A is`),
          ]
        : [drawHeading("r10", "R@1, %")],
    );
    const corner = drawHeading("order0", "Cell", "cell");
    corner.rowSpan = 2;
    return element("thead", {}, element("tr", {}, corner, ...names), element("tr", {}, ...columns));
  }

  function drawHeading(column, text, kind = "") {
    const current = state.sort.replace("-", "") === column;
    const direction = state.sort.startsWith("-") ? "descending" : "ascending";
    const button = element("button", { type: "button", "data-sort": column }, text);
    return element("th", { scope: "col", class: kind, ...(current ? { "aria-sort": direction } : {}) }, button);
  }

  function drawGroup({ name, mean: meanLine, members }, scale) {
    const body = element("tbody", {});
    if (meanLine) {
      const note = members.length ? `mean of ${members.length} cells` : "mean of the families";
      body.append(drawLine(meanLine, scale, "mean", note));
    } else {
      const width = 2 + 5 * (compared.ids.length - 1);
      const heading = element("th", { class: "cell", scope: "rowgroup" }, name);
      body.append(element("tr", { class: "mean" }, heading, element("td", { colspan: width - 1 })));
    }
    body.append(...sortLines(members).map((line) => drawLine(line, scale, "", "")));
    return body;
  }

  function drawLine(line, scale, kind, note) {
    const below = note && element("span", { class: "ci" }, note);
    const title = element("th", { class: "cell", scope: "row" }, line.title, below);
    const cells = line.scores.flatMap((score, index) => [
      drawFigure(percent(score.value), score.ends?.map(percent), index ? "starts" : ""),
      ...(index ? drawPair(line.pairs[index - 1], scale) : []),
    ]);
    return element("tr", { class: kind }, title, ...cells);
  }

  function drawPair(pair, scale) {
    const verdict = judge(pair);
    const isNoted = isSlight(pair) && verdict !== "equal";
    return [
      drawFigure(signed(pair.value), pair.ends?.map(signed)),
      element("td", {}, drawForest(pair, verdict, scale)),
      element("td", {}, pair.adjusted < 0.0001 ? "< 0.0001" : pair.adjusted.toFixed(4)),
      element(
        "td",
        { class: `text verdict ${verdict}` },
        verdict,
        (isNoted || verdict === "equal") && element("span", { class: "ci" }, `within ${state.margin} pp`),
      ),
    ];
  }

  function drawFigure(value, ends, kind = "") {
    const below = element("span", { class: "ci" }, ends ? ends.join(" to ") : "undefined");
    return element("td", { class: kind }, value, below);
  }

  /** A dot with its interval over 0 and the margin; the text beside it says the same. */
  function drawForest({ value, ends }, verdict, scale) {
    const at = (fraction) => 50 + (50 * fraction) / scale;
    const margin = Math.min(state.margin / 100, scale);
    const frame = { viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": true };
    const plot = drawn("svg", { class: `forest ${verdict}`, ...frame });
    plot.append(
      drawn("rect", { class: "margin", x: at(-margin), width: at(margin) - at(-margin), y: 0, height: 20 }),
      drawn("line", { class: "zero", x1: 50, x2: 50, y1: 0, y2: 20, "vector-effect": "non-scaling-stroke" }),
    );
    if (ends) {
      const whisker = { x1: at(ends[0]), x2: at(ends[1]), y1: 10, y2: 10, "vector-effect": "non-scaling-stroke" };
      plot.append(drawn("line", { class: "whisker", ...whisker }));
    }
    plot.append(drawn("rect", { class: "dot", x: at(value) - 1.5, y: 5, width: 3, height: 10 }));
    return plot;
  }

  /** How far the axis reaches that all plots share: nine of ten ends stay inside it, the others are cut off. */
  function findScale(groups) {
    const lines = groups.flatMap((found) => [...found.members, ...(found.mean ? [found.mean] : [])]);
    const reached = lines.flatMap((line) => line.pairs.flatMap((pair) => [pair.value, ...(pair.ends ?? [])]));
    const sorted = reached.map(Math.abs).sort((one, other) => one - other);
    return Math.max(0.01, sorted[Math.floor(0.9 * sorted.length)]);
  }

  function drawExcluded(excluded) {
    if (!excluded.length) {
      return [];
    }
    const items = excluded.map(({ id, why }) => element("li", {}, `${id}: ${why}`));
    return [element("h2", {}, "Not comparable"), element("ul", {}, ...items)];
  }

  // Sorting: the overall line stays on top; families are sorted by their means, cells within their family.

  function sortGroups(groups) {
    const families = groups.filter((found) => found.mean && found.members.length);
    const before = groups.slice(0, groups.indexOf(families[0]));
    const after = groups.slice(before.length + families.length);
    const familyOf = new Map(families.map((found) => [found.mean, found]));
    const sorted = sortLines([...familyOf.keys()]).map((line) => familyOf.get(line));
    return families.length ? [...before, ...sorted, ...after] : groups;
  }

  function sortLines(lines) {
    const [, sign, column, index] = state.sort.match(/^(-?)([a-z0-9]+?)([0-3])$/);
    const keys = {
      order: (line) => lines.indexOf(line),
      r1: (line) => line.scores[index]?.value,
      difference: (line) => line.pairs[index - 1]?.value,
      p: (line) => line.pairs[index - 1]?.adjusted,
    };
    const keyOf = (line) => keys[column](line) ?? 0;
    return [...lines].sort((one, other) => (sign ? keyOf(other) - keyOf(one) : keyOf(one) - keyOf(other)));
  }

  // The table as a file.

  function downloadTable() {
    download(`${compared.ids.join("-vs-")}.csv`.slice(-200), "text/csv", toCsv(toRows()));
  }

  /** Fractions with all their digits; one line per cell, family and pair. */
  function toRows() {
    const head = "suite,level,name,a,other,r1_a,r1_a_low,r1_a_high,r1_other,r1_other_low,r1_other_high";
    const rows = [[...head.split(","), ..."difference,low,high,p,p_holm,margin,verdict".split(",")]];
    for (const { mean: meanLine, members } of compared.groups) {
      rows.push(...(meanLine ? listFields(members.length ? "family" : "overall", meanLine) : []));
      rows.push(...members.flatMap((line) => listFields("cell", line)));
    }
    return rows;
  }

  function listFields(level, line) {
    const names = compared.ids.map((id) => rowOfId.get(id).name);
    const withEnds = ({ value, ends }) => [value, ...(ends ?? ["", ""])];
    return line.pairs.map((pair, index) => [
      ...[board.suite, level, line.title, names[0], names[index + 1]],
      ...[line.scores[0], line.scores[index + 1], pair].flatMap(withEnds),
      ...[pair.p, pair.adjusted, state.margin / 100, judge(pair)],
    ]);
  }

  // Running.

  async function update() {
    const mine = ++turn;
    writeState();
    compared = null;
    downloadButton.disabled = true;
    const fault = findFault();
    if (fault) {
      place.replaceChildren();
      finish(fault);
      return;
    }
    const ids = state.ids.filter(Boolean);
    forgetOthers(ids);
    try {
      const found = await compare(ids);
      if (mine === turn) {
        compared = found;
        downloadButton.disabled = false;
        show();
        finish(`Compared over ${countCells(found)} cells.`);
      }
    } catch (error) {
      if (mine === turn) {
        finish(error.message);
      }
    }
  }

  function countCells(found) {
    return found.groups.reduce((count, { members }) => count + members.length, 0);
  }

  /** Resamples of 300 cells take 24 MB a submission: those no longer chosen are let go. */
  function forgetOthers(ids) {
    for (const known of [tables, resampled]) {
      [...known.keys()].filter((id) => !ids.includes(id)).forEach((id) => known.delete(id));
    }
  }

  function showProgress(text, share) {
    bar.hidden = false;
    bar.value = share;
    const line = `${text} …`;
    if (status.textContent !== line) {
      status.textContent = line;
    }
  }

  function finish(text) {
    bar.hidden = true;
    status.textContent = text;
  }

  function start() {
    document.getElementById("submissions").append(...board.rows.map((row) => element("option", { value: row.name })));
    fillForm();
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", (event) => {
      readForm();
      if (event.target.name === "margin" && compared) {
        writeState();
        show();
      } else if (event.target.name !== "margin") {
        update();
      }
    });
    form.addEventListener("focusin", (event) => event.target.matches("input[list]") && event.target.select());
    document.getElementById("swap").addEventListener("click", () => {
      const [first, second, ...rest] = state.ids;
      state.ids = [second, first, ...rest];
      fillForm();
      update();
    });
    downloadButton.addEventListener("click", downloadTable);
    place.addEventListener("click", sortByClick);
    update();
  }

  function sortByClick(event) {
    const column = event.target.closest("button[data-sort]")?.dataset.sort;
    if (column) {
      state.sort = state.sort === column ? `-${column}` : column;
      writeState();
      show();
      place.querySelector(`button[data-sort="${column}"]`).focus();
    }
  }

  // Small things.

  /** A remembered promise; what failed is tried again the next time. */
  function remember(known, key, make) {
    if (!known.has(key)) {
      const made = make();
      known.set(key, made);
      made.catch(() => known.delete(key));
    }
    return known.get(key);
  }

  function group(items, keyOf) {
    const groups = new Map();
    for (const item of items) {
      const key = keyOf(item);
      groups.set(key, [...(groups.get(key) ?? []), item]);
    }
    return groups;
  }

  function total(counts) {
    return counts.reduce((sum, count) => sum + count, 0);
  }

  function mean(values) {
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  }

  function divide(over, under) {
    return over.map((value, index) => value / under[index]);
  }

  function percent(fraction) {
    return (100 * fraction).toFixed(1);
  }

  function signed(fraction) {
    const text = (100 * fraction).toFixed(1);
    return Number(text) === 0 ? "0.0" : fraction < 0 ? text.replace("-", "−") : `+${text}`;
  }

  function element(tag, attributes, ...children) {
    return attach(document.createElement(tag), attributes, children);
  }

  function drawn(tag, attributes) {
    return attach(document.createElementNS(SVG, tag), attributes, []);
  }

  function attach(made, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== "") {
        made.setAttribute(name, value);
      }
    }
    made.append(...children.filter(Boolean));
    return made;
  }

  start();
}
