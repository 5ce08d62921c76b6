"use strict";
// The report's own: its explorer reads what is embedded in the page, and the contents follow the reader.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runOf = (name) => data.runs.find((run) => run.name === name);
  const later = (value) => Promise.resolve(value);

  explorer({
    runs: data.runs.filter((run) => run.problems.items.length || run.heads).map((run) => ({ name: run.name, heads: Boolean(run.heads), features: run.features.length > 0 })),
    list: (run) => later({
      total: runOf(run).problems.items.length,
      items: runOf(run).problems.items.map(({ id, question, correct, predicted, chain, operations }) => ({ id, question, correct, predicted, operations, steps: chain.length })),
    }),
    problem: (run, id) => later({ ...runOf(run).problems, item: runOf(run).problems.items.find((item) => item.id === id) }),
    conditions: (run) => later(runOf(run).problems.conditions),
    outcomes: (run, key) => {
      const { conditions, items } = runOf(run).problems;
      const rows = items.map((item) => [item.id, item.outcomes.find((row) => conditions[row[0]][2] === key)]);
      return later(new Map(rows.filter(([, row]) => row).map(([id, row]) => [id, row.slice(1)])));
    },
    heads: (run) => later(runOf(run).heads),
    features: (run) => later(runOf(run).features),
    feature: (run, mark, feature) => later(runOf(run).features.find((each) => each.mark === mark).pages[feature]),
    note: (layers) => (layers.length === 12 ? "Of a deep model, twelve layers are on the page. " : ""),
  });

  // --- positions by the state that is read, or by where it is fed: in every table alike ------------------------------
  const switches = document.querySelectorAll("button[data-by]");
  switches.forEach((button) => button.addEventListener("click", () => {
    const root = document.documentElement;
    if (root.dataset.positions === button.dataset.by) delete root.dataset.positions;
    else root.dataset.positions = button.dataset.by;
    switches.forEach((each) => each.setAttribute("aria-pressed", String(each.dataset.by === root.dataset.positions)));
  }));

  // --- contents follow the reader ----------------------------------------------------------------------------------
  const contents = document.getElementById("contents");
  const wide = matchMedia("(min-width: 901px)");
  const openContents = () => { contents.open = wide.matches; };
  openContents();
  wide.addEventListener("change", openContents);
  addEventListener("beforeprint", () => document.querySelectorAll("details:not(.source):not(.filters):not(.long)").forEach((each) => { each.open = true; }));
  const links = new Map([...document.querySelectorAll("nav.contents a")].map((link) => [link.getAttribute("href").slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.classList.remove("here"));
      const link = links.get(entry.target.id);
      if (link) link.classList.add("here");
    }
  }, { rootMargin: "0px 0px -80% 0px" });
  document.querySelectorAll("section.experiment, h2[id]").forEach((each) => watcher.observe(each));
})();
