// Score against cost: any numeric column against any other, with the arms that no other arm beats on both.
"use strict";
(() => {
  const { make, menu, tick, format, numeric, plural, state } = page;
  const MANY = 60; // above, only the frontier's intervals are drawn
  const axes = { x: null, y: null, logX: false, logY: false };
  let lit = (new URLSearchParams(window.location.search).get("highlight") ?? "").toLowerCase();

  const usable = (sheet) => sheet.columns.filter((column) => numeric(column) && sheet.rows.some((row) => row.kind === "arm" && row.values[page.place(sheet, column.name)] !== null));

  function settle(columns) {
    const has = (name) => columns.some((column) => column.name === name);
    const first = (...names) => names.find(has) ?? columns[0]?.name;
    if (!has(axes.x)) axes.x = first("memory_max", "train_seconds", "trainable_parameters");
    if (!has(axes.y)) axes.y = first("score");
  }

  /** Whether `a` is at least as good on both axes and better on one. */
  function dominates(a, b, signX, signY) {
    const x = signX * (a.x - b.x), y = signY * (a.y - b.y);
    return x >= 0 && y >= 0 && (x > 0 || y > 0);
  }

  function frontier(points, columnX, columnY) {
    if (columnX.direction === null || columnY.direction === null || columnX === columnY) return null;
    const sign = (column) => (column.direction === "higher" ? 1 : -1);
    return points.filter((one) => !points.some((other) => dominates(other, one, sign(columnX), sign(columnY))));
  }

  function points(sheet, columnX, columnY) {
    const fits = (value, log) => typeof value === "number" && Number.isFinite(value) && (!log || value > 0);
    const arms = page.rows().filter((row) => row.kind === "arm");
    const found = arms.map((row) => ({ row, x: page.value(sheet, row, columnX.name), y: page.value(sheet, row, columnY.name) }));
    return [found.filter((one) => fits(one.x, axes.logX) && fits(one.y, axes.logY)), arms.length];
  }

  function label(sheet, one, columnX, columnY) {
    const { row } = one;
    const bounds = (column) => {
      const interval = row.intervals[column.name];
      return interval ? ` (${interval.map((bound) => format(column.kind, bound)).join(" to ")})` : "";
    };
    const lines = [columnY, columnX].map((column, index) => `${column.title}: ${format(column.kind, index ? one.x : one.y)}${bounds(column)}`);
    const seeds = row.seeds.length === 1 ? `one run, seed ${row.seeds[0]}` : `${row.seeds.length} runs`;
    return [page.value(sheet, row, "experiment"), `${page.value(sheet, row, "method")}, ${seeds}${row.unpaired === null ? "" : ", unpaired"}`, ...lines].join("\n");
  }

  const method = (sheet, one) => String(page.value(sheet, one.row, "method")).toLowerCase();

  /** How a point is drawn: filled where it is on the frontier or, once a method is highlighted, of that method. */
  function shades(sheet, best) {
    const isBest = new Set(best ?? []), chosen = lit !== "";
    const filled = (one) => (chosen ? method(sheet, one) === lit : isBest.has(one));
    const strong = chosen ? "var(--series-1)" : "var(--accent)";
    return {
      filled, r: (one) => (filled(one) ? 5.5 : 4), strokeOpacity: (one) => (chosen && !filled(one) ? 0.5 : 1),
      stroke: (one) => (filled(one) ? strong : "var(--point)"), fill: (one) => (filled(one) ? strong : "var(--paper)"),
      line: chosen ? "var(--point)" : "var(--accent)",
    };
  }

  const UNITS = { bytes: [["B", 1], ["KiB", 2 ** 10], ["MiB", 2 ** 20], ["GiB", 2 ** 30]], seconds: [["s", 1], ["min", 60], ["h", 3600]] };

  /** The unit that makes an axis of readable numbers: its name and size. */
  function unit(column, values) {
    const largest = Math.max(0, ...values.map(Math.abs));
    const fitting = (UNITS[column.kind] ?? []).filter(([, size], index) => index === 0 || largest >= 2 * size);
    return fitting.length ? fitting[fitting.length - 1] : ["", 1];
  }

  function axis(column, log, pixels, values) {
    const [, size] = unit(column, values);
    return {
      label: null, grid: true, nice: !log, type: log ? "log" : "linear", transform: (value) => value / size,
      tickFormat: column.kind === "count" ? "~s" : "~g", ticks: Math.max(2, Math.round(pixels / 100)),
    };
  }

  function reference(sheet, axisName, column) {
    if (column.name !== "score") return [];
    const bars = page.rows().filter((row) => row.kind === "base" && sheet.bars.includes(row.values[0]));
    const values = bars.map((row) => page.value(sheet, row, "score")).filter((value) => Number.isFinite(value));
    const rule = axisName === "y" ? Plot.ruleY : Plot.ruleX;
    return values.length ? [rule(values, { stroke: "var(--quiet)", strokeDasharray: "2 4" })] : [];
  }

  function chart(sheet, found, best, columnX, columnY, width) {
    const withBars = found.length <= MANY ? found : best ?? [];
    const bars = (name) => withBars.filter((one) => one.row.intervals[name]);
    const low = (name) => (one) => one.row.intervals[name][0], high = (name) => (one) => one.row.intervals[name][1];
    const { filled, line, ...shade } = shades(sheet, best);
    const named = lit === "" ? best ?? [] : found.filter(filled);
    const height = Math.max(260, Math.min(480, width * 0.5));
    const marks = [
      ...reference(sheet, "y", columnY),
      ...reference(sheet, "x", columnX),
      Plot.ruleX(bars(columnY.name), { x: "x", y1: low(columnY.name), y2: high(columnY.name), stroke: "var(--point)", strokeOpacity: 0.6 }),
      Plot.ruleY(bars(columnX.name), { y: "y", x1: low(columnX.name), x2: high(columnX.name), stroke: "var(--point)", strokeOpacity: 0.6 }),
      Plot.line(best ?? [], { x: "x", y: "y", sort: "x", stroke: line, strokeDasharray: "5 3" }),
      Plot.dot(found, { x: "x", y: "y", sort: null, strokeWidth: 1.5, ...shade }),
      Plot.text(named.length <= 10 && width > 560 ? named : [], { x: "x", y: "y", text: (one) => page.value(sheet, one.row, "experiment"), dy: -12, fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 3 }),
    ];
    return Plot.plot({
      width, height, marginLeft: 64, marginRight: 24, marginTop: 24, marginBottom: 36, style: { background: "none", color: "inherit" },
      r: { type: "identity" }, color: { type: "identity" }, opacity: { type: "identity" }, x: axis(columnX, axes.logX, width, found.map((one) => one.x)), y: axis(columnY, axes.logY, height, found.map((one) => one.y)), marks,
    });
  }

  /** Labels on hover, and on the arrow keys while the chart has the focus: one stop for the tab key, however many points. */
  function labelled(svg, found, text) {
    const tip = make("div", { class: "tip" }), spoken = make("p", { class: "quiet hint", "aria-live": "polite" }, "Hover a point, or focus the plot and use the arrow keys.");
    const place = make("div", { class: "chart", tabindex: "0", role: "group", "aria-label": "Plot; the arrow keys go from point to point" }, svg);
    const circles = [...svg.querySelectorAll('g[aria-label="dot"] circle')];
    const figure = make("figure", {}, place, tip, spoken);
    const order = circles.map((circle, index) => index).sort((a, b) => found[a].x - found[b].x || found[a].y - found[b].y);
    let active = -1;
    const show = (index) => {
      if (index < 0) { tip.textContent = ""; return; }
      const box = circles[index].getBoundingClientRect(), around = figure.getBoundingClientRect();
      tip.textContent = text(found[index]);
      spoken.textContent = tip.textContent.replaceAll("\n", "; ");
      const left = box.left - around.left + 14;
      tip.style.left = `${Math.max(0, Math.min(left, around.width - tip.offsetWidth))}px`;
      tip.style.top = `${box.top - around.top + 14}px`;
    };
    circles.forEach((circle, index) => {
      circle.setAttribute("aria-label", text(found[index]).replaceAll("\n", ", "));
      circle.addEventListener("pointerenter", () => show(index));
      circle.addEventListener("pointerleave", () => show(-1));
    });
    const go = (next) => { active = (next + order.length) % order.length; show(order[active]); };
    const keys = { ArrowRight: () => go(active + 1), ArrowLeft: () => go(active < 0 ? 0 : active - 1), Home: () => go(0), End: () => go(order.length - 1), Escape: () => show(-1) };
    place.addEventListener("keydown", (event) => { if (event.key in keys && order.length) { event.preventDefault(); keys[event.key](); } });
    place.addEventListener("focusout", () => show(-1));
    return figure;
  }

  /** The spread of what is plotted, an axis a line. */
  function spread(found, columnX, columnY) {
    const line = (column, values) => {
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      const cells = [Math.min(...values), mean, Math.max(...values)].map((value) => make("td", { class: "number" }, format(column.kind, value)));
      const better = column.direction === null ? "neither" : column.direction;
      return make("tr", {}, make("th", { scope: "row" }, column.title), ...cells, make("td", {}, better));
    };
    const titles = [["axis", ""], ["least", "number"], ["mean", "number"], ["greatest", "number"], ["better is", ""]];
    const head = make("tr", {}, ...titles.map(([title, kind]) => make("th", { scope: "col", class: kind }, title)));
    const lines = columnX === columnY ? [line(columnX, found.map((one) => one.x))] : [line(columnY, found.map((one) => one.y)), line(columnX, found.map((one) => one.x))];
    const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
    return make("div", { class: "scroll spread", tabindex: "0", role: "region", "aria-label": "Spread on both axes" }, table);
  }

  function summary(sheet, found, total, best, columnX, columnY) {
    const parts = [plural(found.length, "arm")], rule = "no other arm is at least as good on both axes and better on one";
    const mine = new Set(found.filter((one) => lit !== "" && method(sheet, one) === lit));
    const ofIt = lit === "" ? "" : `, ${(best ?? []).filter((one) => mine.has(one)).length} of them of ${lit}`;
    if (lit !== "") parts.push(`${mine.size} of ${lit} (filled)`);
    if (best !== null) parts.push(`${best.length} on the frontier (${lit === "" ? "filled, joined" : "joined"}${ofIt}): ${rule}`);
    else if (columnX !== columnY) parts.push("no frontier: of one axis neither direction is better");
    if (total > found.length) parts.push(`${total - found.length} left out (not measured, or not above 0 on a logarithmic axis)`);
    const whose = found.length <= MANY ? "points" : "points of the frontier";
    return `${parts.join("; ")}. Lines through ${whose} are 95 % intervals, the dotted line is the best bare model.`;
  }

  page.section({
    id: "cost",
    title: "Score against cost",
    draw(body) {
      const sheet = state.sheet, columns = sheet === null ? [] : usable(sheet);
      if (columns.length === 0) { body.replaceChildren(make("p", {}, "There is nothing to plot.")); return; }
      settle(columns);
      const again = (change) => (value) => { change(value); this.draw(body); };
      const options = columns.map((column) => [column.name, column.title]);
      const [columnX, columnY] = [axes.x, axes.y].map((name) => columns.find((column) => column.name === name));
      const methods = [...new Set(sheet.rows.filter((row) => row.kind === "arm").map((row) => method(sheet, { row })))].sort();
      if (!methods.includes(lit)) lit = "";
      const controls = make("div", { class: "controls", id: "axes" },
        menu("across", options, axes.x, again((name) => { axes.x = name; })), tick("logarithmic", axes.logX, again((on) => { axes.logX = on; })),
        menu("up", options, axes.y, again((name) => { axes.y = name; })), tick("logarithmic", axes.logY, again((on) => { axes.logY = on; })),
        ...(methods.length > 1 ? [menu("highlight", [["", "the frontier"], ...methods.map((name) => [name, name])], lit, again((name) => { lit = name; }))] : []));
      const [found, total] = points(sheet, columnX, columnY);
      found.sort((one, other) => (method(sheet, one) === lit) - (method(sheet, other) === lit)); // drawn last: on top
      const best = frontier(found, columnX, columnY);
      const width = Math.max(300, Math.min(1100, body.clientWidth || 640));
      const focused = document.activeElement?.closest?.("#axes") ? [...body.querySelectorAll("#axes select, #axes input")].indexOf(document.activeElement) : -1;
      const named = (column, values) => { const [text] = unit(column, values); return make("b", {}, text ? `${column.title}, ${text}` : column.title); };
      const title = make("p", {}, named(columnY, found.map((one) => one.y)), " (up) against ", named(columnX, found.map((one) => one.x)), " (across)");
      body.replaceChildren(controls, title, labelled(chart(sheet, found, best, columnX, columnY, width), found, (one) => label(sheet, one, columnX, columnY)), make("p", { class: "quiet" }, summary(sheet, found, total, best, columnX, columnY)), ...(found.length ? [spread(found, columnX, columnY)] : []));
      if (focused >= 0) controls.querySelectorAll("select, input")[focused].focus();
      body.dataset.frontier = (best ?? []).map((one) => page.value(sheet, one.row, "experiment")).sort().join("\n");
    },
  });
})();
