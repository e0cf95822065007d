"use strict";
/* Shows the member that the address names (#member-12). All that is shown was read from a run
   folder and may be anything, so it enters the page as text, never as markup. */

const failed = (event) => { document.documentElement.dataset.error = event.message || event.reason; };
window.addEventListener("error", failed);
window.addEventListener("unhandledrejection", failed);

const DATA = JSON.parse(document.getElementById("data").textContent);
const MEMBERS = DATA.members;
const SVG = "http://www.w3.org/2000/svg";
const panel = document.getElementById("panel");
const tip = document.getElementById("tip");
const narrow = window.matchMedia("(max-width: 1080px)");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- making elements -------------------------------------------------------------------------

/** An element with properties (class, href, ...) and children, strings among them. */
function el(name, properties = {}, ...children) {
  const [tag, kind] = name.split(":");
  const made = kind === "svg" ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== ""));
  return made;
}

const link = (n) => el("a", { href: `#member-${n}` }, `#${n}`);
const symbol = (name, kind) =>
  el("svg:svg", { class: `symbol ${name} ${kind}`, viewBox: "-10 -10 20 20", "aria-hidden": "true" },
    name === "dot" ? el("circle:svg", { r: 5.5 }) : el("use:svg", { href: `#${name}` }));
const hash = (text) => (text ? el("abbr", { title: text, tabindex: "0" }, text.slice(0, 10)) : "none");

// --- writing numbers -------------------------------------------------------------------------

const whole = (n) => n.toLocaleString("en-US");
const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)}\u00a0%`;
const plain = (n) => (Number.isInteger(n) ? whole(n) : String(Number(n.toPrecision(4))));
const signed = (text, n) => (n < 0 ? "\u2212" : "+") + text;
const value = (v) => (Array.isArray(v) ? `[${v.map(value).join(", ")}]`
  : v !== null && typeof v === "object" ? pairs(v) : String(v));
const pairs = (o) => Object.entries(o || {}).map(([k, v]) => `${k}=${value(v)}`).join(" ");
const ancestorsOf = (n) => walk(n, (m) => m.parents || []);

function count(n) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (n >= size) return `${Number((n / size).toPrecision(3))}\u00a0${unit}`;
  }
  return String(n);
}

function seconds(s) {
  return s < 1e-3 ? `${(1e6 * s).toPrecision(3)}\u00a0µs`
    : s < 1 ? `${(1e3 * s).toPrecision(3)}\u00a0ms` : `${s.toPrecision(3)}\u00a0s`;
}

function scoreOf(member) {
  if (member.status !== "scored") return member.status;
  const { accuracy, fitted, score } = member.scores;
  if (fitted !== undefined) return `fitted ${percent(fitted)}`;  // on images that it has seen
  return accuracy === undefined ? plain(score) : percent(accuracy);
}

/** All that one reaches from a member by a step, itself left out. */
function walk(n, step) {
  const found = new Set();
  const left = [n];
  while (left.length) {
    for (const next of step(MEMBERS[left.pop()])) {
      if (MEMBERS[next] && !found.has(next)) { found.add(next); left.push(next); }
    }
  }
  return found;
}

const CHILDREN = MEMBERS.map(() => []);
for (const member of MEMBERS) {
  for (const parent of member.parents || []) if (CHILDREN[parent]) CHILDREN[parent].push(member.n);
}

// --- the panel of a member -------------------------------------------------------------------

function title(member) {
  const step = (text, n) => {
    const button = el("button", { class: "small", type: "button" }, text);
    if (MEMBERS[n]) button.onclick = () => go(n); else button.disabled = true;
    return button;
  };
  const tags = [];
  const tag = (shape, kind, text) => tags.push(el("span", { class: "tag" }, symbol(shape, kind), text));
  if (member.n === DATA.best) tag("star", "best", DATA.ended ? "best" : "best so far");
  if (DATA.ensemble.includes(member.n)) tag("dot", "plain", "in the ensemble");
  if (member.n === DATA.start) tag("square", "start", "start");
  if (DATA.front.includes(member.n)) tag("dot", "front", "on the Pareto front");
  if (member.status !== "scored") tag("cross", "lost", member.status);
  return [
    el("div", { class: "title" },
      el("h2", { id: "who" }, `Network ${member.n}`), tags,
      el("nav", { "aria-label": "Other networks" },
        step("← before", member.n - 1), step("next →", member.n + 1))),
    line(member),
  ];
}

/** From the start to this member, by first parents. */
function line(member) {
  const path = [member.n];
  while (path.length < 400) {
    const parent = (MEMBERS[path[0]].parents || [])[0];
    if (!MEMBERS[parent] || path.includes(parent)) break;
    path.unshift(parent);
  }
  const shown = path.length > 9 ? [...path.slice(0, 2), null, ...path.slice(-6)] : path;
  const parts = shown.flatMap((n, i) => [i ? " → " : "",
    n === null ? "…" : n === member.n ? el("strong", {}, `#${n}`) : link(n)]);
  const others = (member.parents || []).slice(1);
  const more = others.length ? [" (and from ", others.map((n, i) => [i ? ", " : "", link(n)]), ")"] : [];
  return el("p", { class: "path" }, member.stage ? `${member.stage}: ` : "", parts, more);
}

