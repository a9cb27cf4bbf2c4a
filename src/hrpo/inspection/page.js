"use strict";
// Everything that a model or a task has written goes into text nodes and attributes, never into HTML.

const $ = (id) => document.getElementById(id);
const read = (id) => JSON.parse($(id).textContent);
const index = read("index");
const { columns, problems, summaries } = index;
const PARTS = 1e4, ENTROPY_PARTS = 1e3, MAP_PARTS = 1e5; // as in record.py
const NEAR = "900px"; // completions this far from the window are ready
const LISTED = 20, FOUND = 100; // tokens of the vocabulary

function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== ""));
  return node;
}

const fixed = (value, digits) => value.toFixed(digits);
const percent = (share) => (100 * share).toFixed(1);
const some = (value, parts, digits) => (value === 0 ? `< ${fixed(1 / parts, digits)}` : fixed(value / parts, digits));
const gateOf = (ratio) => Math.sqrt(1 - ratio * ratio);

// ---- tokens -----------------------------------------------------------------------------------------------

const known = columns.map(() => null);

/** The vocabulary of a column: texts (or bytes) by id, and which are special. */
function vocabulary(c) {
  if (known[c] === null) {
    const place = columns[c].tokens;
    const { pieces, special } = place < 0 ? { pieces: [], special: [] } : read(`tokens-${place}`);
    known[c] = { pieces, special: new Set(special) };
  }
  return known[c];
}

/** What a token is called outside of its text: blanks can be seen, bytes are in hexadecimal. */
function nameOf(c, id) {
  const piece = vocabulary(c).pieces[id];
  if (Array.isArray(piece)) return piece.map((byte) => `\\x${byte.toString(16).toUpperCase().padStart(2, "0")}`).join("");
  return piece ? visible(piece) : `#${id}`;
}

const BLANKS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
function visible(text) {
  return text.replace(/[\s\p{Cc}\p{Cf}]/gu, (sign) => BLANKS[sign] ?? `U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
}

// ---- completions ------------------------------------------------------------------------------------------

const list = $("list");
const rowsOf = columns.length ? summaries[0].length : 0;
const cards = new Array(rowsOf);
let current = null; // the token that the panel shows
let pinned = null; // the token that has the focus

function verdictOf(row) {
  if (row.strict) return el("span", { class: "right" }, "✓ right");
  return row.lenient
    ? el("span", { class: "wrong" }, "✗ right, wrong form")
    : el("span", { class: "wrong" }, "✗ wrong");
}

function meta(c, k) {
  const row = summaries[c][k], line = el("div", { class: "meta" });
  if (columns.length > 1) line.append(el("b", {}, columns[c].label));
  if ("strict" in row) {
    const yes = (right) => (right ? "✓" : "✗");
    line.append(verdictOf(row), el("span", {}, `strict ${yes(row.strict)} lenient ${yes(row.lenient)}`));
  }
  if (columns.length > 1) line.append(el("hr"));
  line.append(el("span", {}, `${row.length} tokens${row.cut ? ", cut off" : ""}`));
  if ("reward" in row) line.append(el("span", {}, `reward ${+row.reward.toFixed(3)}`));
  if (row.mixed) line.append(el("span", {}, `hidden ${fixed(row.ratio / PARTS, 3)}`));
  if (row.manyScripts) line.append(el("span", {}, row.scripts.join(" + ")));
  return line;
}

function titleOf(k) {
  const sample = index.groupSize > 1 ? `, sample ${(k % index.groupSize) + 1}` : "";
  return `Problem ${Math.floor(k / index.groupSize) + 1}${sample}`;
}

function card(k) {
  if (cards[k]) return cards[k];
  const { question, gold } = problems[Math.floor(k / index.groupSize)];
  const head = el("header", {}, el("h2", {}, titleOf(k)));
  const golds = [gold].flat().join(" | ");
  if (golds) head.append(el("span", { class: "faint" }, "gold answer ", el("span", { class: "code" }, golds)));
  const asked = question.length > 700
    ? el("details", { class: "question" }, el("summary", {}, `${question.slice(0, 200)} …`), question)
    : el("p", { class: "question" }, question);
  const bodies = columns.map((column, c) => {
    const row = summaries[c][k];
    const box = el("div", { class: "tokens", role: "listbox", dir: "auto", tabindex: 0 });
    box.setAttribute("aria-label", `${titleOf(k)}, ${column.label}: ${row.length} tokens`);
    Object.assign(box, { c, k, record: null });
    box.style.minHeight = `${Math.ceil(row.length / 9) * 1.95}em`;
    watcher.observe(box);
    return el("div", {}, meta(c, k), box);
  });
  cards[k] = el("li", { class: "problem" }, head, question ? asked : "", el("div", { class: "columns" }, ...bodies));
  return cards[k];
}

/** Make the tokens of a completion; far from the window they are taken away again. */
function fill(box) {
  if (box.record) return;
  const { c, k } = box, record = (box.record = read(`record-${c}-${k}`));
  const { pieces, special } = vocabulary(c);
  const joined = new Map();
  for (const [first, count, text] of record.groups) {
    for (let i = 0; i < count; i++) joined.set(first + i, i ? "" : text);
  }
  let offset = 0;
  record.offsets = record.counts.map((count) => (offset += count) - count);
  const tokens = record.ids.map((id, i) => {
    const token = el("span", { class: "t", role: "option", tabindex: -1 });
    token.i = i;
    const piece = joined.get(i) ?? pieces[id];
    if (joined.has(i) && !piece) label(token, "·", "bytes");
    else if (Array.isArray(piece)) label(token, nameOf(c, id), "bytes");
    else if (!piece) label(token, `#${id} `, "special");
    else if (special.has(id)) label(token, piece, "special");
    else piece.split("\n").forEach((line, at) => token.append(...(at ? [el("i", {}, "↵"), "\n"] : []), line));
    if (!piece || !piece.trim?.() || joined.has(i)) token.setAttribute("aria-label", nameOf(c, id));
    return token;
  });
  box.style.minHeight = "";
  box.append(...tokens);
  if (record.end >= 0) {
    const last = tokens[record.end];
    last.setAttribute("aria-label", `${nameOf(c, record.ids[record.end])}, thinking ends here`);
    last.after(el("span", { class: "mark", "aria-hidden": "true" }, "thinking ends"));
  }
  tokens[0].tabIndex = 0;
  box.tabIndex = -1;
  box.tokens = tokens;
  colour(box);
}

