// The table: a row per arm and per bare model, sorted by any column.
"use strict";
(() => {
  const { make, tick, format, numeric, plural, state } = page;
  const chosen = new Map();
  const sort = { name: null, descending: true };
  let open = false;

  /** The columns to draw, each with its number; on a narrow screen the scores come right after the names. */
  function drawn(sheet) {
    const columns = sheet.columns.map((column, index) => [column, index]).filter(([column]) => column.name === "experiment" || isShown(column));
    const rank = ([column]) => (column.name === "experiment" ? 0 : column.name === "score" ? 1 : 2);
    return window.innerWidth < 600 ? columns.sort((first, second) => rank(first) - rank(second)) : columns;
  }

  const isShown = (column) => chosen.get(column.name) ?? column.shown;

  function cell(row, column, index) {
    const value = row.values[index];
    const kind = numeric(column) ? "number" : "";
    if (value === null) {
      if (row.kind === "base") return make("td", { class: kind, title: "a bare model: nothing was trained" }, "-");
      const why = row.unknown[column.name] ?? "not in the record";
      return make("td", { class: kind }, make("span", { class: "missing", title: why, "aria-label": `not measured: ${why}` }, "not measured"));
    }
    if (column.name === "seeds") return make("td", { class: kind, title: `seed ${row.seeds.join(", ")}` }, format(column.kind, value));
    const found = make("td", { class: kind, title: numeric(column) ? String(value) : null }, format(column.kind, value));
    const interval = row.intervals[column.name];
    if (interval) found.append(make("span", { class: "interval" }, interval.map((bound) => format(column.kind, bound)).join(" to ")));
    return found;
  }

  function header(row, index) {
    const name = make("th", { scope: "row" }, row.values[index]);
    if (row.unpaired !== null) name.append(" ", make("span", { class: "tag", title: row.unpaired }, "unpaired"));
    return name;
  }

  function compare(first, second, index) {
    const a = first.values[index], b = second.values[index];
    const lost = (value) => value === null || Number.isNaN(value);
    if (lost(a) || lost(b)) return lost(a) - lost(b);
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return sort.descending ? -order : order;
  }

  function sorted() {
    const index = page.place(state.sheet, sort.name);
    return index < 0 ? page.rows() : [...page.rows()].sort((first, second) => compare(first, second, index));
  }

  function by(column) {
    if (sort.name === column.name) sort.descending = !sort.descending;
    else { sort.name = column.name; sort.descending = column.direction === "higher"; }
  }

  function fill(body, columns) {
    body.replaceChildren(...sorted().map((row) => {
      const line = make("tr", { class: row.kind });
      for (const [column, index] of columns) line.append(column.name === "experiment" ? header(row, index) : cell(row, column, index));
      if (state.sheet.rows.some((one) => one.notes.length > 0)) line.append(make("td", { class: "long" }, row.notes.join("; ")));
      return line;
    }));
  }

  function table(columns) {
    const body = make("tbody"), head = make("tr");
    const mark = () => {
      for (const [place, [column]] of columns.entries()) {
        const order = sort.name === column.name ? (sort.descending ? "descending" : "ascending") : "none";
        head.children[place].setAttribute("aria-sort", order);
      }
    };
    for (const [column] of columns) {
      const click = () => { by(column); fill(body, columns); mark(); };
      const button = make("button", { type: "button", "data-column": column.name, on: { click } }, column.title);
      head.append(make("th", { scope: "col", class: numeric(column) ? "number" : "" }, button));
    }
    if (state.sheet.rows.some((one) => one.notes.length > 0)) head.append(make("th", { scope: "col" }, "notes"));
    fill(body, columns);
    mark();
    return make("table", {}, make("thead", {}, head), body);
  }

  /** Quoted, and a text that a spreadsheet would compute is kept a text. */
  const quoted = (value) => {
    const text = value === null ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };

  function save() {
    const { columns } = state.sheet;
    const bounds = (row) => row.intervals.score ?? [null, null];
    const lines = [[...columns.map((column) => column.name), "score_low", "score_high", "unpaired"]];
    for (const row of sorted()) lines.push([...row.values, ...bounds(row), row.unpaired === null ? "" : row.unpaired]);
    const text = lines.map((line) => line.map(quoted).join(",")).join("\r\n");
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    make("a", { href: url, download: `${state.sheet.task}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  function chooser(redraw) {
    const box = make("div", { class: "grid" });
    for (const column of state.sheet.columns.slice(1)) {
      box.append(tick(column.title, isShown(column), (on) => { chosen.set(column.name, on); redraw(); }));
    }
    const all = (on) => () => {
      for (const column of state.sheet.columns) if (on) chosen.set(column.name, true); else chosen.delete(column.name);
      redraw();
    };
    const buttons = make("div", { class: "controls" },
      make("button", { type: "button", on: { click: all(true) } }, "all"),
      make("button", { type: "button", on: { click: all(false) } }, "the usual ones"),
      make("button", { type: "button", on: { click: save } }, "save as CSV"));
    return make("details", { open, on: { toggle: (event) => { open = event.target.open; } } }, make("summary", {}, "columns"), buttons, box);
  }

  page.section({
    id: "scores",
    title: "Scores and costs",
    draw(body) {
      const sheet = state.sheet;
      if (sheet === null) { body.replaceChildren(make("p", {}, "No finished run was scored.")); return; }
      const better = sheet.direction === "higher" ? "higher is better" : "lower is better";
      const count = page.rows().filter((row) => row.kind === "arm").length;
      const text = `${sheet.task}, ${sheet.part} rows, ${sheet.metric} (${better}), with its 95 % interval: ${plural(count, "arm")}. `
        + "Costs are means over the seeds. The numbers are those of peftlab compare.";
      const baselines = Object.entries(sheet.baselines).map(([name, value]) => `${name}: ${format("score", value)}`);
      body.replaceChildren(
        make("p", {}, text),
        chooser(() => this.draw(body)),
        make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores and costs" }, table(drawn(sheet))),
        ...(baselines.length ? [make("p", { class: "quiet" }, baselines.join("; "))] : []),
      );
    },
  });
})();