const NAMES = { accuracy: "validation accuracy", fitted: "accuracy on images it has seen" };

function scores(member) {
  const parent = MEMBERS[(member.parents || [])[0]];
  const rows = [];
  const row = (name, text, change) =>
    rows.push(el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, text), el("td", {}, change)));
  const share = (now, old) => (old && now !== old ? `${signed(Math.abs(100 * (now / old - 1)).toPrecision(3), now - old)}\u00a0%` : old ? "the same" : "");
  for (const [name, found] of Object.entries(member.scores || {})) {
    const again = Object.keys(member.scores).some((other) => other !== name && member.scores[other] === found);
    if (name === "score" && again) continue;
    const before = (parent && parent.scores || {})[name];
    const isShare = name === "accuracy" || name === "fitted";
    const step = before === undefined ? "" : found - before;
    row(NAMES[name] || name.replaceAll("_", " "), isShare ? percent(found) : plain(found),
      step === "" ? "" : step === 0 ? "the same" : signed(isShare ? `${Math.abs(100 * step).toFixed(2)} points` : plain(Math.abs(step)), step));
  }
  const test = (DATA.test || {})[member.n];
  if (test !== undefined) row("test accuracy", percent(test), "");
  if (member.params) row("parameters", whole(member.params), share(member.params, parent && parent.params));
  if (member.macs) row("MACs", whole(member.macs), share(member.macs, parent && parent.macs));
  if (member.latency) {
    const { median, low, high, engine } = member.latency;
    row("latency", seconds(median), low ? `${seconds(low)} – ${seconds(high)}` : engine || "");
  }
  const head = el("tr", {}, el("th", {}, ""), el("td", {}, ""),
    el("td", {}, parent ? ["against ", link(parent.n)] : ""));
  return [
    member.reason ? el("p", { class: "reason" }, el("strong", {}, `${member.status}: `), member.reason) : "",
    member.same === undefined ? "" : el("p", { class: "path" }, "The same network, data and seed as ", link(member.same), ", whose evaluation it shares."),
    rows.length ? el("table", { class: "values" }, el("tbody", {}, head, rows)) : "",
  ];
}

function origin(member) {
  const { kind, uses, ...rest } = member.origin || {};
  const shown = [];
  if (Array.isArray(uses)) {
    shown.push(el("ol", { class: "uses" }, uses.map((use) => el("li", {}, el("code", {},
      el("strong", {}, String(use.rule)), el("span", { class: "site" }, `@${use.at}`), " ", pairs(use.arguments))))));
  }
  const words = { start: "The start network, as it was given.", parent: "Its parent, trained." };
  if (words[kind]) shown.push(el("p", {}, words[kind]));
  for (const [name, found] of Object.entries(rest)) {
    if (found === null || name === "seed") continue;
    shown.push(el("p", {}, `${name}: `, el("code", {}, value(found))));
  }
  const seeds = rest.seed === undefined ? "" : `seed of the rewrite ${rest.seed}, `;
  shown.push(el("p", { class: "path" }, `${seeds}seed of the evaluation ${member.seed || 0}`));
  return [el("h3", {}, Array.isArray(uses) ? "Rewritten by" : "Origin"), shown];
}

function copying(lines) {
  const button = el("button", { class: "small", type: "button" }, "Copy");
  button.onclick = () => {
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    const text = `${lines.join("\n")}\n`;
    const byHand = () => {
      const field = el("textarea", {});
      field.value = text;
      button.after(field);
      field.select();
      document.execCommand("copy");
      field.remove();
      done();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand); else byHand();
  };
  return el("div", { class: "copying" },
    el("pre", { class: "command", tabindex: "0" }, lines.join("\n")), button);
}

function commands(member) {
  const made = [];
  if (member.commands) made.push(el("h3", {}, "Make it again"), copying(member.commands));
  if (member.commands && !member.steps) {
    made.push(el("p", { class: "path" }, "It has no weights of its own: its evaluator draws them by the seed."));
  }
  if (member.verify) made.push(el("h3", {}, "Check its certificate"), copying([member.verify]));
  return made;
}

