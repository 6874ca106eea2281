// Words against confidence: what a trace says and what the model knows, step by step.

/** Two stairs over the steps, under the strip and on its scale, the gap between them shaded; null where no step has both. */
function saidChart(record, measure, go) {
  const estimator = estimatorOf(measure);
  const sure = record.steps.map((step, k) => (estimator === null ? step[4] : record.estimates[estimator][k]));
  const said = record.steps.map((step) => step[7]);
  const within = (value) => value !== null && value !== undefined && value >= 0 && value <= 1;
  const both = record.steps.map((_, k) => k).filter((k) => within(sure[k]) && within(said[k]));
  if (!both.length) return null;
  const [width, height] = [1000, 64];
  const count = Math.max(1, record.steps.at(-1)[3], (record.ids || []).length);
  const span = (k) => [record.steps[k][2], record.steps[k][3]].map((token) => (token / count) * width);
  const y = (value) => 3 + (1 - value) * (height - 6);
  const svg = document.createElementNS($("svg").namespaceURI, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "said-chart");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "decisiveness of the words and confidence of the model, step by step");
  const draw = (name, class_, attributes) => {
    const node = document.createElementNS(svg.namespaceURI, name);
    node.setAttribute("class", class_);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    svg.append(node);
  };
  for (const value of [0, 0.5, 1]) draw("line", "grid", { x1: 0, x2: width, y1: y(value), y2: y(value) });
  for (const k of both) {
    const [left, right] = span(k);
    const [top, bottom] = [Math.min(y(said[k]), y(sure[k])), Math.max(y(said[k]), y(sure[k]))];
    draw("rect", said[k] > sure[k] ? "over" : "under", { x: left, y: top, width: right - left, height: bottom - top });
  }
  for (const [values, class_] of [[said, "line words"], [sure, "line sure"]]) {
    for (const k of both) {
      const [left, right] = span(k);
      draw("line", class_, { x1: left, x2: right, y1: y(values[k]), y2: y(values[k]) });
    }
  }
  const mean = (values) => both.reduce((sum, k) => sum + values[k], 0) / both.length;
  const gap = mean(said) - mean(sure);
  const name = estimator === null ? "confidence" : estimator.replace(/_/g, " ");
  svg.addEventListener("click", (event) => {
    const { left, width: shown } = svg.getBoundingClientRect();
    const at = ((event.clientX - left) / shown) * count;
    const step = record.steps.findIndex((s) => at >= s[2] && at < s[3]);
    if (step >= 0) go(step);
  });
  return make("div", { class: "said-box" },
    make("p", { class: "legend" }, make("span", {}, make("i", { class: "words" }), `words ${fixed(mean(said))}`),
      make("span", {}, make("i", { class: "sure" }), `${name} ${fixed(mean(sure))}`),
      make("span", {}, `sounds ${fixed(Math.abs(gap))} ${gap < 0 ? "less sure" : "surer"} than the model is`)),
    make("div", { class: "said-axis" }, make("span", {}, "1"), make("span", {}, "0"), svg));
}
