// Preference pairs: chosen against rejected, and what training did to both.

const pairData = once(() => readData("data-pairs"));

const pairView = (() => {
  const state = { set: "0", sort: "file", shown: -1 };
  let list;
  const KIND = { wrong: "wrong step", low_confidence_correct: "unsure step" };

  /** Log-prob of chosen minus rejected under the k-th policy that scored the pair; negative k counts from the end. */
  const margin = (pair, k) => {
    const [chosen, rejected] = pair.sides.map((side) => side.scores.at(k));
    return chosen && rejected ? chosen.total - rejected.total : null;
  };
  const moved = (pair) => (pair.sides[0].scores.length < 2 ? null : margin(pair, -1) - margin(pair, 0));
  const worst = (value, order) => (value === null ? Infinity : order * value);
  const sorts = {
    file: ["in file order", null],
    gain: ["margin grew most", (pair) => worst(moved(pair), -1)],
    loss: ["margin fell most", (pair) => worst(moved(pair), 1)],
    sure: ["surest rejected first", (pair) => worst(pair.sides[1].confidence, -1)],
    unsure: ["least sure chosen first", (pair) => worst(pair.sides[0].confidence, 1)],
  };
  const signed = (value) => (value === null ? "" : `${value < 0 ? "−" : "+"}${fixed(Math.abs(value), 1)}`);

  function row(n) {
    const pair = pairData().pairs[n];
    const [chosen, rejected] = pair.sides;
    return [
      make("span", { class: "main" }, make("b", {}, chosen.text.trim()), make("small", {}, rejected.text.trim())),
      make("span", { class: "side" },
        make("b", { title: "how much training changed the margin, nats" }, signed(moved(pair))),
        make("small", {}, `${fixed(chosen.confidence)} / ${fixed(rejected.confidence)}`)),
    ];
  }

  function sideBlock(pair, side, title, class_, names) {
    const record = { ...side, steps: [] };
    const latest = side.scores.at(-1);
    const measured = latest && latest.surprise && side.lengths;
    if (measured) record.surprise = side.scores[0].surprise;
    const body = make("div", { class: "body" });
    const cells = cellsOf(record);
    if (cells) {
      const closing = cells.findLastIndex((cell) => /[^\n]/.test(record.text.slice(cell[2], cell[3])));
      cells.forEach((cell, k) => {
        const node = cellElement(record, cell, names, measured ? shade(cellValue(record, cell, "probability")) : -1, k >= closing);
        if (cell[0] < pair.shared) node.classList.add("shared");
        body.append(node);
      });
      if (measured) tipsOver(body, (target) => pairTip(target, body, side));
    } else body.append(side.text);
    return make("div", { class: `side-block ${class_}` },
      make("h3", {}, sign(side.verdict), title, make("small", {}, `confidence ${fixed(side.confidence)}`)),
      make("div", { class: "text" }, make("div", { class: "step" }, body)));
  }

  function pairTip(target, body, side) {
    const cell = target instanceof Element ? target.closest(".c[data-i]") : null;
    if (!cell || !body.contains(cell)) return null;
    const i = Number(cell.dataset.i);
    const rows = side.scores.filter((score) => score.surprise).map((score) =>
      make("tr", {}, make("td", {}, score.policy), make("td", {}, `p ${fixed(Math.exp(-score.surprise[i] / 1000), 3)}`)));
    return [cell, [make("table", {}, make("tbody", {}, ...rows))]];
  }

  /** Log-probs of both sides under each policy, on one scale: where training moved them. */
  function change(pair) {
    const [chosen, rejected] = pair.sides;
    if (!chosen.scores.length) return null;
    const totals = pair.sides.flatMap((side) => side.scores.map((score) => score.total));
    const low = Math.min(...totals, -1);
    const place = (value) => `${(100 * (value - low)) / (0 - low || 1)}%`;
    const rows = [["chosen", chosen, "right"], ["rejected", rejected, "wrong"]].map(([name, side, class_]) => {
      const track = make("span", { class: "track" });
      const ends = side.scores.map((score) => score.total);
      if (ends.length > 1) {
        const bar = make("u", { class: class_ });
        bar.style.left = place(Math.min(ends[0], ends.at(-1)));
        bar.style.width = `${(100 * Math.abs(ends.at(-1) - ends[0])) / (0 - low || 1)}%`;
        track.append(bar);
      }
      side.scores.forEach((score, k) => {
        const dot = make("i", { class: `${class_}${k === side.scores.length - 1 ? "" : " before"}`, title: `${score.policy}: ${fixed(score.total)} nats` });
        dot.style.left = place(score.total);
        track.append(dot);
      });
      return make("div", { class: "track-row" }, make("span", {}, name), track,
        make("span", { class: "value" }, side.scores.map((score) => fixed(score.total, 1)).join(" → ")));
    });
    const names = chosen.scores.map((score) => score.policy).join(" → ");
    const margins = chosen.scores.map((_, k) => fixed(margin(pair, k), 1)).join(" → ");
    return make("div", { class: "change" }, make("h3", {}, "Before and after"),
      make("p", { class: "note" }, `Log-prob of the whole step in nats, ${names}. Hollow: before. Margin: chosen minus rejected.`), ...rows,
      make("div", { class: "track-row" }, make("span", {}, "margin"), make("span", { class: "track none" }),
        make("span", { class: "value" }, margins)));
  }

  function open(n, by) {
    const { pairs, sets } = pairData();
    const pair = pairs[n];
    const names = namesOf(sets[pair.set].run);
    state.shown = n;
    const items = [["kind", KIND[pair.kind] || pair.kind], ["trace", pair.trace], ["step", pair.step === null ? null : String(pair.step + 1)],
      ["shared tokens", String(pair.shared)]];
    const scored = pair.sides[0].scores.length > 0 && pair.sides[0].lengths;
    $("pair").replaceChildren(...[
      make("div", { class: "view-head" }, make("h2", {}, `Pair ${pair.id}`),
        make("dl", { class: "facts small" }, ...items.filter(([, value]) => value)
          .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))))),
      make("div", { class: "asked" }, make("small", {}, "prompt"), make("p", {}, pair.prompt),
        pair.prefix ? make("small", {}, "verified steps before") : null,
        pair.prefix ? make("p", { class: "prefix" }, pair.prefix.trim()) : null),
      scored ? make("div", { class: "keyline" },
        make("span", { class: "note" }, `Shaded by token probability under ${pair.sides[0].scores[0].policy}`), shadeKey("probability")) : null,
      make("div", { class: "sides" }, sideBlock(pair, pair.sides[0], "chosen", "chosen", names),
        sideBlock(pair, pair.sides[1], "rejected", "rejected", names)),
      change(pair),
    ].filter(Boolean));
    bringUp($("pair"), by);
    remember("pairs", state.set, pair.id);
  }

  function refresh(keep) {
    const { pairs } = pairData();
    const found = pairs.map((_, n) => n).filter((n) => pairs[n].set === Number(state.set));
    const by = sorts[state.sort][1];
    if (by) {
      const keys = new Map(found.map((n) => [n, by(pairs[n])]));
      found.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
    }
    list.set(found, keep);
    if (found.length) list.go(Math.max(0, list.at), "filter");
    else $("pair").replaceChildren(make("p", { class: "none" }, "No pairs in this file."));
  }

  return {
    open(rest = []) {
      const { sets, pairs } = pairData();
      if (list) {
        if (state.shown >= 0) remember("pairs", state.set, pairs[state.shown].id);
        return;
      }
      list = new List($("pair-list"), 46, row, open);
      const several = new Set(sets.map((set) => set.run)).size > 1;
      fill($("pair-set"), sets.map((set, k) => [k,
        setChoice(set, several)]));
      fill($("pair-sort"), Object.entries(sorts).map(([name, [text]]) => [name, text]));
      $("pair-set").addEventListener("change", (e) => ((state.set = e.target.value), refresh()));
      $("pair-sort").addEventListener("change", (e) => ((state.sort = e.target.value), refresh()));
      const n = rest.length > 1 ? pairs.findIndex((p) => String(p.set) === rest[0] && p.id === rest[1]) : -1;
      if (n >= 0) state.set = $("pair-set").value = rest[0];
      refresh(n >= 0 ? n : undefined);
    },
    key: (event) => list.key(event, document.activeElement === $("pair-list")),
  };
})();
views.pairs = pairView;
