// The page of a scan's suspects: groups, a gallery that filters and sorts, one sample in detail, and the keyboard.

const D = JSON.parse(document.getElementById("data").textContent);
const AT_ONCE = 60;  // cards that are added to the gallery at a time
const $ = id => document.getElementById(id);
const make = (tag, props = {}, ...kids) => { const e = Object.assign(document.createElement(tag), props); e.append(...kids); return e; };
const count = x => x.toLocaleString("en");
const sum = kinds => Object.values(kinds).reduce((a, b) => a + b, 0);
const listed = kinds => Object.entries(kinds).map(([kind, n]) => `${kind} ${count(n)}`).join(", ");
const known = D.metadata.truth != null;

const who = new Map();
for (const [id, shard, key] of Object.values(D.members)) who.set(id, {shard, key});
for (const s of Object.values(D.samples)) who.set(s.id, {shard: s.shard ?? "", key: s.key ?? ""});
const idOf = row => D.samples[row]?.id ?? D.members[row][0];
const marks = new Marks(D.scan, who);

// --- pictures: in blocks behind this script, each read when one of its pictures is first shown ---

const blocks = [];
const waiting = [];
function picture(number) {
  const block = Math.floor(number / D.pictures_per_block);
  if (!blocks[block]) {
    const text = document.getElementsByClassName("pictures")[block];
    if (!text || (document.readyState === "loading" && !text.nextElementSibling)) return null;  // not here yet
    blocks[block] = JSON.parse(text.textContent);
    text.textContent = "";
  }
  return blocks[block][number % D.pictures_per_block];
}
function fill(image, number) {
  const url = picture(number);
  if (url) image.src = url;
  else waiting.push([image, number]);
}
document.addEventListener("DOMContentLoaded", () => { for (const [image, number] of waiting.splice(0)) fill(image, number); });

// --- cards ---

