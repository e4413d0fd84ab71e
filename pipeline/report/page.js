"use strict";
// What the page shows is chosen, marks are read with a pointer or the arrow keys, commands copied,
// tables sorted, filtered and folded; without it the page has everything else. The first lines of a
// table are rows; where there are many, the others stand below it as text, a line each with tabs
// between the columns, and become rows on demand.
(() => {
  document.documentElement.classList.add("js");
  const MORE = 1000;
  const byText = new Intl.Collator("en", { numeric: true }).compare;
  const number = (text) => parseFloat(text.replaceAll(",", ""));  // "1,234 ± 5": 1234; "": NaN

  const MACHINE = { chosen: "" };
  const here = (number) => !number || !MACHINE.chosen || number === MACHINE.chosen;

  function fromRow(row) {
    const texts = [...row.cells].map((cell) => cell.textContent);
    return { texts, row, id: row.id, front: row.classList.contains("front"), on: row.dataset.on };
  }
  function fromText(text, id, front, on) {
    const texts = text.split("\t");
    texts[0] = texts[0].trimEnd();
    return { texts, row: null, id, front, on };
  }
  function fromRest(pre, view, first) {
    const front = new Set((pre.dataset.front || "").split(" "));
    const on = (pre.dataset.machines || "").split(",");
    return pre.textContent.split("\n").map((text, i) =>
      fromText(text, `${view}-r${first + i}`, front.has(`${first + i}`), on[i]));
  }
  function rowOf(line, heads) {
    if (line.row) return line.row;
    line.row = document.createElement("tr");
    line.row.id = line.id;
    if (line.front) line.row.className = "front";
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
    let most = lines.length, column = -1, way = "none", wanted = () => true, filtered = false;
    let folded = "folds" in table.dataset;
    if (rest) lines.push(...fromRest(rest.querySelector("pre"), setting.id, lines.length));

    const more = document.createElement("button");
    more.type = "button";
    more.className = "more";
    more.addEventListener("click", () => { most += MORE; show(); });
    if (rest) rest.replaceWith(more);
    const fold = document.createElement("button");
    fold.type = "button";
    fold.className = "fold";
    fold.hidden = !folded;
    fold.addEventListener("click", () => { folded = !folded; show(); });
    setting.append(fold);

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
      const there = all ? lines : sorted().filter((line) => here(line.on));
      const matching = all ? lines : there.filter(wanted);
      const shown = folded && !filtered && !all ? matching.filter((line) => line.front) : matching;
      const now = all ? shown : shown.slice(0, most);
      body.replaceChildren(...now.map((line) => rowOf(line, heads)));
      const left = shown.length - now.length;
      more.hidden = left === 0;
      more.textContent = `Show ${Math.min(MORE, left).toLocaleString("en")} more of ` +
        `${left.toLocaleString("en")} lines`;
      fold.textContent = folded
        ? `Show all ${there.length.toLocaleString("en")} rows, not only the frontier`
        : "Show only the frontier";
      return [matching.length, there.length];
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
    if (rest || folded) {
      addEventListener("beforeprint", () => show(true));
      addEventListener("afterprint", () => show());
      show();
    }

    return {
      setting,
      heads,
      filter(test, any) {
        wanted = (line) => test(line, heads);
        filtered = any;
        return show();
      },
      on(id) {
        const line = lines.find((one) => one.id === id);
        return line && line.on;
      },
      reveal(id) {
        const line = lines.find((one) => one.id === id);
        if (!line) return;
        if (folded && !line.front) folded = false;
        const place = lines.filter((one) => !folded || one.front).indexOf(line);
        most = Math.max(most, column < 0 ? place + 1 : lines.length);
        show();
      },
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
    const { filter, shown } = form.elements;
    const groups = [...form.querySelectorAll("[name=group]")];
    const visible = (table) => !table.setting.classList.contains("gone");
    function update() {
      let count = 0, of = 0;
      const text = filter.value.trim();
      for (const table of tables) {
        const [left, all] = table.filter(test(text), text !== "");
        if (visible(table)) { count += left; of += all; }
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
    const first = groups.filter((box) => "first" in box.dataset);
    for (const box of groups) {
      box.checked = !first.length || first.includes(box);
      box.addEventListener("change", hide);
    }
    if (groups.length) hide();
    form.hidden = false;
    return update;
  }

  // --- data set, model and machine, chosen once for the whole page ------------------------------

  function chooser(form, changed) {
    const { dataset, model, machine } = form.elements;
    const shown = [...document.querySelectorAll(".shown")];
    const about = [...document.querySelectorAll("[data-dataset]")];
    const fits = (node) =>
      (!dataset || !dataset.value || node.dataset.dataset === dataset.value) &&
      (!model || !model.value || !node.dataset.model || node.dataset.model === model.value);
    function update() {
      if (model && !shown.some(fits)) {  // not every data set has every model
        const first = shown.find((one) => one.dataset.dataset === dataset.value);
        model.value = first.dataset.model;
      }
      for (const node of about) node.classList.toggle("gone", !fits(node));
      for (const section of document.querySelectorAll("main > section")) {
        const own = [...section.querySelectorAll(".setting[data-dataset]")];
        const none = section.querySelector(".none");
        const empty = Boolean(none) && own.length > 0 && own.every((one) => !fits(one));
        section.classList.toggle("empty", empty);
        if (!none) continue;
        none.hidden = !empty;
        const names = [dataset, model].filter((select) => select && select.value);
        none.textContent = `None for ${names.map((select) => select.value).join(", ")}.`;
      }
      MACHINE.chosen = machine ? machine.value : "";
      for (const one of shown)
        one.classList.toggle("elsewhere", (one.dataset.on || "") !== MACHINE.chosen);
      changed();
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", update);
    form.hidden = !form.elements.length;
    document.documentElement.classList.toggle("choosing", Boolean(dataset));
    return {
      update,
      show(node, on) {  // a row of what is not chosen
        if (machine && !here(on)) {
          machine.value = [...machine.options].some((one) => one.value === on) ? on : "";
          update();
        }
        const there = node.closest("[data-dataset]");
        if (!there || fits(there)) return;
        if (dataset) dataset.value = there.dataset.dataset;
        if (model && there.dataset.model) model.value = there.dataset.model;
        update();
      },
    };
  }

  // --- marks of a figure ------------------------------------------------------------------------

  const NEAR = 26;  // pixels
  const tip = document.getElementById("tip");

  function plot(svg) {
    const marks = [...svg.querySelectorAll(".mark")].map((node) => {
      const use = node.querySelector("use");
      const title = node.querySelector("title");
      const lines = title.textContent.split("\n");
      node.setAttribute("aria-label", lines.join("; "));
      if (node.localName !== "a") node.setAttribute("role", "img");
      node.setAttribute("tabindex", "-1");
      title.remove();  // the browser would show it beside ours
      return { node, lines, x: parseFloat(use.getAttribute("x")),
        y: parseFloat(use.getAttribute("y")) };
    });
    if (!marks.length) return;
    marks.sort((a, b) => a.x - b.x || a.y - b.y);
    let now = null;
    const base = marks.findIndex((mark) => mark.node.localName === "a");
    marks[Math.max(0, base)].node.setAttribute("tabindex", "0");

    function show(mark) {
      if (now === mark) return;
      if (now) now.node.classList.remove("near");
      now = mark;
      tip.hidden = !mark;
      if (!mark) return;
      mark.node.classList.add("near");
      const [name, ...rest] = mark.lines;
      tip.replaceChildren(text("b", name), ...rest.map((line) => text("span", line)));
      const target = mark.node.getAttribute("href");
      if (target) {
        const link = text("a", "its row in the table");
        link.href = target;
        tip.append(link);
      }
      const box = svg.getBoundingClientRect();
      const x = box.left + box.width * mark.x / 100, y = box.top + box.height * mark.y / 100;
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${scrollX + Math.max(8, Math.min(x + 14, room))}px`;
      const above = y - tip.offsetHeight - 12;
      tip.style.top = `${scrollY + (above > 60 ? above : y + 14)}px`;
    }
    function nearest(event) {
      const box = svg.getBoundingClientRect();
      let best = null, least = NEAR * NEAR;
      for (const mark of marks) {
        const dx = box.left + box.width * mark.x / 100 - event.clientX;
        const dy = box.top + box.height * mark.y / 100 - event.clientY;
        const far = dx * dx + dy * dy;
        if (far < least) { best = mark; least = far; }
      }
      return best;
    }
    const axes = svg.parentElement;
    axes.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "touch") show(nearest(event));
    });
    axes.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") show(null);
    });
    // A first touch shows what a mark is, the link in it leads to the row.
    axes.addEventListener("click", (event) => {
      const mark = nearest(event);
      const touched = event.pointerType === "touch";
      if (event.detail && (touched || !mark)) event.preventDefault();
      if (event.detail && touched) show(mark);
      if (event.detail && !touched && mark && !event.target.closest("a"))
        mark.node.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
    });
    svg.addEventListener("focusin", (event) => {
      show(marks.find((mark) => mark.node === event.target.closest(".mark")));
    });
    svg.addEventListener("focusout", () => show(null));
    svg.addEventListener("keydown", (event) => {
      const i = marks.findIndex((mark) => mark.node === document.activeElement);
      const steps = { ArrowRight: i + 1, ArrowUp: i + 1, ArrowLeft: i - 1, ArrowDown: i - 1,
        Home: 0, End: marks.length - 1 };
      if (i < 0) return;
      if (event.key === "Escape") show(null);
      const to = marks[steps[event.key]];
      if (!to) return;
      event.preventDefault();
      marks[i].node.setAttribute("tabindex", "-1");
      to.node.setAttribute("tabindex", "0");
      to.node.focus();
    });
  }
  function text(tag, content) {
    const node = document.createElement(tag);
    node.textContent = content;
    return node;
  }

  // --- commands ---------------------------------------------------------------------------------

  async function copied(code) {
    try {
      await navigator.clipboard.writeText(code.textContent);
      return true;
    } catch {  // not allowed for a file in some browsers
      getSelection().selectAllChildren(code);
      return document.execCommand("copy");
    }
  }
  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    const label = button.textContent;
    button.addEventListener("click", async () => {
      button.textContent = await copied(button.previousElementSibling) ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  }

  // --- all of it --------------------------------------------------------------------------------

  const tables = [], updates = [];
  for (const section of document.querySelectorAll("section")) {
    const own = [...section.querySelectorAll("table.sortable")].map(enhance);
    const form = section.querySelector("form.controls");
    updates.push(form ? control(form, own) : () => own.forEach((t) => t.filter(() => true, false)));
    tables.push(...own);
  }
  const form = document.querySelector("form.chooser");
  const choice = form && chooser(form, () => updates.forEach((update) => update()));
  if (choice) choice.update();
  document.querySelectorAll("svg.marks").forEach(plot);

  function reveal(id) {
    const table = tables.find((one) => id.startsWith(`${one.setting.id}-r`));
    if (!table) return;
    if (choice) choice.show(table.setting, table.on(id));
    table.reveal(id);
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    const href = link && link.getAttribute("href");
    if (!href || !href.startsWith("#")) return;
    reveal(href.slice(1));
    if (link.ownerSVGElement) {  // a link in a drawing
      event.preventDefault();
      location.hash = href;
    }
    tip.hidden = true;
  });
  if (location.hash) {
    const id = decodeURIComponent(location.hash.slice(1));
    reveal(id);
    const there = document.getElementById(id);
    if (there) there.scrollIntoView();
  }
})();
