// The page's data, what of it is looked at, and the parts that sections are made of. Draws no section itself.
// Text from records is only ever set as text: there is no innerHTML here, and the page's policy would not run it.
"use strict";
const page = (() => {
  const special = { nan: NaN, inf: Infinity, "-inf": -Infinity };
  const revive = (key, value) =>
    value !== null && typeof value === "object" && typeof value.$float === "string" ? special[value.$float] : value;
  const data = JSON.parse(document.getElementById("data").textContent, revive);
  const state = { sheet: data.sheets[0] ?? null, model: "", text: "" };
  const sections = [];

  // ------------------------------------------------------------------------------------------------ elements

  /** An element with attributes and children; a string child is text. */
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
      else if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  /** A labelled menu; `options` are [value, text] pairs. */
  function menu(title, options, chosen, change) {
    const select = make("select", { on: { change: (event) => change(event.target.value) } });
    for (const [value, text] of options) select.append(make("option", { value, selected: value === chosen }, text));
    return make("label", {}, title, select);
  }

  function tick(title, checked, change) {
    const box = make("input", { type: "checkbox", checked, on: { change: (event) => change(event.target.checked) } });
    return make("label", { class: "tick" }, box, title);
  }

  // ----------------------------------------------------------------------------------------------- numbers

  const plural = (count, one, many = one + "s") => `${count.toLocaleString("en-US")} ${count === 1 ? one : many}`;

  function scaled(value, units, step) {
    let index = 0;
    while (Math.abs(value) >= step && index < units.length - 1) { value /= step; index += 1; }
    return `${index === 0 ? value.toFixed(0) : value.toFixed(2)} ${units[index]}`;
  }

  const formats = {
    text: String,
    time: (value) => value.slice(0, 16).replace("T", " "),
    score: (value) => value.toFixed(4),
    number: (value) => Number(value.toPrecision(4)).toString(),
    count: (value) => value.toLocaleString("en-US", { maximumFractionDigits: 1 }),
    bytes: (value) => scaled(value, ["B", "KiB", "MiB", "GiB", "TiB"], 1024),
    seconds: (value) => {
      if (value < 60) return `${value.toFixed(1)} s`;
      const whole = Math.round(value), two = (number) => String(number).padStart(2, "0");
      return whole < 3600 ? `${Math.floor(whole / 60)} min ${two(whole % 60)} s`
        : `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
    },
  };

  /** A value as text; null is for the caller to explain. */
  function format(kind, value) {
    if (typeof value === "number" && !Number.isFinite(value)) return String(value);
    return formats[kind](value);
  }

  const numeric = (column) => column.kind !== "text" && column.kind !== "time";

  // ------------------------------------------------------------------------------------------- what is shown

  const place = (sheet, name) => sheet.columns.findIndex((column) => column.name === name);

  /** A row's value by column name. */
  const value = (sheet, row, name) => row.values[place(sheet, name)];

  /** The rows of the task looked at that pass the page's menus and its text filter. */
  function rows() {
    if (state.sheet === null) return [];
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const model = place(state.sheet, "model");
    return state.sheet.rows.filter((row) => {
      if (row.kind === "arm" && state.model !== "" && row.values[model] !== state.model) return false;
      const text = [...row.values.filter((cell) => typeof cell === "string"), ...row.notes].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  /** Add a part to the page, { id, title, draw }: `draw(body)` fills it anew whenever what is looked at changes. */
  function section(definition) {
    const { id, title } = definition;
    const body = make("div", {});
    const whole = make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), body);
    sections.push([definition, body]);
    document.getElementById("content").append(whole);
    document.getElementById("contents").append(make("a", { href: `#${id}` }, title));
    definition.draw(body);
  }

  function redraw() {
    for (const [definition, body] of sections) definition.draw(body);
  }

  // ------------------------------------------------------------------------------------------------ heading

  function heading() {
    const arms = data.sheets.reduce((sum, sheet) => sum + sheet.rows.filter((row) => row.kind === "arm").length, 0);
    const counts = Object.entries(data.statuses).map(([status, count]) => `${count} ${status.replaceAll("_", " ")}`);
    document.getElementById("heading").textContent = `Results: ${data.folder}`;
    const summary = document.getElementById("summary");
    const parts = [plural(data.sheets.length, "task"), plural(arms, "arm"), plural(data.runs.length, "run")];
    summary.append(`${parts.join(", ")} (${counts.join(", ") || "none"}).`);
    if (data.newest !== null) summary.append(` The newest began ${format("time", data.newest)} UTC.`);
    if (data.where !== null) summary.append(" Only runs with ", make("code", {}, data.where), ".");
    document.getElementById("footer").append(
      `Written by peftlab ${data.peftlab}. An arm is one configuration with all its seeds. The page holds all it shows and loads nothing.`,
    );
  }

  function choices() {
    const form = document.getElementById("choice");
    form.addEventListener("submit", (event) => event.preventDefault());
    if (data.sheets.length > 1) {
      const options = data.sheets.map((sheet, index) => [String(index), sheet.task]);
      form.append(menu("task", options, "0", (index) => { state.sheet = data.sheets[Number(index)]; redraw(); }));
    }
    const models = [...new Set(data.runs.map((run) => run.model).filter((model) => model !== null))].sort();
    if (models.length > 1) {
      const options = [["", "all models"], ...models.map((model) => [model, model])];
      form.append(menu("model", options, "", (model) => { state.model = model; redraw(); }));
    }
    const change = (event) => { state.text = event.target.value; redraw(); };
    const search = make("input", { type: "search", id: "filter", placeholder: "words of a name", on: { input: change } });
    form.append(make("label", {}, "show only", search));
  }

  let width = window.innerWidth, waiting = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 150);
  });

  heading();
  choices();
  return { data, state, make, menu, tick, plural, format, numeric, place, value, rows, section };
})();