const MARKS = { "+": "plus", "-": "minus", "~": "change" };
const textOf = (number) => DATA.texts[number].map((n) => DATA.lines[n]);

/** The changed lines of a program, with two lines around each change. */
function unified(diff, after) {
  const before = textOf(diff.text);
  const out = [];
  let at = 0;
  diff.changes.forEach(([a1, a2, b1, b2], index) => {
    const next = diff.changes[index + 1];
    const first = Math.max(at, a1 - 2);
    if (first > at || (!index && first)) out.push(["@", `⋯ line ${first + b1 - a1 + 1}`]);
    for (let i = first; i < a1; i++) out.push([" ", before[i]]);
    for (let i = a1; i < a2; i++) out.push(["-", before[i]]);
    for (let i = b1; i < b2; i++) out.push(["+", after[i]]);
    at = Math.min(a2 + 2, next ? next[0] : before.length);
    for (let i = a2; i < at; i++) out.push([" ", before[i]]);
  });
  return out.map(([mark, text]) => el("span", { class: { ...MARKS, "@": "cut" }[mark] || "" },
    mark === "@" ? text : `${mark} ${text}`));
}

function changes(member) {
  return (member.diffs || []).map((diff) => {
    const head = el("h3", {}, "Against ", link(diff.parent));
    if (!diff.changes.length) return [head, el("p", { class: "path" }, "The same program.")];
    const after = textOf(member.text);
    const layers = (diff.layers || []).map((n) => DATA.lines[n]);
    const shown = layers.map((text) => el("span", { class: /^  [-+~] /.test(text) ? MARKS[text[2]] : "" }, text || " "));
    const pre = (lines, what) => el("pre", { class: "diff", tabindex: "0", "aria-label": what }, lines);
    const lines = diff.changes.reduce((n, [a1, a2, b1, b2]) => n + a2 - a1 + b2 - b1, 0);
    return [head,
      layers.length ? pre(shown, "What changed, layer by layer") : "",
      el("details", layers.length ? {} : { open: "" }, el("summary", {}, `${lines} changed lines of the program`),
        pre(unified(diff, after), "Changed lines"))];
  });
}

/** The curves of an evaluation, each on an axis of its own. */
function curves(member) {
  const history = member.history || {};
  const steps = ["epoch", "step", "initialisation"].find((name) => history[name]);
  const drawn = Object.entries(history).filter(([name, ys]) => name !== steps && ys.length > 1 && new Set(ys).size > 1);
  if (!drawn.length) return [];
  const spark = ([name, ys]) => {
    const numbers = ys.filter((y) => y !== null);
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    const points = ys.map((y, i) => (y === null ? null
      : `${(100 * i) / (ys.length - 1)},${(100 * (high - y)) / (high - low)}`)).filter((p) => p);
    const write = /accuracy|fitted/.test(name) ? (y) => percent(y) : plain;
    const x = steps ? history[steps] : ys.map((_, i) => i + 1);
    return el("figure", {},
      el("figcaption", {}, NAMES[name] || name.replaceAll("_", " ")),
      el("svg:svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img",
        "aria-label": `${name} from ${write(numbers[0])} to ${write(numbers.at(-1))}` },
      el("polyline:svg", { points: points.join(" ") })),
      el("div", { class: "ends" }, el("span", {}, `${steps || "line"} ${x[0]}: ${write(numbers[0])}`),
        el("span", {}, `${x.at(-1)}: ${write(numbers.at(-1))}`)));
  };
  return [el("h3", {}, "Its evaluation"), el("div", { class: "sparks" }, drawn.map(spark))];
}

function step(found) {
  const parts = [el("strong", {}, found.kind)];
  if (found.uses) {
    parts.push(el("ul", {}, found.uses.map((use) => el("li", {},
      el("code", {}, `${use.rule}@${use.site} ${pairs(use.arguments)}`), " ",
      el("span", { class: "quiet" }, `rule ${use.verdict || "without verdict"}, `,
        Object.keys(use.exact).length
          ? `this use ${Object.values(use.exact).every(Boolean) ? "equal" : "NOT equal"} in ${use.field} in ${Object.keys(use.exact).join(", ")}, `
          : "shape only, ",
        "rule ", hash(use.hash))))));
  }
  const said = [];
  if (found.drift) said.push(`drift ${Number(found.drift.value).toExponential(1)} (${found.drift.engine})`);
  if (found.data && found.data.name !== undefined) said.push(`data ${found.data.name}`);
  if (found.config) said.push(`${found.config.epochs} epochs, ${found.config.optimizer}, ${found.config.schedule}, lr ${found.config.lr}`);
  if (found.validation) said.push(`validation ${percent(found.validation.accuracy)}`);
  if (found.seed !== undefined) said.push(`seed ${found.seed}`);
  if (found.note) said.push(String(found.note));
  const lines = el("div", { class: "quiet" }, said.join("; "), said.length ? "; " : "",
    "graph ", hash(found.graph), ", weights ", hash(found.weights));
  return el("li", {}, parts, lines);
}

