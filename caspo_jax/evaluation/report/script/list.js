// A list of any length: only the rows in sight exist.

class List {
  /** row(item) -> elements; choose(item, by) is told what was picked. */
  constructor(box, height, row, choose) {
    Object.assign(this, { box, height, row, choose, items: [], at: -1 });
    this.space = make("div", { class: "space" });
    box.append(this.space);
    box.addEventListener("scroll", () => this.draw());
    box.addEventListener("click", (event) => {
      const hit = event.target instanceof Element ? event.target.closest("[data-row]") : null;
      if (hit) this.go(Number(hit.dataset.row), "click");
    });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  set(items, keep) {
    this.items = items;
    this.at = keep === undefined ? -1 : items.indexOf(keep);
    this.space.style.height = `${items.length * this.height}px`;
    this.box.scrollTop = 0;
    this.reveal();
    this.draw();
  }

  draw() {
    const { clientHeight, scrollTop } = this.box;
    const first = Math.max(0, Math.floor(scrollTop / this.height) - 4);
    const last = Math.min(this.items.length, Math.ceil((scrollTop + clientHeight) / this.height) + 4);
    const rows = [];
    for (let k = first; k < last; k += 1) {
      const row = make("div", { class: "row", role: "option", "data-row": k, "aria-selected": String(k === this.at) },
        ...this.row(this.items[k]));
      row.style.transform = `translateY(${k * this.height}px)`;
      row.style.height = `${this.height}px`;
      rows.push(row);
    }
    if (!this.items.length) rows.push(make("p", { class: "none" }, "Nothing matches."));
    this.space.replaceChildren(...rows);
  }

  reveal() {
    if (this.at < 0) return;
    const top = this.at * this.height;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    const over = top + this.height - this.box.scrollTop - this.box.clientHeight;
    if (over > 0) this.box.scrollTop += over;
  }

  go(k, by) {
    if (k < 0 || k >= this.items.length) return;
    this.at = k;
    this.reveal();
    this.draw();
    this.choose(this.items[k], by);
  }

  /** j and k, and the arrows while the list has the focus; true if the key was one of them. */
  key(event, arrows = true) {
    const steps = { j: 1, k: -1, ...(arrows ? { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 } : {}) };
    if (!(event.key in steps)) return false;
    this.go(Math.max(0, Math.min(this.items.length - 1, this.at + steps[event.key])), "key");
    return true;
  }
}

/** Options of a <select>: [value, text] pairs. */
function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}

/** Buttons of which one is pressed; choose(value). */
function segments(box, options, value, choose) {
  const press = (chosen) => {
    for (const button of box.children) button.setAttribute("aria-pressed", String(button.dataset.value === chosen));
  };
  box.replaceChildren(
    ...options.map(([name, text, title]) =>
      make("button", { "data-value": name, title, on: { click: () => (press(name), choose(name)) } }, text)),
  );
  press(value);
}

/** Scroll an article into sight on narrow screens, where it stands below its list. */
function bringUp(article, by) {
  article.scrollTop = 0;
  if (by === "click" && matchMedia("(max-width: 800px)").matches) article.scrollIntoView({ block: "start" });
}

const setTitle = (set, several) => (several ? `${set.run} · ${set.name}` : set.name);
const setChoice = (set, several) =>
  `${setTitle(set, several)} (${set.shown < set.total ? `${thousands(set.shown)} of ` : ""}${thousands(set.total)})`;
