// Hides table rows that the menus do not choose, and offers the shown ones as CSV.
(() => {
  const keys = ["task", "schedule", "recipe", "density"], menu = k => document.getElementById("filter-" + k);
  const tables = [...document.querySelectorAll("figure.table table")].map(table => ({ table,
    name: table.closest("figure").querySelector("a.csv").getAttribute("download"),
    heads: [...table.tHead.rows[0].cells].map(c => c.textContent) }))
    .filter(t => t.heads.includes("task") && t.heads.includes("recipe"));
  function apply() {
    const chosen = keys.map(k => [k, menu(k).value]).filter(p => p[1] !== "all");
    for (const { table, heads } of tables) {
      const tests = chosen.map(([k, v]) => [heads.indexOf(k), v, k]).filter(t => t[0] >= 0);
      for (const row of table.tBodies[0].rows) row.hidden = tests.some(([i, v, k]) => {
        const text = row.cells[i].textContent;
        return k === "density" ? text !== "" && Number(text) !== Number(Number(v).toPrecision(4)) : text !== v; });
    }
    document.body.dataset.filtered = chosen.map(p => p.join("=")).join(" ");
  }
  function save() {
    const { table, name } = tables[0], quote = t => /[",\n]/.test(t) ? '"' + t.replaceAll('"', '""') + '"' : t;
    const rows = [table.tHead.rows[0], ...[...table.tBodies[0].rows].filter(r => !r.hidden)];
    const text = rows.map(r => [...r.cells].map(c => quote(c.textContent)).join(",") + "\n").join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = "shown-" + name; link.click();
  }
  keys.forEach(k => menu(k).addEventListener("input", apply));
  document.getElementById("shown-csv").addEventListener("click", save);
  apply();
})();
