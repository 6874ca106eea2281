// Model text with its confidences: cells (tokens) inside blocks (steps). Text goes in as text, never as markup.

// Uncertainty 1 - confidence from which each shade on is used. The ramp is one hue that only darkens (or, at night,
// lightens), so that it reads the same whatever colours the reader tells apart.
const SHADES = [0, 0.02, 0.1, 0.25, 0.45, 0.65, 0.85];
const shade = (confidence) => {
  if (confidence === null || confidence === undefined || Number.isNaN(confidence)) return -1;
  const doubt = 1 - confidence;
  let level = 0;
  while (level + 1 < SHADES.length && doubt >= SHADES[level + 1]) level += 1;
  return level;
};

const MEASURES = {
  entropy: { title: "confidence", text: "exp(−H), H the entropy of the distribution that the token was drawn from" },
  probability: { title: "probability", text: "how probable the model found the token" },
  step: { title: "by step", text: "the step's confidence, one shade a step" },
  decisiveness: { title: "decisiveness", text: "how sure the step's words sound" },
};

// A step is [start, end (UTF-16 units), first token, one past the last, confidence, mean entropy, verdict, decisiveness]
// (trace_view.py): steps[k][4] is its confidence, steps[k][7] the decisiveness of its words.

/** Measures by what an estimator makes of each step are named `of:NAME`. */
const estimatorOf = (measure) => (measure && measure.startsWith("of:") ? measure.slice(3) : null);
const describe = (measure) => MEASURES[measure]
  || { title: estimatorOf(measure).replace(/_/g, " "), text: `the step's confidence by the estimator ${estimatorOf(measure)}` };

/** What a measure of whole steps says of step k; undefined for a measure of tokens. */
function stepValue(record, k, measure) {
  const step = record.steps[k];
  if (!step) return null;
  if (measure === "step") return step[4];
  if (measure === "decisiveness") return step[7];
  const name = estimatorOf(measure);
  return name === null ? undefined : record.estimates[name][k];
}

const nats = (list, i) => (list && list[i] !== null && list[i] !== undefined ? list[i] / 1000 : null);

/** The confidence that colours token i, for a measure of tokens. */
function tokenValue(record, i, measure) {
  const value = measure === "probability" ? nats(record.surprise, i) : nats(record.entropy, i);
  return value === null ? null : Math.exp(-value);
}

/** Cells of a record: [first token, one past the last, start, end] in UTF-16 units, or null without token spans. */
function cellsOf(record) {
  if (!record.lengths) return null;
  const cells = [];
  let at = 0;
  record.lengths.forEach((length, i) => {
    if (length < 0) {
      cells[cells.length - 1][1] = i + 1;
      return;
    }
    cells.push([i, i + 1, at, at + length]);
    at += length;
  });
  return cells;
}

/** The value of a cell: that of its most doubtful token. */
function cellValue(record, cell, measure) {
  let least = null;
  for (let i = cell[0]; i < cell[1]; i += 1) {
    const value = tokenValue(record, i, measure);
    if (value !== null && (least === null || value < least)) least = value;
  }
  return least;
}

/** One token as an element whose text is exactly the token's. Line ends at a step's end are shown as a sign. */
function cellElement(record, cell, names, level, atEnd) {
  const text = record.text.slice(cell[2], cell[3]);
  const span = make("span", { class: level > 0 ? `c h${level}` : "c", "data-i": cell[0], "data-n": cell[1] - cell[0] });
  if (cell[2] === cell[3]) {
    span.classList.add("silent");
    span.dataset.name = names[record.ids[cell[0]]] || "∅";
    return span;
  }
  const body = atEnd ? text.replace(/\n+$/, "") : text;
  if (body) span.append(body);
  if (body.length < text.length) span.append(make("span", { class: "nl" }, text.slice(body.length)));
  return span;
}

/** Every part of a record's text in order: its step (or -1), and its cells, or its text where there are no cells. */
function partsOf(record) {
  const steps = record.steps || [];
  const cells = cellsOf(record);
  const parts = [];
  let next = 0;
  const take = (tokens, chars, step) => {
    if (cells) {
      const taken = [];
      while (next < cells.length && cells[next][0] < tokens) taken.push(cells[next++]);
      if (taken.length) parts.push({ step, cells: taken });
    } else if (chars > next) {
      parts.push({ step, text: record.text.slice(next, chars) });
      next = chars;
    }
  };
  steps.forEach((step, k) => {
    take(step[2], step[0], -1);
    take(step[3], step[1], k);
  });
  take(Infinity, record.text.length, -1);
  return parts;
}

/** The text of a record as blocks, one a step. */
function textBlocks(record, names, measure) {
  return partsOf(record).map((part) => {
    const step = part.step >= 0 ? record.steps[part.step] : null;
    const whole = step ? stepValue(record, part.step, measure) ?? null : null;
    const body = make("div", { class: "body" });
    if (part.cells) {
      const last = part.cells.length - 1;
      const closing = part.cells.findLastIndex((cell) => /[^\n]/.test(record.text.slice(cell[2], cell[3])));
      part.cells.forEach((cell, k) => {
        const byToken = measure === "entropy" || measure === "probability";
        const level = byToken ? shade(cellValue(record, cell, measure)) : shade(whole);
        body.append(cellElement(record, cell, names, level, k >= closing && k <= last));
      });
    } else if (part.text.trim()) {
      const level = shade(whole !== null ? whole : step ? step[4] : null);
      body.append(make("span", { class: level > 0 ? `c h${level}` : "c" }, part.text));
    } else {
      body.append(make("span", { class: "nl" }, part.text));
    }
    const shown = step && estimatorOf(measure) !== null ? whole : step ? step[4] : null;
    return make("div", { class: step ? "step" : "step loose", "data-step": part.step }, stepHead(step, part.step, shown), body);
  });
}

