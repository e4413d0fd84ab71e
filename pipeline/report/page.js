"use strict";
// Sorting and filtering; without it the page has everything else. A line's numbers are in data-k,
// one for each column of class n, "-" where there is none; other columns sort by their text.
(() => {
  const byText = new Intl.Collator("en", { numeric: true }).compare;

  function enhance(table) {
    const bodies = [...table.tBodies];
    const lines = [...table.querySelectorAll("tbody > tr")];
    const first = bodies[0].rows.length;
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const state = { column: -1, way: "none", wanted: () => true };

    function key(line, i) {
      if (!heads[i].classList.contains("n")) return line.cells[i].textContent;
      const place = heads.slice(0, i).filter((head) => head.classList.contains("n")).length;
      return parseFloat(line.dataset.k.split(" ")[place]);
    }
    function compare(a, b) {
      if (typeof a[0] === "string") return byText(a[0], b[0]);
      return a[0] - b[0];
    }
    function sorted() {
      if (state.way === "none") return lines;
      const keyed = lines.map((line) => [key(line, state.column), line]);
      const there = keyed.filter(([k]) => k === k);  // NaN: not measured, always last
      there.sort(state.way === "ascending" ? compare : (a, b) => compare(b, a));
      return [...there, ...keyed.filter(([k]) => k !== k)].map(([, line]) => line);
    }
    function show() {
      const shown = sorted().filter(state.wanted);
      bodies[0].replaceChildren(...shown.slice(0, first));
      if (bodies[1]) bodies[1].replaceChildren(...shown.slice(first));
      const more = table.closest(".setting").querySelector(".more");
      if (more) more.hidden = shown.length <= first;
      return shown.length;
    }
    function sort(i) {
      const begin = heads[i].dataset.first;
      const other = begin === "ascending" ? "descending" : "ascending";
      const next = { [begin]: other, [other]: "none" };
      state.way = state.column === i ? next[state.way] || begin : begin;
      state.column = i;
      heads.forEach((head, j) => head.setAttribute("aria-sort", j === i ? state.way : "none"));
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
    return {
      of: lines.length,
      setting: table.closest(".setting"),
      filter(wanted) { state.wanted = wanted; return show(); },
      groups(hidden) {
        for (const cell of table.querySelectorAll("thead .groups [data-group]"))
          cell.hidden = hidden.has(cell.dataset.group);
        table.classList.remove(...[...table.classList].filter((c) => c.startsWith("no-")));
        table.classList.add(...[...hidden].map((group) => `no-${group}`));
      },
    };
  }

  // "kd, prune 0.5": kd, or both prune and 0.5, anywhere in the line's text columns.
  function wanted(text) {
    const ways = text.toLowerCase().split(",").map((way) => way.trim().split(/\s+/));
    const asked = ways.filter((words) => words[0] !== "");
    if (!asked.length) return () => true;
    return (line) => {
      const said = [...line.querySelectorAll(":scope > .name, :scope > .text")]
        .map((cell) => cell.textContent.toLowerCase()).join(" ");
      return asked.some((words) => words.every((word) => said.includes(word)));
    };
  }

  for (const form of document.querySelectorAll("form.controls")) {
    const tables = [...form.parentElement.querySelectorAll("table.sortable")].map(enhance);
    const { filter, setting, shown } = form.elements;
    const groups = [...form.querySelectorAll("[name=group]")];
    function update() {
      const test = wanted(filter.value);
      let count = 0, of = 0;
      for (const table of tables) {
        const here = !setting || !setting.value || table.setting.id === setting.value;
        table.setting.hidden = !here;
        const left = table.filter(test);
        if (here) { count += left; of += table.of; }
      }
      shown.value = count === of ? "" : `${count} of ${of} lines`;
    }
    function hide() {
      const hidden = new Set(groups.filter((box) => !box.checked).map((box) => box.value));
      for (const table of tables) table.groups(hidden);
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

  for (const table of document.querySelectorAll("table.sortable"))
    if (!table.querySelector("th button")) enhance(table);
})();