// What a colour stands for: a number of each token (below 0: none), the ends of the scale, and its unit.
const SCALES = {
  ratio: { of: "ratio", range: index.range, parts: PARTS },
  whole: { of: "ratio", range: [0, PARTS], parts: PARTS },
  entropy: { of: "entropy", range: [0, index.entropy], parts: ENTROPY_PARTS },
};

function colour(box) {
  const { of, range: [low, high] } = SCALES[$("colour").value], values = box.record[of];
  for (const token of box.tokens) {
    const value = values[token.i];
    if (value < 0) token.removeAttribute("style");
    else token.style.setProperty("--x", Math.round((100 * (value - low)) / Math.max(high - low, 1)));
  }
}

function legend() {
  const { range, parts } = SCALES[$("colour").value];
  ["low", "high"].forEach((end, at) => ($(end).textContent = fixed(range[at] / parts, 4)));
  $("plain").hidden = $("colour").value === "entropy"; // every token has one
  for (const box of list.querySelectorAll(".tokens")) if (box.record) colour(box);
}

function label(token, text, kind) {
  token.classList.add(kind);
  token.textContent = text;
}

function empty(box) {
  if (!box.record || box.contains(document.activeElement) || (current && current.parentNode === box)) return;
  box.style.minHeight = `${box.getBoundingClientRect().height}px`;
  box.replaceChildren();
  Object.assign(box, { record: null, tokens: null, tabIndex: 0 });
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) (entry.isIntersecting ? fill : empty)(entry.target);
    if (!performance.getEntriesByName("ready").length) performance.mark("ready");
  },
  { rootMargin: NEAR },
);

// ---- the panel --------------------------------------------------------------------------------------------

