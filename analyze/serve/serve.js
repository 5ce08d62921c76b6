"use strict";
// The explorer over the whole lake: everything is asked for when it is wanted, and what was asked for once is kept.
(async () => {
  const { make, watchScroll } = frame;
  const kept = new Map();
  const KEPT = 200;
  let state;
  // What is shown already was read from the lake as it was; beside it stands what is read from now on.
  const changed = (now) => {
    state ??= now;
    if (!now || now === state) return;
    const again = make("button", { type: "button", onclick: () => location.reload() }, "Load it again");
    document.getElementById("changed").replaceChildren("The lake has changed since this page was loaded: what stands here may be of before and after. ", again);
    state = now;
  };
  const ask = (question, values = {}) => {
    const address = `/api/${question}?${new URLSearchParams(values)}`;
    if (kept.has(address)) return kept.get(address);
    const answer = fetch(address, { credentials: "same-origin" }).then(async (response) => {
      changed(response.headers.get("lake-state"));
      const said = await response.json().catch(() => ({ error: `lake serve answered ${response.status}` }));
      if (!response.ok) throw new Error(said.error);
      return said;
    }, () => { throw new Error("lake serve does not answer; is it still running?"); });
    answer.catch(() => kept.delete(address));
    kept.set(address, answer);
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    return answer;
  };

  const problem = document.getElementById("problem-explorer");
  let lake;
  try { lake = await ask("runs"); } catch (error) {
    problem.replaceChildren(make("p", { class: "note failed", role: "alert" }, error.message));
    return;
  }
  const runs = lake.runs.filter((run) => run.n);
  document.getElementById("runs").replaceChildren(...lake.runs.map((run) => make("li", {}, make("b", {}, run.name), ` ${run.n === run.of ? run.n : `${run.n} of ${run.of}`} problems`)),
    ...Object.entries(lake.broken).map(([name, why]) => make("li", { class: "failed" }, make("b", {}, name), ` cannot be read: ${why}`)));

  explorer({
    runs,
    async list(run) {
      const { total, items } = await ask("listing", { run, start: 0 });
      const list = { total, items: [...items] };
      list.more = async () => {
        if (list.items.length >= list.total) return false;
        const block = (await ask("listing", { run, start: list.items.length })).items;
        list.items.push(...block);
        return block.length > 0;
      };
      return list;
    },
    problem: async (run, id) => { const got = await ask("problem", { run, example: id }); return { ...got, item: got.items[0] }; },
    conditions: (run) => ask("conditions", { run }),
    outcomes: async (run, condition) => new Map((await ask("outcomes", { run, condition })).map(([id, ...row]) => [id, row])),
    attention: async (run, example, layer, head) => (await ask("attention", { run, example, layer, head })).weights,
    heads: (run) => ask("heads", { run }),
    features: (run) => ask("features", { run }),
    feature: (run, dictionary, feature) => ask("feature", { run, dictionary, feature }),
  });

  // --- pick a result -----------------------------------------------------------------------------------------------
  const place = document.getElementById("result-explorer");
  const body = make("div", {});
  const number = (cell) => (typeof cell === "number" && !Number.isInteger(cell) ? String(Number(cell.toPrecision(4))) : cell === null ? "\u2013" : String(cell)).replace("-", "\u2212");
  const breakable = (name) => name.split(/(?<=_)/).flatMap((part) => [part, make("wbr", {})]);
  const show = async (mark) => {
    body.setAttribute("aria-busy", "true");
    try {
      const result = await ask("result", { mark });
      body.replaceChildren(make("p", { class: "whose" }, result.name), make("p", { class: "note" }, `${result.name}: ${result.made}`), ...result.tables.map((table) => {
        const kinds = table.columns.map((_, i) => (table.rows.every((row) => row[i] === null || typeof row[i] === "number") ? "" : "text"));
        return make("div", { class: "table" },
          make("p", { class: "caption" }, table.n > table.rows.length ? `${table.name}: the first ${table.rows.length} of ${table.n} rows` : `${table.name}: ${table.n} rows`),
          make("div", { class: "scroll limited", role: "region", "aria-label": table.name }, make("table", {},
            make("thead", {}, make("tr", {}, ...table.columns.map((column, i) => make("th", { scope: "col", class: kinds[i] }, ...breakable(column))))),
            make("tbody", {}, ...table.rows.map((row) => make("tr", {}, ...row.map((cell, i) => make("td", { class: kinds[i] }, kinds[i] ? String(cell ?? "") : number(cell)))))))));
      }));
      watchScroll(body);
    } catch (error) { body.replaceChildren(make("p", { class: "note failed", role: "alert" }, error.message)); }
    body.removeAttribute("aria-busy");
  };
  if (!lake.results.length) { place.replaceChildren(make("p", { class: "note" }, "No results in this lake yet: lake analyze and lake reenter make them.")); return; }
  const groups = new Map();
  for (const each of lake.results) groups.set(each.kind, [...(groups.get(each.kind) || []), each]);
  const choice = make("select", { id: "result", onchange: () => show(choice.value) },
    ...[...groups].map(([kind, results]) => make("optgroup", { label: kind }, ...results.map((each) => make("option", { value: each.mark }, `${kind} of ${each.runs.join(", ")} ${each.command.slice(5).filter((word) => !each.runs.includes(word)).join(" ")}`.trim())))));
  place.replaceChildren(make("div", { class: "controls" }, make("label", { class: "long-choice" }, `Result (${lake.results.length})`, choice)), body);
  show(choice.value);
})();
