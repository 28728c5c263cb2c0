// What a run was made with, alone or beside another: settings, versions, machine. What all runs share stands apart.
"use strict";
(() => {
  const { make, menu, data, plural, state } = page;
  if (data.runs.length === 0) return;
  const chosen = { first: null, second: "" };

  /** Numbers of the runs that the page's menus and its text filter let pass, whatever became of them. */
  function candidates() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const passes = (run) => (state.model === "" || run.model === state.model) && words.every((word) => `${run.experiment} ${run.method} ${run.task}`.toLowerCase().includes(word));
    return data.runs.map((run, number) => (passes(run) ? number : -1)).filter((number) => number >= 0);
  }

  const name = (number) => `${data.runs[number].experiment}, ${data.runs[number].task}, seed ${data.runs[number].seed}`;

  function table(title, names, columns) {
    const head = make("tr", {}, ...["setting", ...columns.map(([label]) => label)].map((text) => make("th", { scope: "col" }, text)));
    const cells = names.map((key) => [key, ...columns.map(([, values]) => (key in values ? String(values[key]) : "-"))]);
    const differs = ([, first, second]) => second !== undefined && first !== second;
    cells.sort((one, other) => differs(other) - differs(one)); // what differs first, each part by name
    const lines = cells.map((row) => make("tr", { class: differs(row) ? "differs" : null }, make("th", { scope: "row" }, row[0]), ...row.slice(1).map((text) => make("td", { class: "name" }, text))));
    const box = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, box);
  }

  page.section({
    id: "settings",
    title: "Settings",
    draw(body) {
      const same = Object.keys(data.shared).sort();
      const common = same.length ? [table("Settings of all runs", same, [["value", data.shared]])] : [];
      if (data.runs.length === 1) { body.replaceChildren(...common); return; }
      const rest = common.map((found) => make("details", {}, make("summary", {}, `the same in all runs: ${plural(same.length, "setting")}`), found));
      const numbers = candidates();
      if (numbers.length === 0) { body.replaceChildren(make("p", {}, "No run passes."), ...rest); return; }
      if (!numbers.includes(chosen.first)) chosen.first = numbers[0];
      if (chosen.second !== "" && !numbers.includes(chosen.second)) chosen.second = "";
      const options = numbers.map((number) => [String(number), name(number)]);
      const controls = make("div", { class: "controls", id: "beside" },
        menu("run", options, String(chosen.first), (value) => { chosen.first = Number(value); show(); }),
        menu("beside", [["", "no other"], ...options], String(chosen.second), (value) => { chosen.second = value === "" ? "" : Number(value); show(); }));
      const place = make("div", {});
      const show = () => {
        const runs = [chosen.first, ...(chosen.second === "" ? [] : [chosen.second])].map((number) => data.runs[number]);
        const names = [...new Set(runs.flatMap((run) => Object.keys(run.own)))].sort();
        place.replaceChildren(names.length ? table("Settings of a run", names, runs.map((run) => [`${run.experiment}, seed ${run.seed}`, run.own])) : make("p", {}, "Its settings are those of all runs."));
      };
      body.replaceChildren(make("p", {}, "In which the runs of this page differ; a setting without a value is left out."), controls, place, ...rest);
      show();
    },
  });
})();
