// Learning curves: loss and validation metric over steps, of the runs that are ticked.
"use strict";
(() => {
  const { make, menu, tick, format, state, data } = page;
  const COLOURS = 8, DASHES = ["", "6 3", "2 3"];
  const picked = new Map();
  let sheetOfPick = null, metric = null, logLoss = false;

  /** Runs of the arms looked at, best arm first, then those that are in no table. */
  function candidates() {
    const drawable = (number) => data.runs[number].loss.steps.length > 0 || Object.keys(data.runs[number].validation).length > 0;
    const numbers = new Set(page.rows().flatMap((row) => row.runs));
    const tabled = new Set(data.sheets.flatMap((sheet) => sheet.rows.flatMap((row) => row.runs)));
    if (state.text === "" && state.model === "") data.runs.forEach((run, number) => { if (!tabled.has(number)) numbers.add(number); });
    return [...numbers].filter(drawable);
  }

  /** The first seeds of the first arms, until somebody chooses. */
  function start() {
    if (sheetOfPick === state.sheet) return;
    sheetOfPick = state.sheet;
    picked.clear();
    const drawable = new Set(candidates());
    const arms = state.sheet === null ? [] : state.sheet.rows.filter((row) => row.kind === "arm" && drawable.has(row.runs[0]));
    const first = arms.length ? arms.map((row) => row.runs[0]) : [...drawable];
    for (const number of first.slice(0, 6)) pick(number);
  }

  function pick(number) {
    const taken = new Set(picked.values());
    let style = 0;
    while (taken.has(style)) style += 1;
    picked.set(number, style);
  }

  const colour = (style) => `var(--series-${style % COLOURS})`;
  const dash = (style) => DASHES[Math.floor(style / COLOURS) % DASHES.length];
  const name = (run) => `${run.experiment}, seed ${run.seed}${run.status === "finished" ? "" : ` (${run.status.replaceAll("_", " ")})`}`;

  function lines(curveOf) {
    const all = [];
    for (const [number, style] of picked) {
      const curve = curveOf(data.runs[number]);
      if (curve) all.push({ run: data.runs[number], style, points: curve.steps.map((step, index) => ({ step, value: curve.values[index], run: data.runs[number] })).filter((point) => Number.isFinite(point.value)) });
    }
    return all.filter((one) => one.points.length > 0);
  }

  function chart(title, found, width, log, dots) {
    const height = Math.max(220, Math.min(340, width * 0.6));
    const points = found.flatMap((one) => one.points).filter((point) => !log || point.value > 0);
    const marks = found.map((one) => Plot.line(one.points.filter((point) => !log || point.value > 0), { x: "step", y: "value", stroke: colour(one.style), strokeDasharray: dash(one.style), strokeWidth: 1.6 }));
    if (dots) marks.push(...found.map((one) => Plot.dot(one.points, { x: "step", y: "value", r: 3, fill: colour(one.style) })));
    marks.push(Plot.ruleX(points, Plot.pointer({ x: "step", y: "value", stroke: "var(--point)" })));
    marks.push(Plot.tip(points, Plot.pointer({ x: "step", y: "value", title: (point) => `${name(point.run)}\nstep ${point.step}: ${format("number", point.value)}`, fill: "var(--paper)", stroke: "var(--point)" })));
    const svg = Plot.plot({ width, height, marginLeft: 56, marginRight: 28, marginTop: 12, style: { background: "none", color: "inherit" }, x: { label: null, ticks: Math.round(width / 90) }, y: { label: null, type: log ? "log" : "linear", grid: true, nice: true }, marks });
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${title} over steps, ${found.length} runs`);
    return make("figure", {}, make("figcaption", {}, `${title}, over steps`), points.length ? svg : make("p", {}, "none of these runs has it"));
  }

  function swatch(style) {
    const svg = Plot.plot({ width: 28, height: 10, margin: 0, axis: null, x: { domain: [0, 1] }, y: { domain: [0, 1] }, marks: [Plot.line([[0, 0.5], [1, 0.5]], { stroke: colour(style), strokeWidth: 3, strokeDasharray: dash(style) })] });
    svg.setAttribute("aria-hidden", "true");
    return svg;
  }

  function legend() {
    const last = (curve) => (curve && curve.values.length ? curve.values[curve.values.length - 1] : null);
    return make("ul", { class: "legend" }, ...[...picked].map(([number, style]) => {
      const run = data.runs[number], loss = last(run.loss), score = last(run.validation[metric]);
      const ends = [loss === null ? null : `loss ${format("number", loss)}`, score === null ? null : `${metric} ${format("score", score)}`].filter((text) => text !== null);
      return make("li", {}, swatch(style), `${name(run)}${ends.length ? `: ${ends.join(", ")}` : ""}`);
    }));
  }

  function picker(redraw) {
    const box = make("div", { class: "picker", role: "group", "aria-label": "Runs to draw" });
    for (const number of candidates()) {
      const one = tick(name(data.runs[number]), picked.has(number), (on) => { if (on) pick(number); else picked.delete(number); redraw(); });
      box.append(make("div", {}, one));
    }
    const none = () => { picked.clear(); for (const input of box.querySelectorAll("input")) input.checked = false; redraw(); };
    return make("div", {}, box, make("div", { class: "controls" }, make("button", { type: "button", on: { click: none } }, "none")));
  }

  page.section({
    id: "curves",
    title: "Learning curves",
    draw(body) {
      start();
      const numbers = candidates();
      if (numbers.length === 0) { body.replaceChildren(make("p", {}, "No run that passes has a learning curve.")); return; }
      const metrics = [...new Set(numbers.flatMap((number) => Object.keys(data.runs[number].validation)))];
      if (!metrics.includes(metric)) metric = metrics.includes(state.sheet?.metric) ? state.sheet.metric : metrics[0] ?? null;
      const place = make("div", {});
      const plots = () => {
        const whole = Math.max(300, Math.min(1280, body.clientWidth || 640)), width = whole > 860 && metric !== null ? Math.floor(whole / 2) - 10 : whole;
        const charts = [chart(`training loss${logLoss ? " (logarithmic)" : ""}`, lines((run) => run.loss), width, logLoss, false)];
        if (metric !== null) charts.push(chart(`${metric} on the validation rows`, lines((run) => run.validation[metric]), width, false, true));
        place.replaceChildren(make("div", { class: "pair" }, ...charts), legend());
      };
      const controls = make("div", { class: "controls" }, tick("logarithmic loss", logLoss, (on) => { logLoss = on; plots(); }));
      if (metrics.length > 1) controls.append(menu("validation", metrics.map((one) => [one, one]), metric, (one) => { metric = one; plots(); }));
      const runs = make("details", { open: numbers.length <= 12 }, make("summary", {}, `choose runs (${picked.size} drawn)`), picker(() => { runs.querySelector("summary").textContent = `choose runs (${picked.size} drawn)`; plots(); }));
      body.replaceChildren(controls, place, runs);
      plots();
    },
  });
})();