function certificate(member) {
  if (!member.steps) return [];
  const steps = member.steps.map((n) => DATA.steps[n]);
  const words = steps.length === 1 ? "1 step" : `${steps.length} steps`;
  return [el("details", {}, el("summary", {}, `Certificate, ${words}`), el("ol", { class: "steps" }, steps.map(step)))];
}

function program(member) {
  if (member.text === undefined) return [];
  const text = textOf(member.text).join("\n");
  return [el("details", {}, el("summary", {}, "Program"), el("pre", { tabindex: "0" }, text))];
}

// --- selecting -------------------------------------------------------------------------------

const named = () => {
  const found = /^#member-(\d+)$/.exec(location.hash);
  return found && MEMBERS[Number(found[1])] ? Number(found[1]) : null;
};
const go = (n) => { location.hash = `member-${n}`; };
let selected = null;

function select(n) {
  selected = n;
  const member = MEMBERS[n];
  const open = all("details", panel).map((d) => [d.querySelector("summary").textContent.split(",")[0], d.open]);
  panel.replaceChildren(...[title, scores, origin, commands, changes, curves, program, certificate]
    .flatMap((part) => part(member)).flat(Infinity).filter((part) => part !== ""));
  for (const found of all("details", panel)) {
    const before = open.find(([name]) => name === found.querySelector("summary").textContent.split(",")[0]);
    if (before) found.open = before[1];
  }
  panel.dataset.m = n;
  panel.scrollTop = 0;
  for (const ring of all("circle.ring")) {
    const mark = (ring.closest(".area") || ring.parentNode).querySelector(`[data-m="${n}"]`);
    ring.classList.toggle("on", Boolean(mark));
    if (!mark) continue;
    if (ring.classList.contains("p")) ring.style.cssText = mark.style.cssText;
    else for (const axis of ["x", "y"]) ring.setAttribute(`c${axis}`, mark.getAttribute(axis) || mark.getAttribute(`c${axis}`));
  }
  lineage(n);
  for (const row of all("#members tr.on")) { row.classList.remove("on"); row.removeAttribute("aria-selected"); }
  const row = document.querySelector(`#members tr[data-m="${n}"]`);
  if (row) { row.classList.add("on"); row.setAttribute("aria-selected", "true"); }
}

/** Marks the lines of a family tree: first parents, other ancestors, descendants. */
function lineage(n) {
  const first = new Set([n]);
  for (let p = n; (p = (MEMBERS[p].parents || [])[0]) !== undefined && MEMBERS[p] && !first.has(p);) first.add(p);
  const up = ancestorsOf(n).add(n);
  const down = walk(n, (m) => CHILDREN[m.n]).add(n);
  const [ups, downs] = [[], []];
  for (const path of all(".edges path")) {
    const [a, b] = path.dataset.e.split("-").map(Number);
    const isUp = up.has(a) && up.has(b);
    const isDown = !isUp && down.has(a) && down.has(b);
    const isLine = first.has(b) && (MEMBERS[b].parents || [])[0] === a;
    path.setAttribute("class", isLine ? "up line" : isUp ? "up" : isDown ? "down" : "");
    if (isUp) ups[isLine ? "push" : "unshift"](path);
    if (isDown) downs.push(path);
  }
  for (const path of [...downs, ...ups]) path.parentNode.append(path);
}

function inView(n) {
  for (const mark of all(`.family [data-m="${n}"], #members tr[data-m="${n}"]`)) {
    const box = mark.closest(".scroll");
    const [outer, inner] = [box.getBoundingClientRect(), mark.getBoundingClientRect()];
    if (inner.top < outer.top + 28 || inner.bottom > outer.bottom) box.scrollTop += inner.top - outer.top - outer.height / 2;
    if (inner.left < outer.left || inner.right > outer.right) box.scrollLeft += inner.left - outer.left - outer.width / 2;
  }
}

window.addEventListener("hashchange", () => {
  const n = named();
  if (n === null) return;
  select(n);
  inView(n);
  if (narrow.matches && !stay) panel.scrollIntoView();
  stay = false;
});

// --- pointing and keys -----------------------------------------------------------------------

