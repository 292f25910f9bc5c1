// The table of a suite: sorting, filtering, groups of columns, downloads; all that is chosen stands in the address.
"use strict";
(() => {
  const table = document.getElementById("board");
  if (!table || !window.DataTable) return;

  const { writeQuery, copyLink, download, toCsv } = window.rove.share;
  const byId = (id) => document.getElementById(id);
  const heads = [...table.tHead.rows[1].cells];
  const columns = heads.map((head) => ({ ...head.dataset, title: head.firstChild.textContent.trim() }));
  // Kept from before columns are hidden, which takes their cells out of the rows.
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, cells: [...row.cells] }));
  const PAGE = 100;
  const SHOWN = ["shift", "clean", "families", "cost"];
  const FILTERS = ["search", "method", "hardware", "most", "badge"];
  const groups = new Set(columns.map((column) => column.group).filter(Boolean));
  const state = readState();

  function readState() {
    const params = new URLSearchParams(location.search);
    const asked = params.has("groups") ? params.get("groups").split(",") : SHOWN;
    return {
      groups: new Set(asked.filter((name) => groups.has(name))),
      by: params.get("by") === "lost" ? "lost" : "r1",
      order: readOrder(params.get("sort") ?? ""),
      page: Math.max(0, Number.parseInt(params.get("page") ?? "1", 10) - 1 || 0),
      length: params.get("rows") === "all" ? -1 : PAGE,
      filters: Object.fromEntries(FILTERS.map((name) => [name, params.get(name) ?? ""])),
    };
  }

  // `-mce,submission`: keys of columns, a minus for descending.
  function readOrder(text) {
    const order = text.split(",").map((part) => {
      const place = columns.findIndex((column) => column.key === part.replace(/^-/, ""));
      return [place, part.startsWith("-") ? "desc" : "asc"];
    });
    const known = order.filter(([place]) => place >= 0);
    return known.length ? known : [[0, "asc"]];
  }

  function isByRank(order) {
    return order.length === 1 && order[0][0] === 0 && order[0][1] === "asc";
  }

  function isShown(column) {
    if (!column.group) return true;
    return state.groups.has(column.group) && (!column.by || column.by === state.by);
  }

  // Numbers, nothing last in either direction.
  function compare(sign) {
    return (a, b) => {
      if (a === null || b === null) return Number(a === null) - Number(b === null);
      return sign * (a - b);
    };
  }

  function registerTypes() {
    const asNumber = (text) => (text === "" ? null : Number(text));
    const asText = (text) => text.toLowerCase();
    DataTable.ext.type.order["figure-pre"] = asNumber;
    DataTable.ext.type.order["figure-asc"] = compare(1);
    DataTable.ext.type.order["figure-desc"] = compare(-1);
    DataTable.ext.type.order["words-pre"] = asText;
    DataTable.ext.type.order["words-asc"] = (a, b) => Number(!a) - Number(!b) || (a < b ? -1 : Number(a > b));
    DataTable.ext.type.order["words-desc"] = (a, b) => Number(!a) - Number(!b) || (a > b ? -1 : Number(a < b));
  }

  function settingsOf(column) {
    const isText = column.kind === "text";
    return {
      type: isText ? "words" : "figure",
      searchable: isText,
      visible: isShown(column),
      orderSequence: isText || column.better === "low" ? ["asc", "desc"] : ["desc", "asc"],
    };
  }

  function start() {
    registerTypes();
    DataTable.ext.search.push((_settings, _texts, index) => isKept(rows[index].row));
    const api = new DataTable(table, {
      autoWidth: false,
      columns: columns.map(settingsOf),
      typeDetect: false,
      layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null, bottom: ["info", "paging"] },
      order: state.order,
      orderMulti: true,
      pageLength: state.length,
      displayStart: state.length < 0 ? 0 : state.page * PAGE,
      processing: false,
      search: { search: state.filters.search },
      titleRow: 1,
      language: {
        info: "Rows _START_ to _END_ of _TOTAL_",
        infoEmpty: "No rows",
        infoFiltered: "(of _MAX_ in all)",
        zeroRecords: "No submission is like that. Loosen a filter.",
        paginate: { first: "«", previous: "‹", next: "›", last: "»" },
      },
    });
    return api;
  }

  // With a limit, a submission whose parameters nobody counted is left out: it cannot be known to keep to it.
  function isKept(row) {
    const { method, hardware, most, badge } = state.filters;
    const { parameters } = row.dataset;
    if (method && row.dataset.method !== method) return false;
    if (hardware && row.dataset.hardware !== hardware) return false;
    if (badge && !row.dataset.badges.split(" ").includes(badge)) return false;
    return !most || !Number.isFinite(Number(most)) || (parameters !== "" && Number(parameters) <= Number(most) * 1e6);
  }

  function writeState(api) {
    const params = new URLSearchParams();
    const order = api.order().map(([place, way]) => [place, way]);
    if (!isByRank(order)) {
      params.set("sort", order.map(([place, way]) => (way === "desc" ? "-" : "") + columns[place].key).join(","));
    }
    for (const name of FILTERS) if (state.filters[name]) params.set(name, state.filters[name]);
    const shown = [...groups].filter((name) => state.groups.has(name));
    const usual = [...groups].filter((name) => SHOWN.includes(name));
    if (shown.join() !== usual.join()) params.set("groups", shown.join(","));
    if (state.by === "lost") params.set("by", "lost");
    if (state.length < 0) params.set("rows", "all");
    else if (api.page() > 0) params.set("page", api.page() + 1);
    writeQuery(params);
  }

  function showState(api) {
    table.classList.toggle("by-rank", isByRank(api.order()));
    for (const button of byId("groups").querySelectorAll("[data-group]")) {
      button.setAttribute("aria-pressed", String(state.groups.has(button.dataset.group)));
    }
    byId("by").textContent = state.by === "lost" ? "Families: show R@1" : "Families: show lost";
    byId("by").hidden = !state.groups.has("families");
    byId("status").textContent = say(api.page.info());
  }

  function say({ recordsDisplay, recordsTotal }) {
    return recordsDisplay === recordsTotal
      ? `${recordsTotal} submissions`
      : `${recordsDisplay} of ${recordsTotal} submissions`;
  }

  function showColumns(api) {
    const places = [true, false].map((wanted) => columns.flatMap((column, i) => (isShown(column) === wanted ? [i] : [])));
    api.columns(places[0]).visible(true, false);
    api.columns(places[1]).visible(false, false);
    api.draw("page");
  }

  function fillForms() {
    for (const name of FILTERS) {
      const input = byId(name);
      if (!input) continue;
      input.value = state.filters[name];
      // A value that the list does not have selects nothing; the filter would be on without being seen.
      if (input.value !== state.filters[name]) state.filters[name] = input.value = "";
    }
    byId("length").value = state.length < 0 ? "all" : String(PAGE);
  }

  function listen(api) {
    for (const name of FILTERS) {
      byId(name)?.addEventListener("input", ({ target }) => {
        state.filters[name] = target.value;
        api.search(state.filters.search).draw();
      });
    }
    byId("length").addEventListener("change", ({ target }) => {
      state.length = target.value === "all" ? -1 : PAGE;
      api.page.len(state.length).draw();
    });
    byId("groups").addEventListener("click", ({ target }) => {
      const { group } = target.dataset;
      if (!group) return;
      if (!state.groups.delete(group)) state.groups.add(group);
      showColumns(api);
    });
    byId("by").addEventListener("click", () => {
      state.by = state.by === "lost" ? "r1" : "lost";
      showColumns(api);
    });
    byId("csv").addEventListener("click", () => download(`${table.dataset.suite}.csv`, "text/csv", toCsv(toRows(seen(api)))));
    byId("json").addEventListener("click", () => {
      download(`${table.dataset.suite}.json`, "application/json", toJson(seen(api)));
    });
    byId("copy").addEventListener("click", ({ target }) => copyLink(target));
    byId("reset").addEventListener("click", () => { location.assign(location.pathname); });
    api.on("draw", () => {
      writeState(api);
      showState(api);
    });
  }

  // The rows of all pages as they are filtered and sorted, with the columns that are visible.
  function seen(api) {
    const shown = columns.flatMap((column, place) => (isShown(column) ? [{ ...column, place }] : []));
    const indexes = api.rows({ search: "applied", order: "applied" }).indexes().toArray();
    return { shown, found: indexes.map((index) => readRow(rows[index], shown)) };
  }

  function readRow({ row, cells }, shown) {
    const values = shown.flatMap((column) => readCell(column, cells[column.place]).map((value) => [column, ...value]));
    values.push([{ key: "method" }, "method", row.dataset.method], [{ key: "badges" }, "badges", row.dataset.badges]);
    return values;
  }

  // Pairs of a name and a value: of a figure its value and the ends of its interval, as they are shown.
  function readCell({ key, kind }, cell) {
    if (key === "submission") return [[key, cell.querySelector("a").textContent]];
    if (key === "rank") return [[key, Number(cell.firstChild.textContent)], ...readEnds(key, cell)];
    if (kind === "text") return [[key, cell.textContent]];
    if (kind === "number") return [[key, toNumber(cell.dataset.order)]];
    return [[key, toNumber(cell.dataset.order === "" ? "" : cell.firstChild.textContent)], ...readEnds(key, cell)];
  }

  function readEnds(key, cell) {
    const ends = (cell.querySelector(".ci")?.textContent ?? "").split(" to ");
    return [[`${key}_low`, toNumber(ends[0])], [`${key}_high`, toNumber(ends[1] ?? "")]];
  }

  function toNumber(text) {
    return text === "" ? null : Number(text);
  }

  function toRows({ found }) {
    const { suite, suiteId, rove } = table.dataset;
    const names = ["suite", "suite_id", "rove", ...(found[0] ?? []).map(([, name]) => name)];
    return [names, ...found.map((values) => [suite, suiteId, rove, ...values.map(([, , value]) => value)])];
  }

  function toJson({ shown, found }) {
    const { suite, suiteId, rove } = table.dataset;
    const described = shown.map(({ key, title, unit, kind }) => ({ key, title, unit, kind }));
    const data = { suite, suite_id: suiteId, rove, columns: described, rows: found.map(toObject) };
    return `${JSON.stringify(data, null, 1)}\n`;
  }

  function toObject(values) {
    const object = {};
    for (const [column, name, value] of values) {
      const figure = column.kind === "figure" || column.key === "rank";
      if (!figure) object[name] = value;
      else if (name === column.key) object[name] = { value, low: null, high: null };
      else object[column.key][name.slice(column.key.length + 1)] = value;
    }
    return object;
  }

  fillForms();
  const api = start();
  listen(api);
  showState(api);
  byId("pager").append(...document.querySelectorAll(".dt-layout-row:not(:has(table))"));
  byId("tools").hidden = byId("groups").hidden = false;
  table.classList.add("ready");
  (window.rove ||= {}).readyAfterMs = performance.now();
})();