function show(token) {
  if (current) current.classList.remove("at");
  current = token;
  const panel = $("detail");
  panel.classList.toggle("idle", !token);
  if (!token) {
    panel.replaceChildren(...idle());
    return;
  }
  token.classList.add("at");
  panel.classList.toggle("upper", token.getBoundingClientRect().top > innerHeight / 2); // not over the token
  const box = token.parentNode, { c, k, record } = box, i = token.i, column = columns[c], id = record.ids[i];
  const ratio = record.ratio[i] / PARTS, mixed = record.ratio[i] >= 0;
  const first = record.offsets[i], count = record.counts[i];
  const candidates = Array.from({ length: count }, (_, j) => [record.candidates[first + j], record.weights[first + j]]);
  const facts = [];
  if (mixed) facts.push(["hidden ratio", fixed(ratio, 4)], ["gate strength a", fixed(gateOf(ratio), 4)]);
  facts.push(
    ["entropy of the candidates", `${fixed(record.entropy[i] / ENTROPY_PARTS, 3)} nats`],
    ["probability, temperature 1", some(record.probability[i], PARTS, 4)],
  );
  const how = mixed ? "fed mixed with its latent" : i === record.ids.length - 1 ? "the last token; not fed" : "fed as it is";
  const group = record.groups.find(([start, size]) => i >= start && i < start + size);
  const left = PARTS - candidates.reduce((sum, [, weight]) => sum + weight, 0);
  const shares = [...candidates.map(([other, weight]) => [nameOf(c, other), weight, other === id])];
  if (left > 4) shares.push(["others", left, false]);
  const list = el("ol", { class: "bars" });
  for (const [name, weight, taken] of shares) {
    const bar = el("span");
    bar.style.width = `${(100 * weight) / PARTS}%`;
    const said = taken ? el("span", { class: "hidden" }, " (taken)") : "";
    list.append(el("li", taken ? { class: "taken" } : {}, el("span", { class: "name", title: name }, name, said),
      el("span", { class: "bar" }, bar), el("span", { class: "value" }, `${fixed((100 * weight) / PARTS, 1)} %`)));
  }
  const facing = el("dl");
  for (const [name, value] of facts) facing.append(el("dt", {}, name), el("dd", {}, value));
  const close = el("button", { class: "close", onclick: () => show((pinned = null)) }, "Close");
  panel.replaceChildren(
    close,
    el("h3", {}, `${titleOf(k)}, token ${i + 1} of ${record.ids.length}`),
    el("span", { class: "glyph" }, nameOf(c, id)),
    el("p", { class: "faint" }, group ? `${how}; ${nameOf(c, id)} is a part of ${group[2]}` : how),
    facing,
    el("h3", {}, `${mixed && column.latent !== "hidden" ? "Latent candidates" : "Candidates"}, at temperature ${column.temperature}`),
    list,
  );
  $("described").textContent =
    `${how}. ${facts.map(([name, value]) => `${name} ${value}`).join(", ")}. Candidates: ` +
    shares.map(([name, weight]) => `${name} ${fixed((100 * weight) / PARTS, 1)} percent`).join(", ");
}

function idle() {
  const keys = [["Tab", "next completion"], ["← →", "next token"], ["↑ ↓", "next line"], ["Home End", "first, last"], ["Esc", "close"]];
  const list = el("div", { class: "keys" });
  for (const [names, what] of keys) {
    list.append(el("span", {}, ...names.split(" ").map((name) => el("kbd", {}, name))), el("span", { class: "faint" }, what));
  }
  return [
    el("h3", {}, "Token"),
    el("p", { class: "faint" }, "Point at a token, or move to it with the keyboard, to see what it was mixed with. A click keeps it here."),
    list,
  ];
}

const tokenAt = (event) => event.target.closest?.(".t");
list.addEventListener("pointerover", (event) => {
  const token = event.pointerType === "touch" ? null : tokenAt(event);
  if (token && token !== current) show(token);
});
list.addEventListener("pointerleave", () => current && current !== pinned && show(pinned));
list.addEventListener("click", (event) => {
  const token = tokenAt(event);
  if (!token) return;
  token.focus();
  show((pinned = token)); // had it the focus already, closed by Escape
});
list.addEventListener("focusin", (event) => {
  const box = event.target.closest(".tokens");
  if (event.target === box) {
    fill(box);
    box.tokens[0].focus();
    return;
  }
  const token = tokenAt(event);
  if (!token) return;
  for (const other of box.tokens) if (other.tabIndex === 0) other.tabIndex = -1;
  token.tabIndex = 0;
  token.setAttribute("aria-describedby", "described");
  show((pinned = token));
});
list.addEventListener("focusout", () => {
  pinned = null;
});
list.addEventListener("keydown", (event) => {
  const token = tokenAt(event);
  if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
  const { tokens } = token.parentNode;
  const next = {
    ArrowRight: () => tokens[token.i + 1],
    ArrowLeft: () => tokens[token.i - 1],
    Home: () => tokens[0],
    End: () => tokens[tokens.length - 1],
    ArrowDown: () => nextLine(token, 1),
    ArrowUp: () => nextLine(token, -1),
  }[event.key];
  if (!next) return;
  event.preventDefault();
  next()?.focus();
});

