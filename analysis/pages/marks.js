"use strict";
// What a person decides about samples: kept in this browser, undone step by step, written to a CSV and read back.

const CHOICES = ["poison", "fine", "unsure"];
const COLUMNS = ["id", "shard", "key", "decision", "note"];
const FORMULA = /^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]/;  // a spreadsheet runs a cell that begins like this
const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu;

/** A text as a cell of a CSV; `'` stands before what a spreadsheet would take for a formula. */
function cell(text) {
  const safe = FORMULA.test(text) && !Number.isFinite(Number(text || NaN)) ? "'" + text : text;
  return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

/** A text without the `'` that `cell` has put before it. */
const bare = text => text.startsWith("'") && FORMULA.test(text.slice(1)) ? text.slice(1) : text;
const same = (one, other) => bare(one) === bare(other);

/** The rows of a CSV, as lists of texts; an Error for a quote that does not end. */
function readCsv(text) {
  const rows = [];
  let row = [], field = "", quoted = false;
  const endRow = () => { row.push(field); if (row.length > 1 || row[0] !== "") rows.push(row); row = []; field = ""; };
  for (let at = text.charCodeAt(0) === 0xfeff ? 1 : 0; at < text.length; at++) {
    const c = text[at];
    if (quoted) {
      if (c !== '"') field += c;
      else if (text[at + 1] === '"') { field += c; at++; }
      else quoted = false;
    } else if (c === '"' && field === "") quoted = true;
    else if (c === ",") { row.push(field); field = ""; }
    else if (c === "\n") endRow();
    else if (c !== "\r") field += c;
  }
  if (quoted) throw new Error("a quoted cell does not end");
  endRow();
  return rows;
}

/** Decisions about the samples of one scan. who: Map of id -> {shard, key}, for all samples that the page knows. */
class Marks {
  constructor(scan, who) {
    this.place = "lookout.decisions." + scan;
    this.who = who;
    this.steps = [];
    this.stored = true;
    this.exported = true;
    this.load();
  }

  /** Take what the browser keeps, such as from another tab with this page. */
  load() {
    this.of = new Map();
    try {
      for (const [id, mark] of Object.entries(JSON.parse(localStorage.getItem(this.place) ?? "{}"))) {
        if (CHOICES.includes(mark.decision) || mark.note) this.of.set(id, mark);
      }
    } catch { this.stored = false; }
  }

  save() {
    this.exported = false;
    try {
      localStorage.setItem(this.place, JSON.stringify(Object.fromEntries(this.of)));
      this.stored = true;
    } catch { this.stored = false; }
  }

  decision(id) { return this.of.get(id)?.decision ?? ""; }
  note(id) { return this.of.get(id)?.note ?? ""; }

  /** One step: changes is a list of [id, {decision, note, ...}]. */
  change(changes) {
    const before = changes.map(([id]) => [id, this.of.get(id)]);
    for (const [id, mark] of changes) {
      if (mark && (mark.decision || mark.note)) this.of.set(id, mark);
      else this.of.delete(id);
    }
    this.steps.push(before);
    this.save();
  }

  /** Decide about samples; "" takes their decision back. */
  set(ids, decision) { this.change(ids.map(id => [id, {...this.of.get(id), decision}])); }
  setNote(id, note) { this.change([[id, {...this.of.get(id), note: note.replace(UNSAFE, " ")}]]); }

  /** Take the last step back; the ids that it had changed. */
  undo() {
    const step = this.steps.pop();
    if (!step) return [];
    for (const [id, mark] of step) { if (mark) this.of.set(id, mark); else this.of.delete(id); }
    this.save();
    return step.map(([id]) => id);
  }

  counts() {
    const found = {poison: 0, fine: 0, unsure: 0};
    for (const mark of this.of.values()) if (mark.decision) found[mark.decision]++;
    return found;
  }

  toCsv() {
    const lines = [COLUMNS.join(",")];
    for (const [id, mark] of this.of) {
      if (!mark.decision) continue;
      const {shard, key} = this.who.get(id) ?? mark;
      lines.push([id, shard ?? "", key ?? "", mark.decision, mark.note ?? ""].map(cell).join(","));
    }
    return lines.join("\n") + "\n";
  }

  /** Take the decisions of a CSV, which win over those of the page; an Error in one line for what cannot be meant. */
  fromCsv(text) {
    const [head = [], ...rows] = readCsv(text);
    const at = Object.fromEntries(COLUMNS.map(name => [name, head.map(h => h.trim()).indexOf(name)]));
    if (at.decision < 0 || (at.id < 0 && at.key < 0)) throw new Error("it must have the columns id or key, and decision");
    const seen = new Map();
    let elsewhere = 0;
    for (const [number, row] of rows.entries()) {
      const get = name => at[name] < 0 ? undefined : row[at[name]] ?? "";
      const line = `row ${number + 2}`, decision = get("decision").trim().toLowerCase();
      if (!CHOICES.includes(decision)) throw new Error(`${line} has the decision “${decision}”; it must be poison, fine or unsure`);
      const id = get("id")?.trim() ?? this.named(get("shard"), get("key"), line);
      const known = this.who.get(id);
      for (const name of known ? ["shard", "key"] : []) {
        if (get(name) !== undefined && !same(get(name), known[name])) throw new Error(`${line} has the ${name} “${get(name)}”, but the sample here has “${known[name]}”; was it decided on other data?`);
      }
      if (!known) elsewhere++;
      if ((seen.get(id)?.decision ?? decision) !== decision) throw new Error(`${line} decides a second time, and otherwise, about id ${id}`);
      seen.set(id, {decision, note: get("note") ?? this.note(id), ...(known ? {} : {shard: get("shard"), key: get("key")})});
    }
    if (!seen.size) throw new Error("it holds no decision");
    this.change([...seen]);
    return {read: seen.size, elsewhere};
  }

  /** The id of a sample by its shard and key, or by its key alone if no other sample of the page has it. */
  named(shard, key, line) {
    if (!this.byKey) {
      this.byKey = new Map();
      for (const [id, {key: name}] of this.who) this.byKey.set(bare(name), [...(this.byKey.get(bare(name)) ?? []), id]);
    }
    const found = (this.byKey.get(bare(key)) ?? []).filter(id => shard === undefined || same(this.who.get(id).shard, shard));
    if (found.length !== 1) throw new Error(`${line} names ${found.length || "none"} of the samples of this page (key “${key}”)`);
    return found[0];
  }
}
