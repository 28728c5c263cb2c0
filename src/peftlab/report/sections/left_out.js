// Runs that are in no table, and files that could not be read, each with the reason.
"use strict";
(() => {
  const { make, data, plural } = page;
  if (data.left_out.length === 0) return;
  page.section({
    id: "left-out",
    title: "Left out",
    draw(body) {
      const lines = data.left_out.map((one) => make("tr", {}, make("th", { scope: "row" }, one.name), make("td", {}, one.status.replaceAll("_", " ")), make("td", { class: "long" }, one.reason)));
      const head = make("tr", {}, ...["run or file", "status", "reason"].map((title) => make("th", { scope: "col" }, title)));
      const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
      const box = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Left out" }, table);
      body.replaceChildren(make("details", { open: data.left_out.length <= 10 }, make("summary", {}, plural(data.left_out.length, "run or file", "runs or files")), box));
    },
  });
})();