document.addEventListener("keydown", (event) => event.key === "Escape" && show((pinned = null)));

/** The token below (or above) on the next line; past the last line, the one of the next completion. */
function nextLine(token, step) {
  const where = (one) => [...one.getClientRects()].at(-1); // of "\n####" the part that can be read
  const { tokens, c } = token.parentNode, from = where(token);
  const middle = from.left + from.width / 2;
  let best = null, line = null, distance = Infinity;
  for (let i = token.i + step; i >= 0 && i < tokens.length; i += step) {
    const at = where(tokens[i]);
    if (step * (at.top - from.top) < from.height / 2) continue;
    line ??= at.top;
    if (Math.abs(at.top - line) > from.height / 2) break;
    const away = Math.abs(at.left + at.width / 2 - middle);
    if (away < distance) [best, distance] = [tokens[i], away];
  }
  if (best) return best;
  const cell = token.closest(".problem");
  const other = step > 0 ? cell.nextElementSibling : cell.previousElementSibling;
  const box = other?.querySelectorAll(".tokens")[c];
  if (!box) return null;
  fill(box);
  return step > 0 ? box.tokens[0] : box.tokens[box.tokens.length - 1];
}

// ---- filters ----------------------------------------------------------------------------------------------

const texts = Array.from({ length: rowsOf }, (_, k) =>
  [problems[Math.floor(k / index.groupSize)].question, ...columns.map((_, c) => summaries[c][k].text)].join("\n").toLowerCase());

function refresh() {
  const by = summaries[Number($("column").value)], words = $("search").value.toLowerCase();
  const wanted = {
    all: () => true,
    right: (k) => by[k].strict,
    wrong: (k) => !by[k].strict,
    lenient: (k) => by[k].lenient && !by[k].strict,
    differ: (k) => summaries.some((rows) => rows[k].strict !== by[k].strict),
  }[$("verdict").value];
  const kept = by.map((_, k) => k).filter((k) => wanted(k) && (!$("mixed").checked || by[k].manyScripts) && texts[k].includes(words));
  const value = { problem: () => 0, most: (k) => -by[k].ratio, least: (k) => by[k].ratio, longest: (k) => -by[k].length }[$("order").value];
  kept.sort((a, b) => value(a) - value(b) || a - b);
  pinned = null;
  show(null);
  list.replaceChildren(...(kept.length ? kept.map(card) : [el("li", { class: "problem note" }, "No completion is like that.")]));
  $("count").textContent = `${kept.length} of ${rowsOf}`;
}

function overview() {
  for (const column of columns) {
    const facts = el("dl");
    const fact = (name, value, more = "") => facts.append(el("div", {}, el("dt", {}, name), el("dd", {}, value, more && el("small", {}, more))));
    for (const name of ["strict", "lenient"]) {
      if (!column[name]) continue;
      const [share, low, high] = column[name];
      fact(name === "strict" ? "right (strict)" : "right (lenient)", `${percent(share)} %`, `${percent(low)} to ${percent(high)}`);
    }
    fact("tokens", fixed(column.length, 1), column.cut ? `${column.cut} cut off` : "");
    fact("hidden ratio", column.mixed ? fixed(column.ratio, 3) : "none");
    const sampler = `temperature ${column.temperature}, ${column.topK ? `top ${column.topK}` : "all tokens"}`;
    $("overview").append(el("div", {}, el("h2", {}, column.label),
      el("p", { class: "faint" }, [column.said, sampler].filter(Boolean).join(", ")), facts));
  }
}

// ---- the vocabulary ---------------------------------------------------------------------------------------

function drawMaps() {
  const view = $("vocabulary");
  if (view.childElementCount) return;
  const mapped = columns.map((column, c) => c).filter((c) => columns[c].map >= 0);
  if (!mapped.length) view.append(el("p", { class: "note" }, "No trained gate here: there is nothing to map."));
  for (const c of mapped) view.append(drawMap(c));
}

