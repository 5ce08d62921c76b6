"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;

  // --- small helpers -----------------------------------------------------------------------------------------------
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== null) element.setAttribute(name, value);
    }
    for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
    return element;
  };
  const labelled = (text, control) => make("label", {}, text, control);
  const percent = (x, digits = 0) => `${(100 * x).toFixed(digits)}%`;
  const number = (x, digits = 2) => (x === null || x === undefined ? "n/a" : x.toFixed(digits).replace("-", "\u2212"));
  const visible = (token) => (token === "" ? "\u2205" : token.replace(/\n/g, "\u21b5"));
  const shade = (element, share, strongest = 1) => {
    const strength = Math.max(0, Math.min(1, share / strongest));
    element.style.setProperty("--heat-share", `${Math.round(100 * strength)}%`);
    if (strength > 0.55) element.classList.add("strong");
    return element;
  };
  const choice = (id, options, chosen, onchange) => {
    const select = make("select", { id, onchange: () => onchange(select.value) });
    for (const [value, text] of options) {
      const option = make("option", { value }, text);
      if (String(value) === String(chosen)) option.selected = true;
      select.append(option);
    }
    return select;
  };
  const legend = (low, high) => make("span", { class: "key" }, low, make("i"), high);

  // --- theme -------------------------------------------------------------------------------------------------------
  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameToggle = () => { toggle.textContent = isDark() ? "Light theme" : "Dark theme"; };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* storage is off */ }
    nameToggle();
  });
  nameToggle();
  const contents = document.getElementById("contents");
  const wide = matchMedia("(min-width: 901px)");
  const openContents = () => { contents.open = wide.matches; };
  openContents();
  wide.addEventListener("change", openContents);
  addEventListener("beforeprint", () => document.querySelectorAll("details:not(.source)").forEach((each) => { each.open = true; }));

  // --- pick a problem ----------------------------------------------------------------------------------------------
  const box = document.getElementById("problem-explorer");
  const withProblems = data.runs.filter((run) => run.problems.items.length);
  const state = { run: withProblems[0], filter: "all", at: 0, query: "eot", layer: "mean", cell: null, kind: null };

  const decode = (item, nLayer) => {
    if (!item.weights) {
      const bytes = Uint8Array.from(atob(item.attention), (character) => character.charCodeAt(0));
      const nKey = item.keys.length;
      const nPlace = item.places.length;
      item.weights = (layer, place, key) => (bytes[(layer * nPlace + place) * nKey + key] / 255) ** 2;
    }
    return item.weights;
  };
  const listed = () => state.run.problems.items.filter((item) => state.filter === "all" || item.correct === (state.filter === "right"));
  const short = (text) => (text.length > 58 ? `${text.slice(0, 56)}\u2026` : text);

  function showProblem() {
    const items = listed();
    state.at = Math.max(0, Math.min(state.at, items.length - 1));
    const item = items[state.at];
    const step = (by) => () => { state.at = (state.at + by + items.length) % items.length; state.cell = null; showProblem(); };
    const controls = make("div", { class: "controls" },
      labelled("Run", choice("problem-run", withProblems.map((run, i) => [i, run.name]), withProblems.indexOf(state.run), (value) => {
        const same = item && item.id;
        state.run = withProblems[value];
        state.at = Math.max(0, listed().findIndex((each) => each.id === same));
        state.cell = null;
        showProblem();
      })),
      labelled("Answered", choice("problem-filter", [["all", "rightly or wrongly"], ["right", "rightly"], ["wrong", "wrongly"]], state.filter, (value) => {
        state.filter = value; state.at = 0; state.cell = null; showProblem();
      })),
      labelled(`Problem (${items.length} here)`, choice("problem", items.map((each, i) => [i, `${each.correct ? "\u2713" : "\u2717"} ${each.id}: ${short(each.question)}`]), state.at, (value) => {
        state.at = Number(value); state.cell = null; showProblem();
      })),
      make("div", { class: "steps" },
        make("button", { type: "button", "aria-label": "Previous problem", onclick: step(-1) }, "\u2190"),
        make("button", { type: "button", "aria-label": "Next problem", onclick: step(1) }, "\u2192")));
    if (!item) { box.replaceChildren(controls, make("p", { class: "note" }, "No such problem among those on this page.")); return; }
    const fact = (name, value, kind = "") => make("div", {}, make("dt", {}, name), make("dd", { class: kind }, value));
    box.replaceChildren(controls,
      make("p", { class: "question", id: "question" }, item.question),
      make("dl", { class: "facts" },
        fact("Right answer", item.gold),
        fact("Answered", item.predicted === null ? `no answer (\u201c${short(item.text)}\u201d)` : String(item.predicted), item.correct ? "right" : "wrong"),
        fact("Verdict", item.correct ? "\u2713 right" : "\u2717 wrong", item.correct ? "right" : "wrong"),
        fact("log p of the right answer", number(item.logprob)),
        item.chain.length ? fact("Written chain", item.chain.join(";  ")) : null),
      lensPart(item), attentionPart(item), outcomePart(item));
  }

  function lensPart(item) {
    const { layers, strings } = state.run.problems;
    const results = new Set(item.chain.map((step) => (step.includes("=") ? step.split("=") : step.replace(/\W+$/, "").split(" ")).pop().trim()));
    const grid = make("div", { class: "grid", id: "lens" });
    grid.style.gridTemplateColumns = `max-content repeat(${item.places.length}, minmax(3.1rem, 1fr))`;
    grid.append(make("span"));
    item.places.forEach((place, p) => grid.append(make("span", { class: "column" }, place, item.fed[p] && place.startsWith("a") ? make("small", { class: "fed" }, `fed \u201c${visible(item.fed[p].trim())}\u201d`) : null)));
    if (!state.cell) state.cell = [layers.length - 1, Math.max(0, item.places.indexOf("eot"))];
    layers.forEach((layer, l) => {
      grid.append(make("span", { class: "label" }, `layer ${layer}`));
      item.places.forEach((place, p) => {
        const [token, chance] = item.lens[l][p][0];
        const text = strings[token];
        const cell = make("button", {
          type: "button", class: `cell${results.has(text.trim()) ? " chain" : ""}`, "aria-pressed": String(state.cell[0] === l && state.cell[1] === p),
          title: `layer ${layer}, ${place}: ${visible(text)} ${percent(chance / 1000, 1)}`,
          onclick: () => { state.cell = [l, p]; showProblem(); document.querySelector("#lens [aria-pressed='true']").focus(); },
        }, visible(text.trim() || text), make("small", {}, percent(chance / 1000)));
        grid.append(shade(cell, chance / 1000));
      });
    });
    const [l, p] = state.cell;
    const bars = make("div", { class: "sharebars", id: "lens-detail" });
    for (const [token, chance] of item.lens[l][p]) {
      const bar = make("span", { class: "bar" });
      bar.style.width = percent(chance / 1000, 1);
      bars.append(make("code", {}, visible(strings[token])), bar, make("span", {}, percent(chance / 1000, 1)));
    }
    return make("div", {},
      make("h4", {}, "What each position reads out as"),
      make("div", { class: "scroll" }, grid),
      make("p", { class: "note" }, "The most likely token after the final norm and unembedding, and its probability; stronger colour is more certain. Cells underlined in orange are a result of the written chain. ", legend("0", "1")),
      make("h4", {}, `Most likely tokens at layer ${layers[l]}, ${item.places[p]}`), bars);
  }

  function attentionPart(item) {
    const { layers } = state.run.problems;
    const weights = decode(item, layers.length);
    const query = item.places.includes(state.query) ? state.query : item.places[item.places.length - 1];
    const place = item.places.indexOf(query);
    const chosen = state.layer === "mean" ? layers.map((_, l) => l) : [Math.max(0, layers.indexOf(Number(state.layer)))];
    const share = item.keys.map((_, k) => chosen.reduce((sum, l) => sum + weights(l, place, k), 0) / chosen.length);
    const total = share.reduce((a, b) => a + b, 0) || 1;
    const isQuestion = item.keys.map((key) => key.startsWith("q-"));
    const known = item.tokens.some((token) => token !== "");
    const spaced = item.tokens.some((token) => token.startsWith(" "));
    const strongest = Math.max(...share) || 1;
    const line = make("div", { class: "tokens", id: "attention" });
    item.keys.forEach((key, k) => {
      if (item.places.indexOf(key) > place) return;
      const text = isQuestion[k] ? (known ? visible(item.tokens[k] || "\u2205") : key) : key;
      const span = make("span", { class: isQuestion[k] && known ? "" : "place", title: `${key}: ${percent(share[k] / total, 1)}` }, text);
      const next = item.tokens[k + 1];
      line.append(shade(span, share[k], strongest), !isQuestion[k] || !known || (!spaced && next && !/^[.,;:!?]/.test(next)) ? " " : "");
    });
    const groups = [["question", share.filter((_, k) => isQuestion[k]).reduce((a, b) => a + b, 0)]];
    item.keys.forEach((key, k) => { if (!isQuestion[k] && (share[k] > 0 || !key.startsWith("a"))) groups.push([key, share[k]]); });
    const bars = make("div", { class: "sharebars", id: "attention-shares" });
    for (const [name, value] of groups) {
      if (item.places.indexOf(name) > place) continue;
      const bar = make("span", { class: "bar" });
      bar.style.width = percent(value / total, 1);
      bars.append(make("span", {}, name), bar, make("span", {}, percent(value / total, 1)));
    }
    return make("div", {},
      make("h4", {}, "Where it looks"),
      make("div", { class: "controls" },
        labelled("From", choice("query", item.places.map((name) => [name, name === "eot" ? "eot (predicts the first answer token)" : name]), query, (value) => { state.query = value; showProblem(); })),
        labelled("Layer", choice("attention-layer", [["mean", "mean of layers"], ...layers.map((layer) => [layer, `layer ${layer}`])], state.layer, (value) => { state.layer = value; showProblem(); }))),
      line,
      make("p", { class: "note" }, `Mean over heads; full colour is the strongest (${percent(strongest / total, 1)}). `,
        known ? (item.exact ? "" : "Question tokens are cut from the text by the vocabulary, as the run holds no question tokens. ") : "This run holds no question tokens, so they are named by their distance from bot. ",
        state.run.problems.layers.length === 12 ? "Of a deep model, twelve layers are on the page. " : ""),
      bars);
  }

  function outcomePart(item) {
    if (!item.outcomes.length) {
      return make("div", {}, make("h4", {}, "What interventions did to the answer"),
        make("p", { class: "note" }, "No re-entry result in this lake has this problem; lake reenter makes them."));
    }
    const named = state.run.problems.conditions;
    const kinds = [...new Set(item.outcomes.map((row) => named[row[0]][0]))];
    const kind = kinds.includes(state.kind) ? state.kind : kinds[0];
    const rows = item.outcomes.filter((row) => named[row[0]][0] === kind).map((row) => [named[row[0]][1], ...row.slice(1)]);
    const body = make("tbody");
    for (const [condition, answer, change, note] of rows) {
      const before = item.predicted;
      const moved = answer !== before;
      body.append(make("tr", {}, make("td", { class: "text" }, condition),
        make("td", { class: moved ? "wrong" : "" }, answer === null ? "no answer" : String(answer)),
        make("td", { class: "text" }, moved ? "changed" : "as before"),
        make("td", {}, change === null ? "" : (change > 0 ? "+" : "") + number(change)), make("td", { class: "text" }, note || "")));
    }
    const nMoved = rows.filter((row) => row[1] !== item.predicted).length;
    return make("div", {}, make("h4", {}, "What interventions did to the answer"),
      make("div", { class: "controls" }, labelled("Experiment", choice("outcome-kind", kinds.map((each) => [each, each]), kind, (value) => { state.kind = value; showProblem(); }))),
      make("p", { class: "note" }, `${nMoved} of ${rows.length} conditions changed the answer from ${item.predicted === null ? "no answer" : item.predicted}.`),
      make("div", { class: "scroll limited" }, make("table", { id: "outcomes" },
        make("thead", {}, make("tr", {}, ...["Intervention", "Answer", "", "Change of log p", ""].map((name, i) => make("th", { class: i === 1 || i === 3 ? "" : "text" }, name)))), body)));
  }
  if (withProblems.length) showProblem(); else box.textContent = "No problems to show.";

  // --- pick a head -------------------------------------------------------------------------------------------------
  const headBox = document.getElementById("head-explorer");
  const withHeads = data.runs.filter((run) => run.heads);
  const chosen = { run: withHeads[0], rank: 0 };

  function showHead() {
    const heads = chosen.run.heads;
    chosen.rank = Math.max(0, Math.min(chosen.rank, heads.ranked.length - 1));
    const head = heads.ranked[chosen.rank];
    const l = heads.layers.indexOf(head.layer);
    const h = heads.heads.indexOf(head.head);
    const pick = (layer, index) => { chosen.rank = heads.ranked.findIndex((each) => each.layer === layer && each.head === index); showHead(); };
    const step = (by) => () => { chosen.rank = (chosen.rank + by + heads.ranked.length) % heads.ranked.length; showHead(); };
    const controls = make("div", { class: "controls" },
      labelled("Run", choice("head-run", withHeads.map((run, i) => [i, run.name]), withHeads.indexOf(chosen.run), (value) => { chosen.run = withHeads[value]; chosen.rank = 0; showHead(); })),
      labelled("Head, by rank", choice("head", heads.ranked.map((each, i) => [i, `${each.rank}. L${each.layer}H${each.head}  ${each.type || "no type"}`]), chosen.rank, (value) => { chosen.rank = Number(value); showHead(); })),
      make("div", { class: "steps" },
        make("button", { type: "button", "aria-label": "Previous head", onclick: step(-1) }, "\u2190"),
        make("button", { type: "button", "aria-label": "Next head", onclick: step(1) }, "\u2192")));

    const best = Math.max(...heads.ranked.map((each) => each.composite || 0)) || 1;
    const small = heads.heads.length > 16 ? "1.1rem" : "2rem";
    const all = make("div", { class: "grid" });
    all.style.gridTemplateColumns = `max-content repeat(${heads.heads.length}, minmax(${small}, 3.2rem))`;
    all.style.minWidth = "0";
    all.append(make("span"));
    heads.heads.forEach((index) => all.append(make("span", { class: "column" }, heads.heads.length > 16 && index % 4 ? "" : `H${index}`)));
    heads.layers.forEach((layer) => {
      all.append(make("span", { class: "label" }, `layer ${layer}`));
      heads.heads.forEach((index) => {
        const each = heads.ranked.find((one) => one.layer === layer && one.head === index);
        const cell = make("button", { type: "button", class: "cell", "aria-pressed": String(each === head), title: `L${layer}H${index}: composite ${number(each && each.composite)}`, onclick: () => pick(layer, index) },
          heads.heads.length > 16 ? "" : number(each && each.composite));
        all.append(shade(cell, each ? each.composite || 0 : 0, best));
      });
    });

    const map = make("div", { class: "grid", id: "head-map" });
    map.style.gridTemplateColumns = `max-content repeat(${heads.thoughts.length}, minmax(2.6rem, 1fr))`;
    map.style.minWidth = "0";
    map.append(make("span"), ...heads.thoughts.map((key) => make("span", { class: "column" }, key)));
    heads.thoughts.forEach((query, i) => {
      map.append(make("span", { class: "label" }, query));
      heads.thoughts.forEach((key, j) => {
        if (j > i) { map.append(make("span", { class: "cell none" }, "")); return; }
        const value = heads.pattern[l][h][i][j] / 1000;
        map.append(shade(make("span", { class: "cell", title: `${query} to ${key}: ${percent(value, 1)}` }, value < 0 ? "n/a" : value.toFixed(2)), value));
      });
    });
    const fact = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
    const facts = make("dl", { class: "facts" },
      fact("Head", `L${head.layer}H${head.head}`), fact("Rank", `${head.rank} of ${heads.ranked.length}`), fact("Type", head.type || "none"), fact("Band", head.band),
      fact("Composite", `${number(head.composite)}${head.composite_low !== undefined ? ` [${number(head.composite_low)}, ${number(head.composite_high)}]` : ""}`),
      fact("Flow", number(head.flow)), fact("Hub", `${number(head.hub)}${head.hub_position ? ` at ${head.hub_position}` : ""}`), fact("Skip", number(head.skip, 3)),
      fact("Sequential", number(head.sequential)), head.top_share !== undefined ? fact("In the top 20 of resamples", percent(head.top_share)) : null);
    const parts = [controls, facts, make("div", { class: "two" },
      make("div", {}, make("h4", {}, "Among the thoughts"), make("div", { class: "scroll" }, map),
        make("p", { class: "note" }, "Rows look, columns are looked at; mean attention. What a row lacks to 1 goes to the question and bot.")),
      make("div", {}, make("h4", {}, "All heads, by composite"), make("div", { class: "scroll" }, all),
        make("p", { class: "note" }, "Stronger colour scores higher; click to pick.")))];
    if (heads.share) {
      const grid = make("div", { class: "grid", id: "head-segments" });
      grid.style.gridTemplateColumns = `max-content repeat(${heads.targets.length}, minmax(2.9rem, 1fr))`;
      grid.append(make("span"), ...heads.targets.map((target) => make("span", { class: "column" }, target)));
      heads.queries.forEach((query, q) => {
        grid.append(make("span", { class: "label" }, query));
        heads.targets.forEach((target, t) => {
          const value = heads.share[l][h][q][t] / 1000;
          grid.append(value <= 0 ? make("span", { class: "cell none" }, value < 0 ? "" : "0") : shade(make("span", { class: "cell", title: `${query} to ${target}: ${percent(value, 1)}` }, (100 * value).toFixed(0)), value));
        });
      });
      parts.push(make("h4", {}, "Over everything it can look at, in percent of each row"), make("div", { class: "scroll" }, grid));
    }
    headBox.replaceChildren(...parts);
  }
  if (withHeads.length) showHead();
  else headBox.replaceChildren(make("p", { class: "note" }, "No head scores in this lake yet: lake analyze heads makes them."));

  // --- contents follow the reader ----------------------------------------------------------------------------------
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
