// Traces: the list, the text with its confidences, the same question elsewhere.

const traceData = once(() => readData("data-traces"));
const chunk = (() => {
  const open = new Map(); // newest last; a few stay parsed
  return (k) => {
    if (!open.has(k)) open.set(k, readData(`chunk-${k}`));
    if (open.size > 24) open.delete(open.keys().next().value);
    return open.get(k);
  };
})();
/** What the silent tokens of a run's tokenizer are called. */
const namesOf = (run) => traceData().names[run] || {};
const traceRecord = (n) => {
  const { index } = traceData();
  return chunk(index.chunk[n])[index.place[n]];
};

const traceView = (() => {
  const state = { set: "0", filter: "all", sort: "file", search: "", measure: "entropy", shown: -1 };
  let list;
  let byQuestion;

  const filters = {
    all: () => true,
    right: (i, n) => i.correct[n] === 1,
    wrong: (i, n) => i.correct[n] === 0,
    flawed: (i, n) => i.flawed[n] === 1,
  };
  // gap: mean confidence minus share of right steps; boast: mean decisiveness of the words minus confidence.
  const last = (value, sign) => (value === null ? Infinity : sign * value);
  const sorts = {
    file: ["in file order", null],
    sure: ["most overconfident first", (i, n) => last(i.gap[n], -1)],
    unsure: ["most underconfident first", (i, n) => last(i.gap[n], 1)],
    gap: ["worst calibrated first", (i, n) => last(i.gap[n] === null ? null : Math.abs(i.gap[n]), -1)],
    boast: ["most overstated first", (i, n) => last(i.boast[n], -1)],
    modest: ["most understated first", (i, n) => last(i.boast[n], 1)],
    low: ["lowest confidence first", (i, n) => last(i.confidence[n], 1)],
    high: ["highest confidence first", (i, n) => last(i.confidence[n], -1)],
    long: ["longest first", (i, n) => -i.tokens[n]],
  };

  function members() {
    const { index, questions } = traceData();
    const wanted = state.search.trim().toLowerCase();
    const set = Number(state.set);
    const found = [];
    for (let n = 0; n < index.id.length; n += 1) {
      if (index.set[n] !== set || !filters[state.filter](index, n)) continue;
      if (wanted && !`${index.id[n]} ${questions[index.question[n]][1] || ""}`.toLowerCase().includes(wanted)) continue;
      found.push(n);
    }
    const by = sorts[state.sort][1];
    if (by) {
      const keys = new Map(found.map((n) => [n, by(index, n)]));
      found.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
    }
    return found;
  }

  function row(n) {
    const { index, questions } = traceData();
    const gap = index.gap[n];
    return [
      sign(index.correct[n]),
      make("span", { class: "main" }, make("b", {}, index.id[n]), make("small", {}, questions[index.question[n]][1] || "")),
      make("span", { class: "side" },
        make("b", { title: "confidence of the trace" }, fixed(index.confidence[n])),
        make("small", { title: "overconfidence: mean confidence minus share of right steps" },
          gap === null ? "" : `${gap < 0 ? "−" : "+"}${fixed(Math.abs(gap))}`)),
      index.flawed[n] ? make("i", { class: "flaw", title: "right answer through a wrong step" }) : null,
    ];
  }

  function refresh(keep) {
    const found = members();
    const { index } = traceData();
    const set = Number(state.set);
    const counts = Object.fromEntries(Object.keys(filters).map((name) => [name, 0]));
    for (let n = 0; n < index.id.length; n += 1) {
      if (index.set[n] === set) for (const name in filters) counts[name] += filters[name](index, n) ? 1 : 0;
    }
    segments($("trace-filter"),
      [["all", `all ${thousands(counts.all)}`], ["right", `✓ ${thousands(counts.right)}`, "answer right"],
        ["wrong", `✗ ${thousands(counts.wrong)}`, "answer wrong"],
        ["flawed", `✓ flawed ${thousands(counts.flawed)}`, "answer right, some step wrong"]],
      state.filter, (value) => ((state.filter = value), refresh()));
    list.set(found, keep);
    if (list.at < 0 && found.length) list.go(0, "filter");
    if (!found.length) $("trace").replaceChildren(make("p", { class: "none" }, "No trace matches."));
  }

  function questionBlock(n) {
    const { index, questions } = traceData();
    const [id, text, gold] = questions[index.question[n]];
    return make("div", { class: "asked" }, make("small", {}, `question ${id}`), make("p", {}, text || "(token ids only)"),
      gold === null ? null : make("p", { class: "gold" }, make("small", {}, "gold answer "), make("b", {}, gold)));
  }

  function facts(n, record) {
    const { index } = traceData();
    const items = [
      ["answer", record.answer === undefined ? "none" : record.answer],
      ["path confidence", fixed(record.path)],
      ["overconfidence", index.gap[n] === null ? null : `${index.gap[n] > 0 ? "+" : ""}${fixed(index.gap[n])}`],
      ["tokens", thousands(index.tokens[n])],
      ["ended by", record.finish],
      ["verifier", record.verifier],
      ["strategy", record.strategy],
      ["policy", record.policy],
    ];
    return make("dl", { class: "facts small" },
      ...items.filter(([, value]) => value !== undefined && value !== null && value !== "–")
        .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  /** The other traces of this question, a row of marks for each set. */
  function elsewhere(n) {
    const { index, sets } = traceData();
    if (!byQuestion) {
      byQuestion = new Map();
      index.question.forEach((q, k) => byQuestion.get(q)?.push(k) ?? byQuestion.set(q, [k]));
    }
    const others = byQuestion.get(index.question[n]);
    if (others.length < 2) return null;
    const rows = sets.map((set, s) => {
      const marks = others.filter((k) => index.set[k] === s);
      if (!marks.length) return null;
      const right = marks.filter((k) => index.correct[k] === 1).length;
      return make("div", {}, make("span", {}, setTitle(set, new Set(sets.map((x) => x.run)).size > 1)),
        make("span", { class: "marks" }, ...marks.map((k) =>
          make("button", { class: verdictOf(index.correct[k]).name, "aria-current": k === n,
            title: `${index.id[k]}, confidence ${fixed(index.confidence[k])}`, on: { click: () => jump(k) } },
          verdictOf(index.correct[k]).sign))),
        make("small", {}, `${right} of ${marks.length} right`));
    });
    return make("div", { class: "elsewhere" }, make("h3", {}, "The same question"), ...rows.filter(Boolean));
  }

  function jump(n) {
    const { index } = traceData();
    Object.assign(state, { set: String(index.set[n]), filter: "all", search: "" });
    $("trace-set").value = state.set;
    $("trace-search").value = "";
    refresh(n);
    open(n, "jump");
  }

  function open(n, by) {
    const { index, sets } = traceData();
    const names = namesOf(sets[index.set[n]].run);
    const record = traceRecord(n);
    state.shown = n;
    const estimators = Object.keys(record.estimates || {}).map((name) => `of:${name}`);
    const measures = [...Object.keys(MEASURES), ...estimators].filter((name) =>
      name === "step" ? record.steps.length
        : name === "decisiveness" ? record.steps.some((s) => s[7] !== null)
          : estimatorOf(name) !== null || (record.lengths && (name === "entropy" ? record.entropy : record.surprise)));
    const measure = measures.includes(state.measure) ? state.measure : measures[0];
    const text = make("div", { class: "text" });
    const goTo = (k) => {
      const block = text.querySelector(`[data-step="${k}"]`);
      block.scrollIntoView({ block: "center" });
      block.classList.add("flash");
      setTimeout(() => block.classList.remove("flash"), 900);
    };
    text.append(...textBlocks(record, names, measure));
    tipsOnText(text, () => ({ record, names }));
    const head = make("div", { class: "view-head" },
      make("h2", {}, sign(index.correct[n]), index.id[n],
        index.flawed[n] ? make("span", { class: "badge" }, "flawed: a step is wrong") : null),
      facts(n, record));
    const chooser = make("div", { class: "segments", role: "group", "aria-label": "Colour by" });
    const own = measures.filter((name) => estimatorOf(name) === null);
    const paint = (value) => ((state.measure = value), open(n, "measure"));
    segments(chooser, own.map((name) => [name, describe(name).title, describe(name).text]), measure, paint);
    const others = measures.length > own.length ? make("select", { "aria-label": "Colour by an estimator" }) : null;
    if (others) {
      fill(others, [["", "estimators …"], ...measures.filter((name) => !own.includes(name)).map((name) => [name, describe(name).title])]);
      others.value = own.includes(measure) ? "" : measure;
      others.addEventListener("change", () => others.value && paint(others.value));
    }
    const key = measure
      ? make("div", { class: "keyline" }, chooser, others, shadeKey(measure))
      : make("p", { class: "note" }, "This trace carries no confidences.");
    const note = sets[index.set[n]].tokens ? null
      : make("p", { class: "note" }, "No tokenizer at hand spells these traces, so they are shown by steps, not by tokens.");
    $("trace").replaceChildren(head, questionBlock(n), key,
      ...(measure ? [strip(record, measure, goTo), saidChart(record, measure, goTo)].filter(Boolean) : []), ...(note ? [note] : []), text, ...[elsewhere(n)].filter(Boolean));
    bringUp($("trace"), by);
    remember("traces", state.set, index.id[n]);
  }

  function start() {
    const { index, sets } = traceData();
    const several = new Set(sets.map((set) => set.run)).size > 1;
    list = new List($("trace-list"), 46, row, open);
    fill($("trace-set"), sets.map((set, k) => [k,
      setChoice(set, several)]));
    const known = { boast: index.boast, modest: index.boast, sure: index.gap, unsure: index.gap, gap: index.gap };
    const offered = Object.entries(sorts).filter(([name]) => !known[name] || known[name].some((value) => value !== null));
    fill($("trace-sort"), offered.map(([name, [text]]) => [name, text]));
    $("trace-set").addEventListener("change", (e) => ((state.set = e.target.value), refresh()));
    $("trace-sort").addEventListener("change", (e) => ((state.sort = e.target.value), refresh()));
    $("trace-search").addEventListener("input", (e) => ((state.search = e.target.value), refresh()));
    onTheme.push(() => document.querySelectorAll("canvas.strip").forEach((canvas) => canvas.redraw()));
  }

  return {
    open(rest = []) {
      const { index } = traceData();
      if (!list) {
        start();
        const n = rest.length > 1 ? index.id.findIndex((id, k) => id === rest[1] && String(index.set[k]) === rest[0]) : -1;
        if (n >= 0) jump(n);
        else refresh();
      } else if (state.shown >= 0) remember("traces", state.set, index.id[state.shown]);
    },
    key(event) {
      if (event.key === "/") {
        $("trace-search").focus();
        return true;
      }
      return list.key(event, document.activeElement === $("trace-list"));
    },
  };
})();
views.traces = traceView;