const REACH = 26;
let stay = false;  // where a key chose the next member, the plot stays in view

/** The member whose mark is nearest to a pointer. */
function nearest(svg, event) {
  let [best, least] = [null, REACH ** 2];
  const box = svg.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  for (const [n, [px, py]] of places(svg, box)) {
    const far = (px - x) ** 2 + (py - y) ** 2;
    if (far < least) [best, least] = [n, far];
  }
  return best;
}

/** The places of all marks of a drawing in its pixels: [[number, [x, y]], ...]. */
function places(svg, box) {
  const section = svg.closest("section");
  const pareto = ["macs", "params", "latency"].find((name) => section.classList.contains(`by-${name}`));
  const axis = `--${pareto ? pareto[0] : "o"}`;
  const turned = section.classList.contains("error");
  return all("[data-m]", svg.closest(".area") || svg).map((mark) => {
    const n = Number(mark.dataset.m);
    if (svg.classList.contains("family")) {
      return [n, ["x", "y"].map((a) => Number(mark.getAttribute(a) || mark.getAttribute(`c${a}`)))];
    }
    const share = (name) => parseFloat(mark.style.getPropertyValue(name)) / 100;
    const y = share("--y");
    return [n, [share(axis) * box.width, (turned ? y : 1 - y) * box.height]];
  });
}

function told(n) {
  const member = MEMBERS[n];
  const costs = member.params ? `${count(member.params)} parameters, ${count(member.macs)} MACs` : "";
  tip.replaceChildren(el("b", {}, `#${n}  ${scoreOf(member)}`), costs ? el("div", {}, costs) : "",
    el("div", {}, member.short || ""));
}

for (const svg of all("svg.marks")) {
  svg.addEventListener("pointermove", (event) => {
    const n = nearest(svg, event);
    tip.hidden = n === null;
    if (n === null) return;
    told(n);
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const above = event.clientY + 18 + tip.offsetHeight > window.innerHeight;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${above ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  svg.addEventListener("click", (event) => {
    const n = nearest(svg, event);
    if (n !== null) { tip.hidden = true; go(n); }
  });
}

for (const plot of all(".plot, .scroll:has(> svg.family)")) {
  plot.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
    const svg = plot.querySelector("svg.marks");
    const order = places(svg, svg.getBoundingClientRect()).sort(([, a], [, b]) => a[0] - b[0] || a[1] - b[1]);
    const next = order[order.findIndex(([n]) => n === selected) + way];
    event.preventDefault();
    if (next) { stay = true; go(next[0]); }
  });
}

for (const input of all("[data-switch]")) {
  input.addEventListener("change", () => {
    const section = input.closest("section");
    if (input.dataset.switch === "measure") section.classList.toggle("error", input.value === "error");
    else section.className = section.className.replace(/by-\w+/, `by-${input.value}`);
  });
}

// --- the table -------------------------------------------------------------------------------

const table = document.getElementById("members");
const body = table.tBodies[0];

all("th button", table).forEach((button, column) => {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const number = head.classList.contains("number");
    const first = number && column ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const way = head.getAttribute("aria-sort") === first ? other : first;
    for (const th of all("th", table)) th.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1;
    const key = (row) => (number ? row.cells[column].dataset.v : row.cells[column].textContent);
    const compare = (a, b) => (number ? Number(a) - Number(b) : a.localeCompare(b));
    body.append(...[...body.rows].map((row) => [key(row), row]).sort(([a, r], [b, s]) =>
      (a === "") - (b === "") || sign * compare(a, b) || r.dataset.m - s.dataset.m).map(([, row]) => row));
  });
});

document.getElementById("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter((word) => word);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    const fits = words.every((word) => (/^#?\d+$/.test(word) ? row.dataset.m === word.replace("#", "") : text.includes(word)));
    row.hidden = !fits;
    shown += fits;
  }
  document.getElementById("shown").textContent = `${whole(shown)} of ${whole(MEMBERS.length)}`;
});

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row && !event.target.closest("a")) go(row.dataset.m);
});
body.addEventListener("keydown", (event) => {
  const way = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  let row = way && event.target.closest("tr")[way];
  while (row && row.hidden) row = row[way];
  if (!row) return;
  event.preventDefault();
  row.querySelector("a").focus();
  stay = true;
  go(row.dataset.m);
});

// --- first -----------------------------------------------------------------------------------

window.addEventListener("beforeprint", () => { for (const found of all("details", panel)) found.open = true; });
const first = named() ?? DATA.best ?? (MEMBERS.length ? 0 : null);
if (first !== null) { select(first); inView(first); }
document.documentElement.dataset.ready = "yes";