/** A caption on one line, with what would change the direction of the text spelled out. */
const plain = text => text.replace(/\s+/g, " ").replace(UNSAFE, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
function choices(decide) {
  const box = make("div", {className: "choices"});
  for (const name of CHOICES) {
    const button = make("button", {tabIndex: -1, type: "button"}, name);
    button.dataset.choice = name;
    button.setAttribute("aria-pressed", "false");
    button.onclick = event => { event.stopPropagation(); decide(name); };
    box.append(button);
  }
  return box;
}
function card(row, head, note) {
  const s = D.samples[row], caption = plain(s.caption);
  const image = make("img", {alt: caption, decoding: "async"});
  fill(image, s.picture);
  const frame = make("button", {title: caption, tabIndex: -1, type: "button"}, image);
  frame.onclick = () => { focus(figure); show(row); };
  const foot = make("figcaption", {}, make("span", {}, note), make("b", {}, head));
  if (known) foot.append(make("div", {className: "truth"}, s.truth ? "to be found" : "clean"));
  foot.append(make("div", {className: "caption", title: caption}, caption || "(no caption)"));
  const figure = make("figure", {className: "sample " + (s.truth ? "poison" : "clean"), tabIndex: -1}, frame, foot,
    choices(name => decide([s.id], name)));
  figure.row = row;
  paint(figure);
  return figure;
}
/** Show the decision of a card or a group. */
function paint(box) {
  const ids = box.ids ?? [idOf(box.row)];
  const found = {};
  for (const id of ids) { const name = marks.decision(id); found[name] = (found[name] ?? 0) + 1; }
  const mark = CHOICES.find(name => found[name] === ids.length) ?? "";
  if (box.dataset.mark !== mark) {
    box.dataset.mark = mark;
    for (const button of box.querySelectorAll(":scope > .choices button")) button.setAttribute("aria-pressed", button.dataset.choice === mark);
  }
  if (box.ids) {
    const parts = CHOICES.filter(name => found[name]).map(name => `${count(found[name])} ${name}`);
    box.querySelector(".state").textContent = parts.length ? `${parts.join(", ")} of ${count(ids.length)}` : `none of ${count(ids.length)} decided`;
  } else box.setAttribute("aria-label", [`rank ${D.samples[box.row].rank}`, mark || "undecided", plain(D.samples[box.row].caption)].join(", "));
}
function repaint() {
  for (const box of document.querySelectorAll(".sample, .group")) paint(box);
  const found = marks.counts(), kept = make("span", {}), parts = CHOICES.map(name => make("b", {className: name}, `${count(found[name])} ${name}`));
  const open = D.order.reduce((n, row) => n + (marks.decision(idOf(row)) === ""), 0);
  for (const part of parts) kept.append(part, " · ");
  $("tally").replaceChildren(kept, count(open), make("span", {className: "wide"}, ` of ${count(D.order.length)} suspects`), " open");
  $("undo").disabled = !marks.steps.length;
  $("export").disabled = !sum(found);
  if (!marks.stored) say("This browser keeps nothing for this page: export before you leave.", true);
}
function say(text, bad = false) { $("said").textContent = text; $("said").classList.toggle("bad", bad); }

/** Decide about samples; the decision that all of them have already is taken back. */
function decide(ids, name) {
  say("");
  marks.set(ids, ids.every(id => marks.decision(id) === name) ? "" : name);
  repaint();
}

// --- one sample in detail ---

let shown = null;
function show(row) {
  const s = D.samples[row], near = D.near[row] ?? [], cells = (tag, texts) => make("tr", {}, ...texts.map(t => make(tag, {}, t)));
  shown = row;
  const table = make("table", {}, cells("th", ["rank", "score", "p", ...D.detectors.map(d => d.label)]),
    cells("td", [count(s.rank), s.score.toPrecision(4), s.p.toPrecision(2), ...s.scores.map(v => Number(v).toPrecision(3))]));
  const close = make("button", {className: "close", type: "button"}, "close");
  close.onclick = hide;
  const heading = make("h3", {}, [`id ${s.id}`, s.shard, s.key, s.group ? `group ${s.group}` : "", s.url].filter(Boolean).join("  ·  "));
  const note = make("input", {className: "note", placeholder: "note (goes into the CSV with the decision)", value: marks.note(s.id), maxLength: 500});
  note.onchange = () => { if (note.value !== marks.note(s.id)) { marks.setNote(s.id, note.value); repaint(); } };
  const neighbours = near.map(([r, cosine]) => card(r, "#" + count(D.samples[r].rank), cosine.toFixed(3)));
  $("panel").replaceChildren(close, heading, make("p", {className: "whole"}, plain(s.caption) || "(no caption)"), note,
    make("div", {className: "row"}, card(row, "suspect", ""), ...neighbours), table);
  if (!near.length) $("panel").append(make("p", {}, "Neighbours were stored for the first suspects only."));
  document.body.classList.add("paneled");
  current?.scrollIntoView({block: "nearest"});
}
function hide() { $("panel").replaceChildren(); shown = null; document.body.classList.remove("paneled"); current?.focus(); }

// --- the gallery ---

let rows = [], drawn = 0;
const value = by => by === "rank" ? r => D.samples[r].rank : by === "group" ? r => D.samples[r].group || Infinity : r => -D.samples[r].scores[by];
function gallery() {
  const by = $("by").value, words = $("words").value.toLowerCase(), [truth, group, domain, high, decided] = ["truth", "group", "domain", "high", "decided"].map(id => $(id).value);
  rows = D.order.filter(r => {
    const s = D.samples[r];
    return s.caption.toLowerCase().includes(words) && (truth === "all" || (truth === "poison") === s.truth)
      && (group === "all" || (group === "any" ? s.group > 0 : s.group === +group)) && (domain === "all" || s.domain === domain)
      && (high === "all" || s.high.includes(+high)) && (decided === "all" || marks.decision(s.id) === decided);
  });
  if (by === "caption") rows.sort((a, b) => D.samples[a].caption.localeCompare(D.samples[b].caption));
  else { const of = value(by); rows.sort((a, b) => of(a) - of(b) || D.samples[a].rank - D.samples[b].rank); }
  $("tip").textContent = `${count(rows.length)} of ${count(D.order.length)} suspects` + (known ? `, ${count(rows.filter(r => D.samples[r].truth).length)} of them to be found` : "");
  drawn = 0;
  $("gallery").replaceChildren();
  more();
}
/** Add the next cards; whether there were any. */
function more() {
  const by = $("by").value, part = rows.slice(drawn, drawn + AT_ONCE);
  $("gallery").append(...part.map(r => {
    const s = D.samples[r], box = card(r, "#" + count(s.rank), /^\d+$/.test(by) ? Number(s.scores[by]).toPrecision(3) : s.score.toPrecision(4));
    box.classList.add("item");
    return box;
  }));
  drawn += part.length;
  nearEnd.unobserve($("rest"));
  if (drawn < rows.length) nearEnd.observe($("rest"));  // anew, as it may still be near
  return part.length > 0;
}
const nearEnd = new IntersectionObserver(seen => { if (seen.at(-1).isIntersecting) more(); }, {rootMargin: "1200px"});

// --- groups ---

function groupBox(g) {
  const measure = (name, value) => make("span", {}, name + " ", make("b", {}, value));
  const head = make("h3", {}, make("b", {}, g.strength.toFixed(2)), make("span", {}, plain(g.caption) || "(no caption)"));
  if (g.alarming) head.append(make("span", {className: "alarm"}, "alarming"));
  const measures = [["similarity", g.similarity], ["pixels alike", g.pixels], ["caption shared", g.shared], ["captions alike", g.concentration], ["isolation", g.isolation], ["surprise", g.surprise]];
  const strip = make("div", {className: "strip"}, ...g.rows.map(r => {
    const box = card(r, "#" + count(D.samples[r].rank), "");
    if (D.samples[r].caption === g.caption) box.querySelector(".caption").classList.add("alike");
    return box;
  }));
  const box = make("div", {className: "card group item", tabIndex: -1}, head,
    make("div", {className: "measures"}, measure("images", count(g.size)), ...measures.map(([name, v]) => measure(name, v.toFixed(2)))));
  box.ids = g.members.map(idOf);
  box.append(choices(name => decide(box.ids, name)), make("span", {className: "state"}), strip);
  if (g.rows.length > 4) {
    const button = make("button", {className: "more", type: "button"}, `show ${g.rows.length}` + (g.size > g.rows.length ? ` of ${count(g.size)}` : ""));
    button.onclick = () => { box.classList.add("open"); button.remove(); };
    box.append(button);
  }
  paint(box);
  return box;
}
function groups() {
  if (!D.groups.length) { $("groups").append(make("p", {}, "No suspects look alike.")); return; }
  const alarming = D.groups.filter(g => g.alarming), quiet = D.groups.filter(g => !g.alarming);
  $("groups").append(...alarming.map(groupBox));
  if (!alarming.length) $("groups").append(make("p", {className: "calm"}, "No alarming group."));
  if (!quiet.length) return;
  const details = make("details", {}, make("summary", {}, `${quiet.length} weaker group${quiet.length > 1 ? "s" : ""}`));
  details.addEventListener("toggle", () => details.append(...quiet.map(groupBox)), {once: true});
  $("groups").append(details);
}

// --- the keyboard: one card or group is the current one ---

let current = null;
function focus(box) {
  if (!box) return;
  if (current) current.tabIndex = -1;
  current = box;
  box.tabIndex = 0;
  box.focus({preventScroll: true});
  box.scrollIntoView({block: "nearest"});
  if (shown !== null && box.row !== undefined && box.row !== shown && !$("panel").contains(box)) show(box.row);
}
const items = () => [...document.querySelectorAll("main .item")].filter(box => box.checkVisibility());
/** Move by so many items; from within a group's strip to its neighbours there. */
function move(by, aside) {
  const strip = aside && current?.isConnected ? current.closest(".strip") : null;
  if (strip || (aside && by > 0 && current?.matches(".group"))) {
    const cards = [...current.closest(".group").querySelectorAll(".sample")].filter(box => box.checkVisibility());
    const next = cards[cards.indexOf(current) + by];
    focus(next ?? (by < 0 ? current.closest(".group") : current));
    return;
  }
  let all = items();
  const at = all.indexOf(current?.closest(".item"));
  if (at < 0) { focus(all[0]); return; }
  if (at + by >= all.length && more()) all = items();
  focus(all[Math.max(0, Math.min(all.length - 1, at + by))]);
}
function moveLine(by) {
  const grid = current?.parentElement;
  if (!current?.isConnected || !(grid.matches(".strip") || grid === $("gallery"))) { move(by); return; }
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const step = grid === $("gallery") ? [...grid.children].indexOf(current) + by * columns : -1;
  if (step < 0) move(grid === $("gallery") ? -[...grid.children].indexOf(current) - 1 : by);
  else move(by * columns);
}
function decideCurrent(name) {
  if (!current?.isConnected) { move(1); return; }
  const ids = current.ids ?? [idOf(current.row)];
  say("");
  marks.set(ids, name);
  repaint();
  if (name && current.parentElement === $("gallery")) move(1);
}
function undo() {
  const ids = new Set(marks.undo());
  say(ids.size ? `Undone for ${count(ids.size)} sample${ids.size > 1 ? "s" : ""}.` : "Nothing to undo.");
  repaint();
  if (ids.size === 1) focus([...$("gallery").children].find(box => ids.has(idOf(box.row))));
}
const KEYS = {
  j: () => move(1), k: () => move(-1), ArrowRight: () => move(1, true), ArrowLeft: () => move(-1, true), ArrowDown: () => moveLine(1), ArrowUp: () => moveLine(-1),
  p: () => decideCurrent("poison"), f: () => decideCurrent("fine"), u: () => decideCurrent("unsure"), c: () => decideCurrent(""), z: undo,
  Enter: () => { if (current?.row !== undefined) show(current.row); }, g: () => focus($("gallery").firstElementChild), "/": () => $("words").focus(), Escape: hide,
  n: () => { if (current?.row !== undefined) { show(current.row); $("panel").querySelector(".note").focus(); } },
};
document.addEventListener("keydown", event => {
  const within = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (within.matches("input, select, textarea")) {
    if (event.key === "Escape" || (event.key === "Enter" && within.matches(".note"))) { within.blur(); current?.focus(); event.preventDefault(); }
    return;
  }
  if (event.key === "Enter" && within.matches("button, summary")) return;
  const act = Object.hasOwn(KEYS, event.key) && KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});
document.addEventListener("focusin", event => { const box = event.target.closest?.("main .sample, main .group"); if (box && box !== current && event.target === box) focus(box); });

// --- export and import ---

$("undo").onclick = undo;
$("export").onclick = () => {
  const url = URL.createObjectURL(new Blob([marks.toCsv()], {type: "text/csv"}));
  make("a", {href: url, download: "decisions.csv"}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  marks.exported = true;
  say(`${count(sum(marks.counts()))} decisions in decisions.csv.`);
};
$("import").onclick = () => $("file").click();
$("file").onchange = async () => {
  const file = $("file").files[0];
  if (!file) return;
  try {
    const {read, elsewhere} = marks.fromCsv(await file.text());
    say(`${count(read)} decisions read` + (elsewhere ? `, ${count(elsewhere)} of them about samples that are not on this page.` : "."));
  } catch (error) { say(`${file.name} was not taken: ${error.message}.`, true); }
  $("file").value = "";
  repaint();
};
addEventListener("storage", event => { if (event.key === marks.place) { marks.load(); repaint(); } });
addEventListener("beforeunload", event => { if (!marks.stored && !marks.exported) event.preventDefault(); });

// --- what was scanned ---

function histogram() {
  const h = D.histogram, W = 560, H = 150, B = 20, NS = "http://www.w3.org/2000/svg", top = Math.max(...h.counts.map(c => Math.log1p(c)));
  const svg = document.createElementNS(NS, "svg");
  for (const [name, to] of [["viewBox", `0 0 ${W} ${H}`], ["width", W]]) svg.setAttribute(name, to);
  svg.style.maxWidth = "100%";
  const add = (tag, a, text) => { const e = document.createElementNS(NS, tag); for (const k in a) e.setAttribute(k, a[k]); if (text != null) e.textContent = text; svg.append(e); };
  const w = W / h.counts.length;
  h.counts.forEach((c, i) => { if (c) { const y = Math.log1p(c) / top * (H - B - 4); add("rect", {x: i * w + .5, y: H - B - y, width: w - 1, height: y, fill: "var(--clean)"}); } });
  add("line", {class: "axis", x1: 0, x2: W, y1: H - B, y2: H - B});
  for (let i = 0; i <= 6; i++) add("text", {x: Math.min(Math.max(i / 6 * W, 24), W - 24), y: H - 5, "text-anchor": "middle"}, String(Number((h.low + i / 6 * (h.high - h.low)).toPrecision(3))));
  $("histogram").append(make("h3", {}, "Score that orders the samples; heights are logarithmic"), svg);
}
function metrics() {
  if (!known) return;
  const keys = [["auroc", "AUROC"], ["auprc", "AUPRC"], ["fpr95", "FPR at 95 % TPR"], ["fpr100", "at 100 %"], ["recall_at_1pct", "recall at 1 %"], ["recall_at_5pct", "5 %"], ["recall_at_10pct", "10 %"]];
  const table = make("table", {}, make("tr", {}, make("th", {className: "text"}, "scores"), ...keys.map(k => make("th", {}, k[1]))));
  for (const [name, row] of Object.entries(D.metrics)) table.append(make("tr", {}, make("td", {className: "text"}, name === "score" ? "the ranking" : D.detectors.find(d => d.name === name).label), ...keys.map(k => make("td", {}, row[k[0]].toFixed(3)))));
  $("metrics").append(make("h3", {}, `Compared with the known labels: ${count(D.metadata.truth)} samples`), make("div", {className: "scroll"}, table));
  for (const id of ["metrics", "truthpick"]) $(id).classList.remove("hidden");
  document.body.classList.add("truthful");
  $("legend").textContent = "Solid orange frame of a picture: to be found; dashed green frame: clean.";
}
function about() {
  $("about").textContent = `${count(D.metadata.n)} samples (${D.metadata.data}, model ${D.metadata.model}), ranked by ${D.ranked_by.join(" + ")}`;
  if (sum(D.metadata.unscored)) $("unscored").append(`${count(sum(D.metadata.unscored))} of ${count(D.metadata.members)} samples have no score: ${listed(D.metadata.unscored)}. `);
  if (sum(D.metadata.lost)) $("unscored").append(`Some samples could not be read at all, about: ${listed(D.metadata.lost)}. `);
  if (D.cleaned) $("unscored").append(`Cleaned: ${count(D.cleaned.kept)} kept, ${count(D.cleaned.removed)} removed, ${count(sum(D.cleaned.unscored))} unscored, of ${count(D.cleaned.members)}.`);
  $("failed").textContent = Object.entries(D.failed).map(([name, error]) => `${name} failed: ${error}`).join("; ");
}
function pickers() {
  const option = (value, text) => make("option", {value}, text), short = text => text.length > 40 ? text.slice(0, 39) + "…" : text;
  const some = list => {
    const found = new Map();
    for (const name of list) found.set(name, (found.get(name) ?? 0) + 1);
    return [...found].sort((a, b) => b[1] - a[1]);
  };
  const samples = D.order.map(r => D.samples[r]);
  $("by").append(option("rank", "rank"), ...D.detectors.map((d, i) => option(i, d.label)), option("caption", "caption"), option("group", "group"));
  $("high").append(option("all", "any detector"), ...D.detectors.map((d, i) => option(i, d.label)));
  $("group").append(option("all", "all"), option("any", "any group"), option("0", "no group"));
  for (const [number, n] of some(samples.map(s => s.group).filter(Boolean))) $("group").append(option(number, short(`${number} (${n}) ${plain(D.groups[number - 1]?.caption ?? "")}`)));
  const domains = some(samples.map(s => s.domain).filter(Boolean));
  if (domains.length) {
    $("domain").append(option("all", "all"), ...domains.map(([name, n]) => option(name, short(`${name} (${n})`))));
    $("domainpick").classList.remove("hidden");
  } else $("domain").append(option("all", "all"));
  for (const id of ["by", "truth", "group", "domain", "high", "decided"]) $(id).onchange = gallery;
  $("words").oninput = gallery;
  $("all").append(choices(name => { if (rows.length) { marks.set(rows.map(idOf), name); say(`${count(rows.length)} marked ${name}; z takes it back.`); repaint(); } }));
}
about(); pickers(); groups(); histogram(); metrics(); gallery(); repaint();