function stepHead(step, index, confidence) {
  if (!step) return make("div", { class: "head" });
  const [, , , , , entropy, verdict, decisive] = step;
  const head = make("div", { class: "head" }, make("b", {}, String(index + 1)), sign(verdict));
  if (confidence !== null && confidence !== undefined) {
    head.append(make("span", { class: "value", title: "step confidence" }, fixed(confidence)));
    if (confidence >= 0 && confidence <= 1) head.append(meter(confidence, decisive));
  }
  if (decisive !== null && decisive !== undefined) {
    head.append(make("span", { class: "said", title: "decisiveness of the words" }, `says ${fixed(decisive)}`));
  }
  head.title = `step ${index + 1}: ${verdictOf(verdict).name}, mean entropy ${fixed(entropy, 3)} nats`;
  return head;
}

/** A short bar for a confidence; a tick where the words stand. */
function meter(confidence, decisive) {
  const bar = make("i");
  bar.style.width = `${Math.round(100 * confidence)}%`;
  const box = make("span", { class: "meter", "aria-hidden": "true" }, bar);
  if (decisive !== null && decisive !== undefined) {
    const tick = make("u");
    tick.style.left = `${Math.round(100 * decisive)}%`;
    box.append(tick);
  }
  return box;
}

/** What the tip says of a cell. */
function cellTip(record, names, first, count) {
  const rows = [];
  for (let i = first; i < first + count; i += 1) {
    const entropy = nats(record.entropy, i);
    const surprise = nats(record.surprise, i);
    rows.push(
      make("tr", {}, make("td", {}, `token ${i}`), make("td", {}, `id ${record.ids ? record.ids[i] : "?"}`),
        make("td", {}, entropy === null ? "–" : `H ${fixed(entropy, 3)}`),
        make("td", {}, entropy === null ? "–" : `exp(−H) ${fixed(Math.exp(-entropy), 3)}`),
        make("td", {}, surprise === null ? "–" : `p ${fixed(Math.exp(-surprise), 3)}`)),
    );
  }
  return [make("table", {}, make("tbody", {}, ...rows))];
}

function tipsOnText(root, lookup) {
  tipsOver(root, (target) => {
    const cell = target instanceof Element ? target.closest(".c[data-i]") : null;
    if (!cell || !root.contains(cell)) return null;
    const found = lookup(cell);
    return found ? [cell, cellTip(found.record, found.names, Number(cell.dataset.i), Number(cell.dataset.n))] : null;
  });
}

/** The key to the shades. */
function shadeKey(measure) {
  const swatches = SHADES.map((_, level) => make("i", { class: `h${level}` }));
  const words = measure === "decisiveness" ? ["decisive", "hedged"] : ["sure", "unsure"];
  return make("span", { class: "key", title: `${describe(measure).text}. Shades begin at 1, .98, .90, .75, .55, .35, .15` },
    words[0], ...swatches, words[1]);
}

/** All tokens as one strip, a column a token, verdicts of the steps below; a click goes to the place. */
function strip(record, measure, go) {
  const canvas = make("canvas", { class: "strip", role: "img", "aria-label": `${describe(measure).title}, token by token` });
  const count = record.lengths ? record.lengths.length : (record.entropy || record.ids || []).length;
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    if (!width || !count) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(26 * ratio);
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colours = SHADES.map((_, level) => style.getPropertyValue(`--h${level}-strip`).trim());
    const verdicts = { 1: style.getPropertyValue("--right"), 0: style.getPropertyValue("--wrong") };
    const column = canvas.width / count;
    const stepOf = new Int32Array(count).fill(-1);
    (record.steps || []).forEach((step, k) => stepOf.fill(k, step[2], step[3]));
    // Many tokens a pixel: the pixel shows the most doubtful of them.
    const byToken = measure === "entropy" || measure === "probability";
    const pixels = new Int8Array(canvas.width).fill(-1);
    for (let i = 0; i < count; i += 1) {
      const whole = stepOf[i] >= 0 ? stepValue(record, stepOf[i], measure) : undefined;
      const value = whole === undefined && byToken ? tokenValue(record, i, measure) : whole;
      const level = shade(value);
      const last = Math.max(Math.floor(i * column) + 1, Math.floor((i + 1) * column));
      for (let x = Math.floor(i * column); x < last; x += 1) pixels[x] = Math.max(pixels[x], level);
    }
    pixels.forEach((level, x) => {
      pen.fillStyle = level < 0 ? "transparent" : colours[level];
      pen.fillRect(x, 0, 1, canvas.height - 6 * ratio);
    });
    (record.steps || []).forEach((step) => {
      pen.fillStyle = verdicts[step[6]] || style.getPropertyValue("--line");
      const start = step[2] * column;
      const tall = step[6] === 0 ? 5 : 3; // height too tells wrong from right
      pen.fillRect(start, canvas.height - tall * ratio, Math.max(1, (step[3] - step[2]) * column - ratio), tall * ratio);
    });
  };
  canvas.addEventListener("click", (event) => {
    const at = (event.offsetX / canvas.clientWidth) * count;
    const step = (record.steps || []).findIndex((s) => at >= s[2] && at < s[3]);
    if (step >= 0) go(step);
  });
  new ResizeObserver(draw).observe(canvas);
  canvas.redraw = draw;
  return canvas;
}
