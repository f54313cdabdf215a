"use strict";
// Every figure over steps becomes a slider: pointer, touch and arrow keys choose a step whose numbers are then told.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const plots = [...document.querySelectorAll(".plot[data-panels]")].map(prepare);

  function prepare(element) {
    const runs = JSON.parse(element.dataset.runs);
    const [first, last] = JSON.parse(element.dataset.steps);
    const columns = JSON.parse(element.dataset.columns);
    const steps = [...new Set(runs.flatMap((run) => told(data.runs[run], columns)))]
      .filter((step) => step >= first && step <= last)
      .sort((a, b) => a - b);
    const plot = { element, runs, steps, columns, spans: "spans" in element.dataset };
    plot.views = [...element.querySelectorAll("svg")].map((svg) => ({
      svg,
      panels: JSON.parse(svg.parentNode.dataset.panels)[svg.classList.contains("narrow") ? 1 : 0],
      cursors: [],
    }));
    plot.tip = element.appendChild(make("div", "tip"));
    plot.tip.hidden = true;
    plot.tip.setAttribute("aria-hidden", "true");
    if (!steps.length) return plot;
    element.tabIndex = 0;
    element.setAttribute("role", "slider");
    element.setAttribute("aria-label", element.dataset.label);
    element.setAttribute("aria-valuemin", steps[0]);
    element.setAttribute("aria-valuemax", steps[steps.length - 1]);
    describe(plot, steps[0]);
    for (const kind of ["pointermove", "pointerdown"]) {
      element.addEventListener(kind, (event) => {
        const step = at(plot, event);
        if (step === null) clear();
        else choose(plot, step, event);
      });
    }
    // A finger that is lifted leaves the numbers in view; a mouse that goes away takes them along.
    element.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch" && document.activeElement !== element) clear();
    });
    element.addEventListener("blur", () => plot.tip.hidden || clear());
    element.addEventListener("focus", () => element.matches(":focus-visible") && choose(plot, plot.now));
    element.addEventListener("keydown", (event) => key(plot, event));
    return plot;
  }

  // The steps of a run at which there is something to tell of some columns, a value or why it is undefined.
  function told(run, columns) {
    const values = columns.map((column) => run.columns[column] || []);
    const reasons = ["segment", ...columns].map((column) => run.reasons[column] || {});
    return run.steps.filter((step, index) =>
      values.some((column) => (column[index] ?? null) !== null) || reasons.some((column) => step in column));
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function visible(plot) {
    return plot.views.find((view) => view.svg.getClientRects().length) || plot.views[0];
  }

  // The step under the pointer: the segment it is over, or else the nearest step. None below the panels over steps.
  function at(plot, event) {
    const view = visible(plot);
    const box = view.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * view.svg.viewBox.baseVal.width;
    const y = ((event.clientY - box.top) / box.height) * view.svg.viewBox.baseVal.height;
    const axis = 40;
    if (y > Math.max(...view.panels.map((panel) => panel[3])) + axis) return null;
    const [left, right, , , first, last] = view.panels[0];
    const position = first + ((x - left) / (right - left)) * (last - first);
    return nearest(plot.steps, plot.spans ? Math.floor(position) : position);
  }

  function nearest(steps, position) {
    return steps.reduce((best, step) => (Math.abs(step - position) < Math.abs(best - position) ? step : best));
  }

  function key(plot, event) {
    const index = plot.steps.indexOf(plot.now);
    const most = plot.steps.length - 1;
    const target = {
      ArrowRight: index + 1, ArrowUp: index + 1, ArrowLeft: index - 1, ArrowDown: index - 1,
      PageUp: index + 10, PageDown: index - 10, Home: 0, End: most,
    }[event.key];
    if (event.key === "Escape") clear();
    if (target === undefined) return;
    event.preventDefault();
    choose(plot, plot.steps[Math.min(most, Math.max(0, target))]);
  }

  function choose(plot, step, pointer) {
    clear();
    describe(plot, step);
    for (const other of plots) {
      const together = other.element.closest("section") === plot.element.closest("section");
      if (together && other.steps.includes(step)) mark(other, step);
    }
    show(plot, step, pointer);
  }

  function clear() {
    for (const plot of plots) {
      plot.tip.hidden = true;
      for (const view of plot.views) view.cursors.forEach((cursor) => cursor.remove());
    }
  }

  function mark(plot, step) {
    const view = visible(plot);
    view.cursors = view.panels.map(([left, right, top, bottom, first, last]) => {
      const unit = (right - left) / (last - first);
      const wide = plot.spans && unit > 3;
      const cursor = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const width = wide ? unit : 1.4;
      cursor.setAttribute("x", left + (step - first) * unit - (wide ? 0 : 0.7));
      cursor.setAttribute("y", top);
      cursor.setAttribute("width", width);
      cursor.setAttribute("height", bottom - top);
      cursor.setAttribute("class", wide ? "cursor" : "cursor line");
      return view.svg.appendChild(cursor);
    });
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value === "string") return value;
    const size = Math.abs(value);
    let text;
    if (size !== 0 && (size < 1e-4 || size >= 1e7)) text = value.toExponential(2).replace("e+", "e");
    else if (Number.isInteger(value)) text = value.toLocaleString("en");
    else text = String(Number(value.toPrecision(4)));
    return text.replace(/-/g, "−");
  }

  function lookup(run, step, column) {
    const index = data.runs[run].steps.indexOf(step);
    const values = data.runs[run].columns[column];
    if (index < 0 || values === undefined) return null;
    return column in data.words ? data.words[column][values[index]] ?? null : values[index];
  }

  function heading(plot, step) {
    const epochs = new Set(plot.runs.map((run) => lookup(run, step, "epoch")).filter((epoch) => epoch !== null));
    return `Step ${number(step)}` + (epochs.size === 1 ? `, epoch ${number([...epochs][0])}` : "");
  }

  // Why something is undefined at this step, and what happened there.
  function remarks(plot, step) {
    return plot.runs.flatMap((run) => {
      const reasons = data.runs[run].reasons;
      const why = ["segment", ...plot.columns]
        .filter((column) => reasons[column] && reasons[column][step])
        .map((column) => `${data.labels[column] || column}: ${reasons[column][step]}`);
      return [...new Set([...why, ...(data.runs[run].events[step] || [])])];
    });
  }

  function describe(plot, step) {
    plot.now = step;
    const several = plot.runs.length > 1;
    const parts = plot.runs.map((run) => {
      const values = plot.columns.map((column) => {
        const value = lookup(run, step, column);
        return `${data.labels[column] || column} ${value === null ? "undefined" : number(value)}`;
      });
      return (several ? `${data.runs[run].name}: ` : "") + values.join(", ");
    });
    plot.element.setAttribute("aria-valuenow", step);
    plot.element.setAttribute("aria-valuetext", [heading(plot, step), ...parts, ...remarks(plot, step)].join(". "));
  }

  function show(plot, step, pointer) {
    const { tip, element } = plot;
    tip.replaceChildren(make("strong", "", heading(plot, step)));
    const table = tip.appendChild(make("table"));
    if (plot.runs.length > 1) {
      const row = table.appendChild(make("thead")).appendChild(make("tr"));
      row.append(make("th", "", ""), ...plot.runs.map((run) => make("th", "", data.runs[run].name)));
    }
    const body = table.appendChild(make("tbody"));
    for (const column of plot.columns) {
      const row = body.appendChild(make("tr"));
      row.append(make("th", "", data.labels[column] || column));
      for (const run of plot.runs) row.append(make("td", "", number(lookup(run, step, column))));
    }
    for (const remark of remarks(plot, step)) tip.append(make("p", "", remark));
    tip.hidden = false;

    // Beside the cursor, on the side with more room; inside the figure as far as it goes.
    const view = visible(plot);
    const [left, right, top, , first, last] = view.panels[0];
    const scale = element.clientWidth / view.svg.viewBox.baseVal.width;
    const x = (left + ((step - first + (plot.spans ? 0.5 : 0)) / (last - first)) * (right - left)) * scale;
    const room = element.clientWidth - tip.offsetWidth;
    const wanted = x > element.clientWidth / 2 ? x - tip.offsetWidth - 18 : x + 18;
    const y = pointer ? pointer.clientY - element.getBoundingClientRect().top - tip.offsetHeight / 2 : top * scale;
    tip.style.left = `${Math.max(0, Math.min(room, wanted))}px`;
    tip.style.top = `${Math.max(0, Math.min(element.clientHeight - tip.offsetHeight, y))}px`;
  }
})();
