// What may be said about pairs, worded by the comparison; nothing is computed or worded here.
"use strict";
(() => {
  const { make, state } = page;
  const FEW = 60;
  const CLASSES = ["", "name", "long"];
  let all = false;

  page.section({
    id: "claims",
    title: "What may be said",
    draw(body) {
      // the sentence first: its numbers stand to the right of it
      const ordered = (row) => [row[0], row[1], row[row.length - 1], ...row.slice(2, -1)];
      const sheet = state.sheet, rows = sheet === null ? [] : sheet.claims.rows;
      if (rows.length === 0) { body.replaceChildren(make("p", {}, "There is no pair to compare.")); return; }
      const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
      const passing = rows.filter((row) => words.every((word) => row.join(" ").toLowerCase().includes(word)));
      const shown = all ? passing : passing.slice(0, FEW);
      const lines = shown.map((row) => make("tr", {}, ...ordered(row).map((cell, index) => (index === 0 ? make("th", { scope: "row" }, cell) : make("td", { class: CLASSES[index] ?? "" }, cell)))));
      const head = make("tr", {}, ...ordered(sheet.claims.columns).map((title) => make("th", { scope: "col" }, title)));
      const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
      const more = passing.length > shown.length ? [make("button", { type: "button", on: { click: () => { all = true; this.draw(body); } } }, `show all ${passing.length} pairs`)] : [];
      body.replaceChildren(
        make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Pairs" }, table),
        ...more,
        make("ul", { class: "quiet" }, ...sheet.notes.map((note) => make("li", {}, note))),
      );
    },
  });
})();
