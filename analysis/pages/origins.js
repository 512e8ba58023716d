// Where the suspects come from: domains, near-duplicates, changed pictures. Uses what suspects.js defines.
{
  const before = $("gallery").closest("section");
  const texts = (tag, values, left) => make("tr", {}, ...values.map((value, i) => make(tag, left.includes(i) ? {className: "text", style: "white-space:normal;overflow-wrap:anywhere"} : {}, value)));
  const section = (title, about, heads, rows, left) => {
    const all = make("section", {}, make("h2", {}, title), make("p", {}, about));
    if (rows.length) {
      const table = make("table", {}, texts("th", heads, left), ...rows.map(row => texts("td", row, left)));
      all.append(make("div", {className: "card", style: "overflow-x:auto"}, table));
    }
    before.before(all);
  };
  const {domains, duplicates, sha256} = D.metadata;
  if (domains) section("Domains of the suspects",
    `${count(domains.samples)} samples have an address, in ${count(domains.domains)} domains; ${count(domains.suspects)} of them are suspects. Lift: how many times the usual share of suspects.` + (domains.rows.length ? "" : " No domain has clearly more suspects than expected."),
    ["domain", "suspects", "samples", "share", "lift", "examples"],
    domains.rows.map(d => [d.domain, count(d.suspects), count(d.samples), (100 * d.share).toFixed(1) + " %", d.lift.toFixed(1), d.examples.join("; ").slice(0, 300)]), [0, 5]);
  if (duplicates) section("Near-duplicates",
    duplicates.skipped ?? `${count(duplicates.samples)} samples are near-duplicates of others (cosine from ${duplicates.cosine}), in ${count(duplicates.groups)} groups.`,
    ["pictures", "captions", "best rank", "most frequent captions", "examples"],
    (duplicates.rows ?? []).map(g => [count(g.size), count(g.captions), "#" + count(g.rank), g.leading.join("; ").slice(0, 300), g.examples.join("; ").slice(0, 200)]), [3, 4]);
  if (sha256) section("Pictures that have changed",
    `${count(sha256.changed)} of ${count(sha256.compared)} pictures differ from the SHA-256 noted beside them; ${count(sha256.without)} have none.` + (sha256.examples.length ? ` Such as ${sha256.examples.join(", ")}.` : ""), [], [], []);
}
