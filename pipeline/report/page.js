"use strict";
// Sorting, filtering and hiding columns; without it the page has everything else. The first lines
// of a table are rows; where there are many, the others stand below it as text, a line each with
// tabs between the columns, and become rows on demand.
(() => {
  const MORE = 1000;
  const byText = new Intl.Collator("en", { numeric: true }).compare;
  const number = (text) => parseFloat(text.replaceAll(",", ""));  // "1,234 ± 5": 1234; "": NaN

  function fromRow(row) {
    return { texts: [...row.cells].map((cell) => cell.textContent), row };
  }
  function fromText(line) {
    const texts = line.split("\t");
    texts[0] = texts[0].trimEnd();
    return { texts, row: null };
  }
  function rowOf(line, heads) {
    if (line.row) return line.row;
    line.row = document.createElement("tr");
    heads.forEach((head, i) => {
      const cell = document.createElement(i ? "td" : "th");
      if (!i) { cell.scope = "row"; cell.className = "name"; }
      if (i && !head.classList.contains("n")) cell.className = "text";
      const [value, deviation] = cell.className ? [line.texts[i]] : line.texts[i].split(" ± ");
      cell.textContent = value;
      if (deviation !== undefined) {
        const small = document.createElement("small");
        small.textContent = ` ± ${deviation}`;
        cell.append(small);
      }
      line.row.append(cell);
    });
    return line.row;
  }

  function enhance(table) {
    const setting = table.closest(".setting");
    const body = table.tBodies[0];
    const rest = setting.querySelector(".rest");
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const lines = [...body.rows].map(fromRow);
    let most = lines.length, column = -1, way = "none", wanted = () => true;
    if (rest) lines.push(...rest.querySelector("pre").textContent.split("\n").map(fromText));

    const more = document.createElement("button");
    more.type = "button";
    more.className = "more";
    more.addEventListener("click", () => { most += MORE; show(); });
    if (rest) rest.replaceWith(more);

    function sorted() {
      if (way === "none") return lines;
      const numeric = heads[column].classList.contains("n");
      const compare = numeric ? (a, b) => a[0] - b[0] : (a, b) => byText(a[0], b[0]);
      const keyed = lines.map((line) => {
        const text = line.texts[column];
        return [numeric ? number(text) : text, line];
      });
      const there = keyed.filter(([key]) => key === key);  // NaN: not measured, always last
      there.sort(way === "ascending" ? compare : (a, b) => compare(b, a));
      return [...there, ...keyed.filter(([key]) => key !== key)].map(([, line]) => line);
    }
    function show(all = false) {
      const shown = sorted().filter(wanted);
      const now = all ? shown : shown.slice(0, most);
      body.replaceChildren(...now.map((line) => rowOf(line, heads)));
      const left = shown.length - now.length;
      more.hidden = left === 0;
      more.textContent = `Show ${Math.min(MORE, left).toLocaleString("en")} more of ` +
        `${left.toLocaleString("en")} lines`;
      return shown.length;
    }
    function sort(i) {
      const begin = heads[i].dataset.first;
      const other = begin === "ascending" ? "descending" : "ascending";
      const next = { none: begin, [begin]: other, [other]: "none" };
      way = next[column === i ? way : "none"];
      column = i;
      heads.forEach((head, j) => head.setAttribute("aria-sort", j === i ? way : "none"));
      show();
    }
    heads.forEach((head, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(i));
      head.append(button);
      head.setAttribute("aria-sort", "none");
    });
    addEventListener("beforeprint", () => { if (rest) show(true); });
    addEventListener("afterprint", () => { if (rest) show(); });
    if (rest) show();

    return {
      setting,
      heads,
      of: lines.length,
      filter(test) { wanted = (line) => test(line, heads); return show(); },
      hide(groups) {
        for (const cell of table.querySelectorAll("[data-group]"))
          cell.hidden = groups.has(cell.dataset.group);
        table.classList.remove(...[...table.classList].filter((name) => name.startsWith("no-")));
        table.classList.add(...[...groups].map((group) => `no-${group}`));
      },
    };
  }

  // "kd, prune 0.5": kd, or both prune and 0.5, anywhere in a line's text.
  function test(text) {
    const ways = text.toLowerCase().split(",").map((way) => way.split(/\s+/).filter(Boolean));
    const alternatives = ways.filter((words) => words.length);
    return (line, heads) => {
      if (!alternatives.length) return true;
      const texts = line.texts.filter((_, i) => !heads[i].classList.contains("n"));
      const lineText = texts.join(" ").toLowerCase();
      return alternatives.some((words) => words.every((word) => lineText.includes(word)));
    };
  }

  function control(form, tables) {
    const { filter, setting, shown } = form.elements;
    const groups = [...form.querySelectorAll("[name=group]")];
    function update() {
      let count = 0, of = 0;
      for (const table of tables) {
        const here = !setting || !setting.value || table.setting.id === setting.value;
        table.setting.hidden = !here;
        const left = table.filter(test(filter.value));
        if (here) { count += left; of += table.of; }
      }
      const grouped = (n) => n.toLocaleString("en");
      shown.value = count === of ? "" : `${grouped(count)} of ${grouped(of)} lines`;
    }
    function hide() {
      const hidden = groups.filter((box) => !box.checked).map((box) => box.value);
      for (const table of tables) table.hide(new Set(hidden));
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    filter.addEventListener("input", update);
    if (setting) setting.addEventListener("change", update);
    for (const box of groups) {
      box.checked = matchMedia("(min-width: 60rem)").matches || "narrow" in box.dataset;
      box.addEventListener("change", hide);
    }
    if (groups.length) hide();
    form.hidden = false;
  }

  for (const section of document.querySelectorAll("section")) {
    const tables = [...section.querySelectorAll("table.sortable")].map(enhance);
    const form = section.querySelector("form.controls");
    if (form) control(form, tables);
  }
})();
