"use strict";
// The explorer: a problem, a head, a feature to pick. Where its data come from is the source's business:
//   runs                                       [{name, heads, features}], heads and features say whether there are any
//   list(run)                                  {total, items: [{id, question, correct, predicted, steps, operations}], more()}
//   problem(run, id)                           {layers, heads, strings, conditions, item}
//   conditions(run), outcomes(run, key)        what re-entries there are; what one did: Map of id to [answer, change, outcome]
//   attention(run, id, layer, head)            one head's weights, packed; absent where only means are there
//   heads(run), features(run), feature(run, mark, feature)
// What is picked stands in the address after #, so that a link leads to it.
const explorer = (source) => {
  const { make, watchScroll } = frame;
  const percent = (x, digits = 0) => `${(100 * x).toFixed(digits)}%`;
  const number = (x, digits = 2) => (x === null || x === undefined ? "n/a" : x.toFixed(digits).replace("-", "\u2212"));
  const SIGNS = { "\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5" };
  const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]/g;
  // A token as it can be seen: blanks of a token that is nothing else, line ends, tabs, and what has no shape at all.
  const visible = (token) => {
    if (token === "") return "\u2205";
    const blank = token.trim() === "" ? token.replace(/[^\S\n\r\t]/g, "\u2423").replace(/\u2423{4,}/g, (run) => `\u2423\u00d7${run.length}`) : token;
    return blank.replace(UNSEEN, (sign) => SIGNS[sign] || `U+${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
  };
  const word = (token) => visible(token.trim() || token);
  const short = (text, length = 58) => (text.length > length ? `${text.slice(0, length - 2)}\u2026` : text);
  const labelled = (text, control, kind = "") => make("label", { class: kind }, text, control);
  const legend = (low, high) => make("span", { class: "key" }, low, make("i"), high);
  const fact = (name, value, kind = "") => make("div", {}, make("dt", {}, name), make("dd", { class: kind }, value));
  const shade = (element, share, strongest = 1) => {
    element.style.setProperty("--strength", Math.max(0, Math.min(1, share / strongest)).toFixed(3));
    return element;
  };

  // --- controls ----------------------------------------------------------------------------------------------------
  const select = (id, onchange) => make("select", { id, onchange: (event) => onchange(event.target.value) });
  const fill = (control, options, chosen) => {
    control.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
    control.value = String(chosen);
  };
  const button = (id, label, text, onclick) => make("button", { type: "button", id, "aria-label": label, onclick }, text);

  // Puts new content in; focus stays where it was, and so does what was scrolled.
  const redraw = (box, ...children) => {
    const held = box.contains(document.activeElement) ? document.activeElement.id : "";
    const scrolled = [...box.querySelectorAll(".scroll[id]")].map((each) => [each.id, each.scrollLeft, each.scrollTop]);
    box.replaceChildren(...children.filter(Boolean));
    watchScroll(box);
    for (const [id, left, top] of scrolled) { const again = document.getElementById(id); if (again) { again.scrollLeft = left; again.scrollTop = top; } }
    if (held) { const again = document.getElementById(held); if (again) again.focus({ preventScroll: true }); }
  };

  // A grid of buttons is one stop of the Tab key; arrows move within it.
  const arrows = (grid, id, pick) => grid.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const from = event.target.id.match(/-(\d+)-(\d+)$/);
    if (!move || !from) return;
    const to = [Number(from[1]) + move[0], Number(from[2]) + move[1]];
    const next = document.getElementById(`${id}-${to[0]}-${to[1]}`);
    event.preventDefault();
    if (next) { next.focus(); pick(...to); }
  });

  // --- the address -------------------------------------------------------------------------------------------------
  const read = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const remember = (values) => {
    const address = read();
    for (const [name, value] of Object.entries(values)) if (value === "" || value === null || value === undefined) address.delete(name); else address.set(name, value);
    history.replaceState(null, "", `#${address}`);
  };

  // Runs what takes time in a box; what was asked for before and comes late is dropped.
  const asking = (box, status) => {
    let last = 0;
    return async (work) => {
      const mine = ++last;
      const slow = setTimeout(() => { if (mine === last) box.setAttribute("aria-busy", "true"); }, 150);
      try { await work(() => mine === last); } catch (error) {
        if (mine === last) { redraw(box, make("p", { class: "note failed", role: "alert" }, error.message)); status.textContent = ""; }
      } finally { clearTimeout(slow); if (mine === last) box.removeAttribute("aria-busy"); }
    };
  };
  const runOptions = (runs) => runs.map((run) => [run.name, run.name]);

  // --- pick a problem ----------------------------------------------------------------------------------------------
  const problems = () => {
    const place = document.getElementById("problem-explorer");
    const runs = source.runs;
    if (!runs.length) { place.textContent = "No problems to show."; return; }
    const WINDOW = 200;
    const body = make("div", {});
    const status = make("p", { class: "unseen", role: "status", id: "problem-status" });
    const ask = asking(body, status);
    const address = read();
    const state = {
      run: runs.some((run) => run.name === address.get("run")) ? address.get("run") : runs[0].name, id: address.has("problem") ? Number(address.get("problem")) : null,
      find: address.get("find") || "", answered: address.get("answered") || "all", steps: address.get("steps") || "all", operation: address.get("operation") || "all",
      condition: address.get("condition") || "", did: address.get("did") || "changed",
      query: address.get("query") || "eot", layer: address.get("layer") || "mean", head: address.get("head") || "mean", cell: address.get("cell"), kind: null,
    };
    let list = { total: 0, items: [] }, shown = [], conditions = [], outcomes = null, entry = null, wanted = "";

    const control = {
      run: select("problem-run", (value) => { state.run = value; wanted = ""; remember({ run: value }); start(); }),
      find: make("input", { type: "search", id: "problem-find", size: 18, autocomplete: "off", placeholder: "words, or a number", oninput: (event) => { state.find = event.target.value; refresh(); } }),
      answered: select("problem-filter", (value) => { state.answered = value; refresh(); }),
      steps: select("problem-steps", (value) => { state.steps = value; refresh(); }),
      operation: select("problem-operation", (value) => { state.operation = value; refresh(); }),
      condition: select("problem-condition", (value) => { state.condition = value; refresh(); }),
      did: select("problem-did", (value) => { state.did = value; refresh(); }),
      problem: select("problem", (value) => { state.id = Number(value); show(); }),
    };
    const step = (by) => () => {
      if (!shown.length) return;
      const at = shown.findIndex((item) => item.id === state.id);
      state.id = shown[(at + by + shown.length) % shown.length].id;
      show();
    };
    const count = make("span", {});
    const problemLabel = make("label", { class: "long-choice" }, count, control.problem);
    const filters = make("details", { class: "filters" }, make("summary", {}, "More filters"), make("div", { class: "controls" },
      labelled("Steps", control.steps), labelled("Operation", control.operation),
      labelled("Under an intervention", control.condition, "long-choice"), labelled("its answer", control.did)));
    filters.open = state.steps !== "all" || state.operation !== "all" || state.condition !== "";
    place.replaceChildren(
      make("div", { class: "controls" }, labelled("Run", control.run), labelled("Find", control.find), labelled("Answered", control.answered)), filters,
      make("div", { class: "controls" }, problemLabel, make("div", { class: "steps" }, button("problem-before", "Previous problem", "\u2190", step(-1)), button("problem-after", "Next problem", "\u2192", step(1)))),
      status, body);
    control.find.value = state.find;
    fill(control.run, runOptions(runs), state.run);
    fill(control.answered, [["all", "rightly or wrongly"], ["right", "rightly"], ["wrong", "wrongly"]], state.answered);

    const fits = (item) => {
      if (state.answered !== "all" && item.correct !== (state.answered === "right")) return false;
      if (state.steps !== "all" && String(item.steps) !== state.steps) return false;
      if (state.operation !== "all" && !item.operations.includes(state.operation)) return false;
      if (outcomes) {
        const row = outcomes.get(item.id);
        if (!row) return false;
        const [answer, , outcome] = row;
        if (state.did === "changed" || state.did === "same") { if ((answer !== item.predicted) !== (state.did === "changed")) return false; } else if (outcome !== state.did) return false;
      }
      const words = state.find.trim().toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length === 1 && /^\d+$/.test(words[0]) && String(item.id) === words[0]) return true;
      const text = item.question.toLowerCase();
      return words.every((word) => text.includes(word));
    };

    const start = () => ask(async (current) => {
      const [begun, named] = await Promise.all([source.list(state.run), source.conditions(state.run)]);
      if (!current()) return;
      list = begun; conditions = named; outcomes = null;
      if (!conditions.some((each) => each[2] === state.condition)) state.condition = "";
      const kinds = [...new Set(conditions.map((each) => each[0]))];
      control.condition.replaceChildren(make("option", { value: "" }, "none"), ...kinds.map((kind) => make("optgroup", { label: kind }, ...conditions.filter((each) => each[0] === kind).map((each) => make("option", { value: each[2] }, each[1])))));
      control.condition.value = state.condition;
      refresh();
      const run = state.run;
      while (list.more && run === state.run && await list.more()) { if (run === state.run) refresh(); }
    });

    const choices = () => {
      const steps = [...new Set(list.items.map((item) => item.steps))].sort((a, b) => a - b);
      const operations = [...new Set(list.items.flatMap((item) => item.operations))].sort();
      if (!steps.map(String).includes(state.steps)) state.steps = "all";
      if (!operations.includes(state.operation)) state.operation = "all";
      fill(control.steps, [["all", "any number"], ...steps.map((n) => [n, n || "not written"])], state.steps);
      fill(control.operation, [["all", "any"], ...operations.map((each) => [each, each])], state.operation);
      const named = outcomes ? [...new Set([...outcomes.values()].map((row) => row[2]).filter(Boolean))].sort() : [];
      if (!["changed", "same", ...named].includes(state.did)) state.did = "changed";
      fill(control.did, [["changed", "is another"], ["same", "is as before"], ...named.map((each) => [each, `is the ${each}`.replace("the other", "another").replace("the gibberish", "no number")])], state.did);
      control.did.disabled = !state.condition;
    };

    const refresh = () => ask(async (current) => {
      if (state.condition && wanted !== `${state.run} ${state.condition}`) {
        const got = await source.outcomes(state.run, state.condition);
        if (!current()) return;
        outcomes = got; wanted = `${state.run} ${state.condition}`;
      }
      if (!state.condition) { outcomes = null; wanted = ""; }
      choices();
      shown = list.items.filter(fits);
      remember({ run: state.run, find: state.find, answered: state.answered === "all" ? "" : state.answered, steps: state.steps === "all" ? "" : state.steps, operation: state.operation === "all" ? "" : state.operation, condition: state.condition, did: state.condition && state.did !== "changed" ? state.did : "" });
      if (!shown.some((item) => item.id === state.id)) {
        // A linked problem may be in a block that is still to come.
        if (state.id !== null && list.more && list.items.length < list.total && !list.items.some((item) => item.id === state.id)) { count.textContent = `Problem (${list.items.length} of ${list.total} listed)`; return; }
        state.id = shown.length ? shown[0].id : null;
      }
      await draw(current);
    });
    const show = () => ask(draw);

    const draw = async (current) => {
      const at = shown.findIndex((item) => item.id === state.id);
      const first = Math.max(0, Math.min(at - WINDOW / 2, shown.length - WINDOW));
      const whole = list.items.length < list.total ? `${list.items.length} of ${list.total} listed so far` : `of ${list.total}`;
      count.textContent = `Problem (${shown.length} ${shown.length === list.total ? "here" : whole})`;
      fill(control.problem, shown.slice(first, first + WINDOW).map((item) => [item.id, `${item.correct ? "\u2713" : "\u2717"} ${item.id}: ${short(item.question)}`]), state.id);
      if (first > 0) control.problem.prepend(make("option", { disabled: "" }, `\u2026 ${first} before`));
      if (first + WINDOW < shown.length) control.problem.append(make("option", { disabled: "" }, `\u2026 ${shown.length - first - WINDOW} after: search, or go on with \u2192`));
      if (at < 0) { entry = null; redraw(body, make("p", { class: "note" }, "No problem is like that here.")); status.textContent = "No problem is like that here."; return; }
      const got = await source.problem(state.run, state.id);
      if (!current()) return;
      entry = got;
      remember({ run: state.run, problem: state.id });
      status.textContent = `Problem ${state.id}, ${at + 1} of ${shown.length}, answered ${entry.item.correct ? "rightly" : "wrongly"}`;
      await parts(current);
    };

    const parts = async (current) => {
      const { item } = entry;
      const attention = await attentionPart();
      if (!current()) return;
      redraw(body,
        make("p", { class: "whose" }, `${state.run}, problem ${item.id}`),
        make("p", { class: "question", id: "question" }, item.question),
        make("dl", { class: "facts" },
          fact("Right answer", item.gold),
          fact("Answered", item.predicted === null ? `no answer (\u201c${short(item.text)}\u201d)` : String(item.predicted), item.correct ? "right" : "wrong"),
          fact("Verdict", item.correct ? "\u2713 right" : "\u2717 wrong", item.correct ? "right" : "wrong"),
          fact("log p of the right answer", number(item.logprob)),
          item.chain.length ? fact("Written chain", item.chain.join(";  ")) : null),
        lensPart(), tracePart(), attention, outcomePart());
    };
    const again = () => ask(parts);

    const chosenCell = () => {
      const { layers, item } = entry;
      const [layer, name] = (state.cell || "").split(" ");
      const l = layers.indexOf(Number(layer)), p = item.places.indexOf(name);
      return state.cell && l >= 0 && p >= 0 ? [l, p] : [layers.length - 1, Math.max(0, item.places.indexOf("eot"))];
    };

    function lensPart() {
      const { layers, strings, item } = entry;
      const results = new Set(item.chain.map((step) => (step.includes("=") ? step.split("=") : step.replace(/\W+$/, "").split(" ")).pop().trim()));
      const grid = make("div", { class: "grid", id: "lens", role: "group", "aria-label": "Readings by layer and position; arrow keys move" });
      grid.style.gridTemplateColumns = `max-content repeat(${item.places.length}, minmax(3.1rem, 1fr))`;
      grid.append(make("span"));
      item.places.forEach((name, p) => grid.append(make("span", { class: "column" }, name, item.fed[p] && name.startsWith("a") ? make("small", { class: "fed" }, `fed \u201c${word(item.fed[p])}\u201d`) : null)));
      const pick = (l, p) => { state.cell = `${layers[l]} ${item.places[p]}`; remember({ cell: state.cell }); again(); };
      const [chosenLayer, chosenPlace] = chosenCell();
      layers.forEach((layer, l) => {
        grid.append(make("span", { class: "label" }, `layer ${layer}`));
        item.places.forEach((name, p) => {
          const [token, chance] = item.lens[l][p][0];
          const text = strings[token];
          const chosen = l === chosenLayer && p === chosenPlace;
          const cell = make("button", {
            type: "button", id: `lens-${l}-${p}`, class: `cell${results.has(text.trim()) ? " chain" : ""}`, "aria-pressed": String(chosen), tabindex: chosen ? 0 : -1,
            title: `layer ${layer}, ${name}: ${visible(text)} ${percent(chance / 1000, 1)}`, onclick: () => pick(l, p),
          }, word(text), make("small", {}, percent(chance / 1000)));
          grid.append(shade(cell, chance / 1000));
        });
      });
      arrows(grid, "lens", pick);
      const bars = make("div", { class: "sharebars", id: "lens-detail" });
      for (const [token, chance] of item.lens[chosenLayer][chosenPlace]) {
        const bar = make("span", { class: "bar" });
        bar.style.width = percent(chance / 1000, 1);
        bars.append(make("code", {}, visible(strings[token])), bar, make("span", {}, percent(chance / 1000, 1)));
      }
      return make("div", {},
        make("h3", {}, "What each position reads out as"),
        make("div", { class: "scroll", id: "lens-scroll", role: "region", "aria-label": "What each position reads out as" }, grid),
        make("p", { class: "note" }, "The most likely token after the final norm and unembedding, and its probability; stronger colour is more certain. Cells underlined in orange are a result of the written chain. The state at ct0 is read; what is made of it is fed at ct1. ", legend("0", "1")),
        make("h4", {}, `Most likely tokens at layer ${layers[chosenLayer]}, ${item.places[chosenPlace]}`), bars);
    }

    function tracePart() {
      const { trace } = entry.item;
      if (!trace) return null;
      const texts = [...trace.read, ""];
      const used = new Map(trace.nodes.map(([at, text]) => [at, text]));
      const wide = Math.max(64, 22 + 8.2 * Math.max(...texts.map((text) => text.length), ...trace.nodes.map(([, text]) => text.length)));
      const x = (at) => (at + 0.5) * wide;
      const longest = Math.max(1, ...trace.nodes.flatMap(([at, , sources]) => sources.map((from) => at - from)));
      const top = 24 + Math.min(76, 18 * longest);
      const svg = (name, attributes, ...children) => {
        const element = document.createElementNS("http://www.w3.org/2000/svg", name);
        for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
        element.append(...children);
        return element;
      };
      const size = [trace.places.length * wide, top + 46];
      const drawing = svg("svg", { id: "trace", class: "trace", role: "img", "aria-label": trace.tree || "no tree", width: size[0], height: size[1], viewBox: `0 0 ${size[0]} ${size[1]}` },
        svg("defs", {}, svg("marker", { id: "trace-end", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, svg("path", { d: "M0,0 L8,4 L0,8 z" }))));
      for (const [at, , sources] of trace.nodes) {
        for (const from of sources) drawing.append(svg("path", { class: "arc", d: `M${x(from)},${top - 13} Q${(x(from) + x(at)) / 2},${top - 13 - Math.min(76, 18 * (at - from)) * 1.6} ${x(at)},${top - 13}`, "marker-end": "url(#trace-end)" }));
      }
      trace.places.forEach((name, at) => {
        const text = used.has(at) ? used.get(at) : texts[at];
        if (used.has(at)) drawing.append(svg("rect", { x: x(at) - wide / 2 + 5, y: top - 12, width: wide - 10, height: 24, rx: 4 }));
        drawing.append(svg("text", { class: used.has(at) ? "used" : "", x: x(at), y: top + 5 }, visible(text) === "\u2205" ? "" : visible(text)),
          svg("text", { class: "place", x: x(at), y: top + 34 }, name));
      });
      const told = trace.tree ? `${trace.tree}. ${trace.written ? "This is the written chain" : "This is not the written chain"}${trace.n > 1 ? `, one of ${trace.n} trees as good` : ""}.` : "No tree of valid steps ends at the answer.";
      return make("div", {},
        make("h3", {}, "What its thoughts read as, chained to the answer"),
        make("div", { class: "scroll", id: "trace-scroll", role: "region", "aria-label": "What its thoughts read as, chained to the answer" }, drawing),
        make("p", { class: "note" }, `${told} Read through the ${trace.how}; framed: what the tree uses, arrows from operand to result.`));
    }

    const unpack = (text, nPlace, nKey) => {
      const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
      return (layer, place, key) => (bytes[(layer * nPlace + place) * nKey + key] / 255) ** 2;
    };

    async function attentionPart() {
      const { layers, heads, item } = entry;
      const query = item.places.includes(state.query) ? state.query : item.places[item.places.length - 1];
      const from = item.places.indexOf(query);
      const layer = layers.map(String).includes(state.layer) ? state.layer : "mean";
      const head = source.attention && layer !== "mean" && heads.map(String).includes(state.head) ? state.head : "mean";
      let share;
      if (head !== "mean") {
        const weights = unpack(await source.attention(state.run, item.id, Number(layer), Number(head)), item.places.length, item.keys.length);
        share = item.keys.map((_, k) => weights(0, from, k));
      } else {
        const weights = unpack(item.attention, item.places.length, item.keys.length);
        const chosen = layer === "mean" ? layers.map((_, l) => l) : [layers.map(String).indexOf(layer)];
        share = item.keys.map((_, k) => chosen.reduce((sum, l) => sum + weights(l, from, k), 0) / chosen.length);
      }
      const total = share.reduce((a, b) => a + b, 0) || 1;
      const isQuestion = item.keys.map((key) => key.startsWith("q-"));
      const named = item.tokens.some((token) => token !== "");
      const spaced = item.tokens.some((token) => token.startsWith(" "));
      const strongest = Math.max(...share) || 1;
      const line = make("div", { class: "tokens", id: "attention" });
      item.keys.forEach((key, k) => {
        if (item.places.indexOf(key) > from) return;
        const text = isQuestion[k] ? (named ? visible(item.tokens[k] || "\u2205") : key) : key;
        const span = make("span", { class: isQuestion[k] && named ? "" : "place", title: `${key}: ${percent(share[k] / total, 1)}` }, text);
        const next = item.tokens[k + 1];
        line.append(shade(span, share[k], strongest), !isQuestion[k] || !named || (!spaced && next && !/^[.,;:!?]/.test(next)) ? " " : "");
      });
      const groups = [["question", share.filter((_, k) => isQuestion[k]).reduce((a, b) => a + b, 0)]];
      item.keys.forEach((key, k) => { if (!isQuestion[k] && (share[k] > 0 || !key.startsWith("a"))) groups.push([key, share[k]]); });
      const bars = make("div", { class: "sharebars", id: "attention-shares" });
      for (const [name, value] of groups) {
        if (item.places.indexOf(name) > from) continue;
        const bar = make("span", { class: "bar" });
        bar.style.width = percent(value / total, 1);
        bars.append(make("span", {}, name), bar, make("span", {}, percent(value / total, 1)));
      }
      const option = (name) => (value) => { state[name] = value; remember({ [name]: value === "mean" ? "" : value }); again(); };
      const queries = select("query", option("query")), levels = select("attention-layer", option("layer")), each = select("attention-head", option("head"));
      fill(queries, item.places.map((name) => [name, name === "eot" ? "eot (predicts the first answer token)" : name]), query);
      fill(levels, [["mean", "mean of layers"], ...layers.map((one) => [one, `layer ${one}`])], layer);
      fill(each, [["mean", layer === "mean" ? "mean of heads (pick a layer first)" : "mean of heads"], ...(layer === "mean" ? [] : heads.map((one) => [one, `head ${one}`]))], head);
      return make("div", {},
        make("h3", {}, "Where it looks"),
        make("div", { class: "controls" }, labelled("From", queries), labelled("Layer", levels), source.attention ? labelled("Head", each) : null),
        make("p", { class: "whose" }, `From ${query}, ${layer === "mean" ? "mean of layers" : `layer ${layer}`}, ${head === "mean" ? "mean of heads" : `head ${head}`}`),
        line,
        make("p", { class: "note" }, `${head === "mean" ? "Mean over heads" : `Head ${head} alone`}; full colour is the strongest (${percent(strongest / total, 1)}). `,
          named ? (item.exact ? "" : "Question tokens are cut from the text by the vocabulary, as the run holds no question tokens. ") : "This run holds no question tokens, so they are named by their distance from bot. ",
          source.note ? source.note(layers) : ""),
        bars);
    }

    function outcomePart() {
      const { item } = entry;
      if (!item.outcomes.length) {
        return make("div", {}, make("h3", {}, "What interventions did to the answer"),
          make("p", { class: "note" }, "No re-entry result in this lake has this problem; lake reenter makes them."));
      }
      const named = entry.conditions;
      const kinds = [...new Set(item.outcomes.map((row) => named[row[0]][0]))];
      const kind = kinds.includes(state.kind) ? state.kind : kinds[0];
      const rows = item.outcomes.filter((row) => named[row[0]][0] === kind).map((row) => [named[row[0]][1], ...row.slice(1)]);
      const hasOutcome = rows.some((row) => row[3]);
      const table = make("tbody");
      for (const [condition, answer, difference, outcome] of rows) {
        const moved = answer !== item.predicted;
        table.append(make("tr", {}, make("td", { class: "text" }, condition),
          make("td", { class: moved ? "wrong" : "" }, answer === null ? "no answer" : String(answer)),
          make("td", { class: "text" }, moved ? "changed" : "as before"),
          make("td", {}, difference === null ? "" : (difference > 0 ? "+" : "") + number(difference)), hasOutcome ? make("td", { class: "text" }, outcome || "") : null));
      }
      const nMoved = rows.filter((row) => row[1] !== item.predicted).length;
      const experiments = select("outcome-kind", (value) => { state.kind = value; again(); });
      fill(experiments, kinds.map((each) => [each, each]), kind);
      return make("div", {}, make("h3", {}, "What interventions did to the answer"),
        make("div", { class: "controls" }, labelled("Experiment", experiments, "long-choice")),
        make("p", { class: "note" }, make("span", { class: "whose" }, `${kind}. `), `${nMoved} of ${rows.length} conditions changed the answer from ${item.predicted === null ? "no answer" : item.predicted}.`),
        make("div", { class: "scroll limited", id: "outcomes-scroll", role: "region", "aria-label": "Interventions" }, make("table", { id: "outcomes" },
          make("thead", {}, make("tr", {}, ...["Intervention", "Answer", "Changed", "Change of log p", ...(hasOutcome ? ["Outcome"] : [])].map((name, i) => make("th", { scope: "col", class: i === 1 || i === 3 ? "" : "text" }, name)))), table)));
    }

    addEventListener("hashchange", () => {
      const linked = read();
      if (!linked.has("run") || !runs.some((run) => run.name === linked.get("run"))) return;
      const other = linked.get("run") !== state.run;
      for (const [name, otherwise] of [["find", ""], ["answered", "all"], ["steps", "all"], ["operation", "all"], ["condition", ""], ["did", "changed"], ["query", "eot"], ["layer", "mean"], ["head", "mean"], ["cell", null]]) state[name] = linked.get(name) || otherwise;
      state.run = linked.get("run"); state.id = linked.has("problem") ? Number(linked.get("problem")) : null;
      control.run.value = state.run; control.find.value = state.find; control.answered.value = state.answered; control.condition.value = state.condition;
      if (other) start(); else refresh();
    });
    start();
  };

  // --- pick a head -------------------------------------------------------------------------------------------------
  const heads = () => {
    const place = document.getElementById("head-explorer");
    const runs = source.runs.filter((run) => run.heads);
    if (!runs.length) { place.replaceChildren(make("p", { class: "note" }, "No head scores in this lake yet: lake analyze heads makes them.")); return; }
    const body = make("div", {});
    const status = make("p", { class: "unseen", role: "status" });
    const ask = asking(body, status);
    const address = read();
    const state = { run: runs.some((run) => run.name === address.get("of")) ? address.get("of") : runs[0].name, name: address.get("pick") };
    let scores = null;
    const nameOf = (head) => `L${head.layer}H${head.head}`;
    const control = {
      run: select("head-run", (value) => { state.run = value; state.name = null; start(); }),
      head: select("head", (value) => { state.name = value; show(); }),
    };
    const at = () => Math.max(0, scores.ranked.findIndex((head) => nameOf(head) === state.name));
    const step = (by) => () => { if (!scores) return; state.name = nameOf(scores.ranked[(at() + by + scores.ranked.length) % scores.ranked.length]); show(); };
    place.replaceChildren(make("div", { class: "controls" }, labelled("Run", control.run), labelled("Head, by rank", control.head),
      make("div", { class: "steps" }, button("head-before", "Previous head", "\u2190", step(-1)), button("head-after", "Next head", "\u2192", step(1)))), status, body);
    fill(control.run, runOptions(runs), state.run);
    const start = () => ask(async (current) => { const got = await source.heads(state.run); if (!current()) return; scores = got; draw(); });
    const show = () => { draw(); remember({ of: state.run, pick: state.name }); };

    const mapOf = (id, rows, columns, cell, width, label) => {
      const grid = make("div", { class: "grid", id });
      grid.style.gridTemplateColumns = `max-content repeat(${columns.length}, minmax(${width}, 1fr))`;
      grid.append(make("span"), ...columns.map((name) => make("span", { class: "column" }, name)));
      rows.forEach((name, i) => { grid.append(make("span", { class: "label" }, name)); columns.forEach((_, j) => grid.append(cell(i, j))); });
      return make("div", { class: "scroll", id: `${id}-scroll`, role: "region", "aria-label": label }, grid);
    };

    function draw() {
      const head = scores.ranked[at()];
      state.name = nameOf(head);
      fill(control.head, scores.ranked.map((each) => [nameOf(each), `${each.rank}. ${nameOf(each)}  ${each.type || "no type"}`]), state.name);
      const l = scores.layers.indexOf(head.layer), h = scores.heads.indexOf(head.head);
      const many = scores.heads.length > 16;
      const best = Math.max(...scores.ranked.map((each) => each.composite || 0)) || 1;
      const byName = new Map(scores.ranked.map((each) => [nameOf(each), each]));
      const pick = (i, j) => { state.name = `L${scores.layers[i]}H${scores.heads[j]}`; show(); };
      const all = mapOf("heads", scores.layers.map((layer) => `layer ${layer}`), scores.heads.map((index) => (many && index % 4 ? "" : `H${index}`)), (i, j) => {
        const each = byName.get(`L${scores.layers[i]}H${scores.heads[j]}`);
        const cell = make("button", { type: "button", id: `heads-${i}-${j}`, class: "cell", "aria-pressed": String(each === head), tabindex: each === head ? 0 : -1,
          "aria-label": `L${scores.layers[i]}H${scores.heads[j]}: composite ${number(each && each.composite)}`, title: `L${scores.layers[i]}H${scores.heads[j]}: composite ${number(each && each.composite)}`, onclick: () => pick(i, j) },
          many ? "" : number(each && each.composite));
        return shade(cell, each ? each.composite || 0 : 0, best);
      }, many ? "1.1rem" : "2rem", "All heads by composite");
      const grid = all.firstChild;
      grid.setAttribute("role", "group"); grid.setAttribute("aria-label", "Heads by layer; arrow keys move");
      arrows(grid, "heads", pick);
      const map = mapOf("head-map", scores.thoughts, scores.thoughts, (i, j) => {
        if (j > i) return make("span", { class: "cell none" }, "");
        const value = scores.pattern[l][h][i][j] / 1000;
        return shade(make("span", { class: "cell", title: `${scores.thoughts[i]} to ${scores.thoughts[j]}: ${percent(value, 1)}` }, value < 0 ? "n/a" : value.toFixed(2)), value);
      }, "2.6rem", "Attention among the thoughts");
      const facts = make("dl", { class: "facts" },
        fact("Head", nameOf(head)), fact("Rank", `${head.rank} of ${scores.ranked.length}`), fact("Type", head.type || "none"), fact("Band", head.band),
        fact("Composite", `${number(head.composite)}${head.composite_low !== undefined ? ` [${number(head.composite_low)}, ${number(head.composite_high)}]` : ""}`),
        fact("Flow", number(head.flow)), fact("Hub", `${number(head.hub)}${head.hub_position ? ` at ${head.hub_position}` : ""}`), fact("Skip", number(head.skip, 3)),
        fact("Sequential", number(head.sequential)), head.top_share !== undefined && scores.ranked.length > 20 ? fact("In the top 20 of resamples", percent(head.top_share)) : null);
      const parts = [make("p", { class: "whose" }, `${state.run}, head ${nameOf(head)}`), facts, make("div", { class: "two" },
        make("div", {}, make("h3", {}, "Among the thoughts"), map,
          make("p", { class: "note" }, "Rows look, columns are looked at; mean attention. What a row lacks to 1 goes to the question and bot.")),
        make("div", {}, make("h3", {}, "All heads, by composite"), all,
          make("p", { class: "note" }, "Composite: mean of how much a head passes from thought to thought (flow), gathers at one (hub) and skips over, each by its rank among the heads. Stronger colour scores higher; pick one.")))];
      if (scores.share) {
        parts.push(make("h3", {}, "Over everything it can look at, in percent of each row"), mapOf("head-segments", scores.queries, scores.targets, (q, t) => {
          const value = scores.share[l][h][q][t] / 1000;
          return value <= 0 ? make("span", { class: "cell none" }, value < 0 ? "" : "0") : shade(make("span", { class: "cell", title: `${scores.queries[q]} to ${scores.targets[t]}: ${percent(value, 1)}` }, (100 * value).toFixed(0)), value);
        }, "2.9rem", "Attention over everything"));
      }
      status.textContent = `Head ${nameOf(head)}, rank ${head.rank} of ${scores.ranked.length}`;
      redraw(body, ...parts);
    }
    start();
  };

  // --- pick a feature ----------------------------------------------------------------------------------------------
  const features = () => {
    const place = document.getElementById("feature-explorer");
    const runs = source.runs.filter((run) => run.features);
    if (!runs.length) { place.replaceChildren(make("p", { class: "note" }, "No dictionary in this lake yet: lake analyze sae learns one.")); return; }
    const body = make("div", {});
    const status = make("p", { class: "unseen", role: "status" });
    const ask = asking(body, status);
    const address = read();
    const state = { run: runs.some((run) => run.name === address.get("dictionary-of")) ? address.get("dictionary-of") : runs[0].name, mark: address.get("dictionary"), feature: address.has("feature") ? Number(address.get("feature")) : null };
    let lists = [];
    const control = {
      run: select("feature-run", (value) => { state.run = value; state.mark = null; state.feature = null; start(); }),
      mark: select("feature-dictionary", (value) => { state.mark = value; state.feature = null; show(); }),
      feature: select("feature", (value) => { state.feature = Number(value); show(); }),
    };
    const step = (by) => () => {
      const known = listed().features;
      const at = known.findIndex(([feature]) => feature === state.feature);
      state.feature = known[(at + by + known.length) % known.length][0];
      show();
    };
    const dictionaryLabel = labelled("Dictionary", control.mark);
    const count = make("span", {});
    place.replaceChildren(make("div", { class: "controls" }, labelled("Run", control.run), dictionaryLabel, make("label", {}, count, control.feature),
      make("div", { class: "steps" }, button("feature-before", "Previous feature", "\u2190", step(-1)), button("feature-after", "Next feature", "\u2192", step(1)))), status, body);
    fill(control.run, runOptions(runs), state.run);
    const listed = () => lists.find((each) => each.mark === state.mark) || lists[0];
    const start = () => ask(async (current) => { const got = await source.features(state.run); if (!current()) return; lists = got; await draw(current, false); });
    const show = () => ask((current) => draw(current, true));

    const draw = async (current, picked) => {
      const list = listed();
      state.mark = list.mark;
      dictionaryLabel.hidden = lists.length < 2;
      fill(control.mark, lists.map((each) => [each.mark, each.title]), state.mark);
      if (!list.features.some(([feature]) => feature === state.feature)) state.feature = list.features.length ? list.features[0][0] : null;
      count.textContent = `Feature, most often first (${list.features.length} of ${list.n_feature}${list.n_silent ? `, ${list.n_silent} never fire` : ""})`;
      fill(control.feature, list.features.map(([feature, fires]) => [feature, `${feature}: fires at ${percent(fires, 2)} of states`]), state.feature);
      if (state.feature === null) { redraw(body, make("p", { class: "note" }, "No feature of this dictionary fires.")); return; }
      const page = await source.feature(state.run, state.mark, state.feature);
      if (!current()) return;
      if (picked) remember({ "dictionary-of": state.run, dictionary: state.mark, feature: state.feature });
      const names = Object.keys(page.dims);
      const rows = names.length > 1 ? page.dims[names[0]].map((label) => `${names[0]} ${label}`) : [""];
      const columns = names.length ? page.dims[names[names.length - 1]].map(String) : [];
      const values = names.length > 1 ? page.frequency : [page.frequency];
      const grid = make("div", { class: "grid", id: "feature-map" });
      grid.style.gridTemplateColumns = `max-content repeat(${columns.length}, minmax(2.6rem, 1fr))`;
      grid.append(make("span"), ...columns.map((name) => make("span", { class: "column" }, name)));
      rows.forEach((name, i) => { grid.append(make("span", { class: "label" }, name)); columns.forEach((_, j) => grid.append(shade(make("span", { class: "cell" }, percent(values[i][j] / 1000, values[i][j] && values[i][j] < 10 ? 1 : 0)), values[i][j] / 1000))); });
      const tokens = (list) => make("p", { class: "written" }, ...list.map(([token, size]) => make("span", {}, make("code", {}, word(token)), ` ${number(size, 1)} `)));
      const top = make("tbody");
      for (const each of page.top) {
        top.append(make("tr", {}, make("td", {}, number(each.activation, 2)), make("td", { class: "text" }, each.where.length > 1 ? `layer ${each.where[0]}, ${each.where[1]}` : each.where[0] || ""),
          make("td", { class: "text" }, make("code", {}, word(each.reading))), make("td", { class: "text wrap" }, `${each.id}: ${each.question}`)));
      }
      status.textContent = `Feature ${page.feature}`;
      redraw(body,
        make("p", { class: "whose" }, `${state.run}, feature ${page.feature} of ${list.title}`),
        make("dl", { class: "facts" }, fact("Feature", String(page.feature)), fact("Fires at", `${percent(page.fires, 2)} of states`), fact("Strongest", number(page.max)), fact("Mean where it fires", number(page.mean)),
          page.tells ? fact("Predicts, alone", `${page.tells[0]} (area ${number(page.tells[1], 2)} on test problems, p ${number(page.tells[2], 3)})`) : null,
          page.does ? fact("Taken out", `at ${page.does.where[1]}, ${page.does.where[0] < 0 ? "fed" : `layer ${page.does.where[0]}`}: moves the answer by ${number(page.does.kl, 3)} nat (random directions ${number(page.does.kl_random, 3)}, p ${page.does.p_kl_holm === null ? "none" : page.does.p_kl_holm.toExponential(0)})${page.does.broken === null ? "" : `; ${percent(page.does.broken, 0)} of ${page.does.n_right} right answers turn wrong`}`) : null),
        columns.length ? make("h3", {}, "Where it fires, in percent of problems") : null,
        columns.length ? make("div", { class: "scroll", id: "feature-map-scroll", role: "region", "aria-label": "Where it fires" }, grid) : null,
        make("div", { class: "two" },
          make("div", {}, make("h3", {}, "Writes"), tokens(page.writes)), make("div", {}, make("h3", {}, "Takes from"), tokens(page.takes))),
        make("p", { class: "note" }, "Tokens whose logits its direction adds most to, and takes most from, through final norm and unembedding (the direct path only), in standard deviations over the vocabulary. Neither what a feature fires on nor what it writes says that the model makes use of it."),
        make("h3", {}, "Problems where it fires most"),
        make("div", { class: "scroll limited", id: "feature-top-scroll", role: "region", "aria-label": "Problems where it fires most" }, make("table", { id: "feature-top" },
          make("thead", {}, make("tr", {}, ...["Activation", "Where", "Read there", "Problem"].map((name, i) => make("th", { scope: "col", class: i ? "text" : "" }, name)))), top)));
    };
    start();
  };

  problems();
  heads();
  features();
  // A link to something picked leads to where it is.
  const linked = read();
  const target = linked.has("problem") ? "explore-problem" : linked.has("pick") ? "explore-head" : linked.has("feature") ? "explore-feature" : "";
  if (target) document.getElementById(target).scrollIntoView({ behavior: "instant" });
};