function drawMap(c) {
  const { ratio, input } = read(`map-${columns[c].map}`);
  const order = Uint32Array.from(ratio.keys()).sort((x, y) => ratio[y] - ratio[x] || x - y);
  const rank = new Uint32Array(order.length);
  order.forEach((id, place) => (rank[id] = place));
  const listed = Math.min(LISTED, Math.ceil(order.length / 2));
  const widest = gateOf(ratio[order[0]] / MAP_PARTS), narrowest = gateOf(ratio[order[order.length - 1]] / MAP_PARTS);
  const rows = (ids) => ids.map((id) => el("tr", {}, el("td", {}, nameOf(c, id)), el("td", {}, `${id}`),
    el("td", {}, fixed(gateOf(ratio[id] / MAP_PARTS), 5)), el("td", {}, fixed(ratio[id] / MAP_PARTS, 4)),
    el("td", {}, fixed(input[id] / PARTS, 3)), el("td", {}, `${rank[id] + 1}`)));
  const table = (caption, ids) => el("div", {}, el("h3", {}, caption), el("table", {},
    el("thead", {}, el("tr", {}, ...["token", "id", "a", "hidden ratio", "i", "rank"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows(Array.from(ids)))));
  const found = el("div", { "aria-live": "polite" });
  const search = el("input", { type: "search", placeholder: "Find a token by its text or id", "aria-label": `Find a token, ${columns[c].label}`, autocomplete: "off", spellcheck: "false" });
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase();
    const hits = [];
    for (const id of words ? order : []) {
      if (String(id) === words || nameOf(c, id).toLowerCase().includes(words)) hits.push(id);
      if (hits.length === FOUND) break;
    }
    found.replaceChildren(...(words ? [table(hits.length === FOUND ? `The first ${FOUND} found` : `${hits.length} found`, hits)] : []));
  });
  return el("article", {}, el("h2", {}, columns[c].label),
    el("p", { class: "faint" }, `What the gate does with each of the ${ratio.length.toLocaleString("en")} tokens, whatever the context: ` +
      "it sees the token's embedding alone. The smaller a, the wider the gate is open, and the more of the latent is fed beside " +
      "the token, times the input gate i. Means over channels."),
    histogram(ratio.map((value) => gateOf(value / MAP_PARTS)), widest, narrowest),
    el("div", { class: "pair" }, table("Open the gate most", order.slice(0, listed)),
      table("Open the gate least", order.slice(-listed).reverse())),
    el("p", {}, search), found);
}

function histogram(values, low, high) {
  const bins = Math.min(60, Math.max(10, Math.ceil(Math.sqrt(values.length)))), counts = new Array(bins).fill(0);
  for (const value of values) counts[Math.min(bins - 1, Math.floor((bins * (value - low)) / (high - low || 1)))]++;
  const most = Math.max(...counts), space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${bins} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Tokens by a, from ${fixed(low, 5)} to ${fixed(high, 5)}`);
  counts.forEach((count, x) => {
    const bar = document.createElementNS(space, "rect"), height = (96 * count) / most;
    for (const [key, value] of Object.entries({ x: x + 0.06, y: 100 - height, width: 0.88, height })) bar.setAttribute(key, value);
    svg.append(bar);
  });
  return el("figure", {}, svg, el("figcaption", {}, el("span", {}, `a = ${fixed(low, 5)}`), el("span", {}, `${most.toLocaleString("en")} tokens at the peak`), el("span", {}, `a = ${fixed(high, 5)}`)));
}

// ---- the page ---------------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll('[role="tab"]')];
function openTab(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  show((pinned = null));
  if (tab.id === "tab-vocabulary") drawMaps();
}
tabs.forEach((tab, place) => {
  tab.addEventListener("click", () => openTab(tab));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    const other = tabs[(place + 1) % tabs.length];
    openTab(other);
    other.focus();
  });
});

const theme = $("theme"), systemDark = matchMedia("(prefers-color-scheme: dark)");
let dark = systemDark.matches;
function paint() {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  theme.textContent = dark ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Use the ${dark ? "light" : "dark"} theme`);
}
theme.addEventListener("click", () => {
  dark = !dark;
  paint();
});
systemDark.addEventListener("change", () => {
  dark = systemDark.matches;
  paint();
});

paint();
$("title").textContent = index.title;
document.title = index.title ? `${index.title} · hrpo inspect` : "hrpo inspect";
columns.forEach((column, c) => $("column").append(el("option", { value: c }, column.label)));
$("column-label").hidden = columns.length < 2;
$("verdict-label").hidden = !columns.some((column) => column.strict);
$("verdict").lastElementChild.hidden = columns.length < 2;
if (!columns.some((column) => column.mixed)) $("colour").value = "entropy";
overview();
legend();
for (const name of ["column", "verdict", "order", "mixed", "search"]) $(name).addEventListener("input", refresh);
$("colour").addEventListener("input", legend);
$("filters").addEventListener("submit", (event) => event.preventDefault());
refresh();
