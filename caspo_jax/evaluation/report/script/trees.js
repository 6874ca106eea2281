// CaT trees: branches over a token axis, as buttons, so that keys and screen readers reach every node.

const treeData = once(() => readData("data-trees"));

const treeView = (() => {
  const ROW = 46;
  const state = { set: "0", filter: "all", shown: -1, node: 0 };
  let list;

  const winner = (tree) => (tree.answers.length ? tree.answers[0][0] : null);
  const isRight = (tree) => (tree.gold === null || winner(tree) === null ? null : Number(leaderRight(tree)));
  function leaderRight(tree) {
    const path = tree.nodes.find((node) => node.answer === winner(tree));
    return path && path.right !== null && path.right !== undefined ? path.right : winner(tree) === tree.gold;
  }
  const pruned = (tree) => tree.nodes.filter((node) => node.status === "pruned").length;
  const filters = {
    all: () => true,
    right: (tree) => isRight(tree) === 1,
    wrong: (tree) => isRight(tree) === 0,
    pruned: (tree) => pruned(tree) > 0,
  };

  function row(n) {
    const tree = treeData().trees[n];
    return [
      sign(isRight(tree)),
      make("span", { class: "main" }, make("b", {}, tree.question), make("small", {}, tree.text || "")),
      make("span", { class: "side" }, make("b", { title: "answer" }, winner(tree) ?? "–"),
        make("small", {}, pruned(tree) ? `${pruned(tree)} pruned` : "")),
    ];
  }

  /** Where nodes stand: first token, lane; the first child goes on in its parent's lane. */
  function layout(tree) {
    const children = tree.nodes.map(() => []);
    const roots = [];
    tree.nodes.forEach((node, i) => (node.parent < 0 ? roots : children[node.parent]).push(i));
    const start = [];
    const lane = [];
    let lanes = 0;
    const stack = roots.slice().reverse().map((i) => [i, 0, true]);
    while (stack.length) {
      const [i, at, fresh] = stack.pop();
      start[i] = at;
      lane[i] = fresh ? lanes++ : lane[tree.nodes[i].parent];
      const end = at + tree.nodes[i].ids.length;
      // The first child is popped first and stays in the lane; its siblings open lanes below everything under it.
      for (let c = children[i].length - 1; c >= 0; c -= 1) stack.push([children[i][c], end, c > 0]);
    }
    const tokens = Math.max(1, ...tree.nodes.map((node, i) => start[i] + node.ids.length));
    return { children, roots, start, lane, lanes, tokens };
  }

  const WHY = { answers: "enough answers", budget: "budget spent", length: "length limit", delimiter: "" };
  const outcome = {
    finished: (node) => ["→ ", make("b", {}, node.answer ?? "no answer"),
      node.right === null || node.right === undefined ? "" : node.right ? " ✓" : " ✗",
      make("small", {}, node.weight === null || node.weight === undefined ? "duplicate, no weight" : `weight ${fixed(node.weight)}`)],
    pruned: (node, tree) => [make("b", {}, "✂ pruned"), make("small", {}, belowText(node, tree))],
    expired: (node) => [make("b", {}, "stopped"), make("small", {}, WHY[node.reason] || node.reason || "")],
    live: () => [make("b", {}, "unfinished")],
  };
  const belowText = (node, tree) =>
    tree.threshold === null ? node.reason || "" : `${fixed(node.confidence)}, path ${fixed(node.path)}, below ${fixed(tree.threshold)}`;

  function draw(tree) {
    const plan = layout(tree);
    const box = make("div", { class: "tree", tabindex: "-1" });
    const room = Math.max(280, $("tree").clientWidth - 64) - 158;
    const least = Math.max(2, Math.min(9, 3000 / plan.tokens)); // a long tree scrolls, but not for ever
    const scale = Math.min(30, Math.max(least, room / plan.tokens));
    const width = Math.ceil(plan.tokens * scale) + 14;
    const canvas = make("div", { class: "canvas" });
    canvas.style.width = `${width + 144}px`;
    canvas.style.height = `${plan.lanes * ROW + 24}px`;
    const svg = document.createElementNS($("svg").namespaceURI, "svg");
    svg.setAttribute("width", width);
    svg.setAttribute("height", plan.lanes * ROW + 24);
    svg.setAttribute("aria-hidden", "true");
    const line = (d, class_) => {
      const path = document.createElementNS(svg.namespaceURI, "path");
      path.setAttribute("d", d);
      path.setAttribute("class", class_);
      svg.append(path);
    };
    const x = (token) => 10 + token * scale;
    const y = (lane) => 12 + lane * ROW;
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((step) => step * scale >= 60) || 2000;
    for (let t = 0; t <= plan.tokens; t += every) {
      line(`M${x(t)} 0V${plan.lanes * ROW}`, "rule");
      const mark = make("span", { class: "mark" }, t === 0 ? "0 tokens" : String(t));
      mark.style.transform = `translate(${x(t)}px, ${plan.lanes * ROW + 4}px)`;
      canvas.append(mark);
    }
    line(`M4 ${y(0) + 11}V${y(Math.max(...plan.roots.map((i) => plan.lane[i]))) + 11}`, "link");
    tree.nodes.forEach((node, i) => {
      const from = node.parent < 0 ? 4 : x(plan.start[node.parent] + tree.nodes[node.parent].ids.length) - 4;
      const top = node.parent < 0 ? y(plan.lane[i]) + 11 : y(plan.lane[node.parent]) + 22;
      if (node.parent < 0) line(`M4 ${top}H${x(0)}`, "link");
      else if (plan.lane[i] !== plan.lane[node.parent]) {
        line(`M${from} ${top}V${y(plan.lane[i]) + 5}Q${from} ${y(plan.lane[i]) + 11} ${from + 5} ${y(plan.lane[i]) + 11}`, "link");
      }
    });
    canvas.prepend(svg);
    tree.nodes.forEach((node, i) => {
      const level = shade(node.confidence);
      const bar = make("button", {
        class: `node ${node.status}${level > 0 ? ` h${level}` : ""}`, "data-node": i, "aria-pressed": String(i === state.node),
        "aria-label": `${node.status} node, confidence ${fixed(node.confidence)}: ${node.text.trim()}`,
        on: { click: () => pick(i) },
      }, node.text.trim().replace(/\s*\n\s*/g, " ↵ ") || (node.ids.length ? "∅" : ""));
      bar.style.width = `${Math.max(6, node.ids.length * scale - 3)}px`;
      bar.style.transform = `translate(${x(plan.start[i]) + 1}px, ${y(plan.lane[i])}px)`;
      canvas.append(bar);
      const under = make("span", { class: "under" }, node.confidence === null ? "" : fixed(node.confidence));
      under.style.width = bar.style.width;
      under.style.transform = `translate(${x(plan.start[i]) + 1}px, ${y(plan.lane[i]) + 23}px)`;
      if (node.status === "closed") canvas.append(under);
      if (!plan.children[i].length && outcome[node.status]) {
        const end = make("span", { class: `end ${node.status}` }, ...outcome[node.status](node, tree));
        end.style.transform = `translate(${x(plan.start[i] + node.ids.length) + 4}px, ${y(plan.lane[i]) - 4}px)`;
        canvas.append(end);
      }
    });
    box.append(canvas);
    tipsOver(canvas, (target) => {
      const bar = target instanceof Element ? target.closest(".node") : null;
      return bar ? [bar, nodeTip(tree, Number(bar.dataset.node))] : null;
    });
    return { box, plan };
  }

  function nodeTip(tree, i) {
    const node = tree.nodes[i];
    const rows = [
      ["status", node.reason && node.reason !== node.status ? `${node.status} (${node.reason})` : node.status],
      ["step confidence", fixed(node.confidence, 3)],
      ["path confidence", fixed(node.path, 3)],
      ["tokens", String(node.ids.length)],
    ];
    if (node.status === "pruned" && tree.threshold !== null) rows.push(["pruned below", fixed(tree.threshold, 3)]);
    if (node.total !== undefined) rows.push(["path log-prob", `${fixed(node.total, 2)} nats`]);
    return [make("table", {}, make("tbody", {}, ...rows.map(([a, b]) => make("tr", {}, make("td", {}, a), make("td", {}, b)))))];
  }

  /** The path from the root to a node as a record that the text view can show. */
  function pathRecord(tree, i) {
    const chain = [];
    for (let at = i; at >= 0; at = tree.nodes[at].parent) chain.unshift(at);
    const record = { text: "", ids: [], lengths: [], entropy: [], surprise: [], steps: [] };
    for (const at of chain) {
      const node = tree.nodes[at];
      const [chars, tokens] = [record.text.length, record.ids.length];
      record.text += node.text;
      for (const field of ["ids", "lengths", "entropy", "surprise"]) record[field].push(...node[field]);
      const body = node.text.replace(/\n+$/, "");
      record.steps.push([chars, chars + body.length, tokens, record.ids.length, node.confidence, null, null, null]);
    }
    return { record, chain };
  }

  let drawn;
  function pick(i, focus) {
    const tree = treeData().trees[state.shown];
    state.node = i;
    for (const bar of $("tree").querySelectorAll(".node")) bar.setAttribute("aria-pressed", String(Number(bar.dataset.node) === i));
    const bar = $("tree").querySelector(`[data-node="${i}"]`);
    if (focus && bar) {
      bar.focus({ preventScroll: true });
      bar.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    const names = namesOf(treeData().sets[tree.set].run);
    const { record, chain } = pathRecord(tree, i);
    const text = make("div", { class: "text" }, ...textBlocks(record, names, "entropy"));
    [...text.children].forEach((block, k) => {
      const node = tree.nodes[chain[k]];
      block.classList.toggle("chosen", chain[k] === i);
      block.querySelector(".head").replaceChildren(make("b", {}, String(k + 1)),
        make("span", { class: "value" }, fixed(node.confidence)),
        ...(node.confidence >= 0 && node.confidence <= 1 && node.confidence !== null ? [meter(node.confidence)] : []));
    });
    tipsOnText(text, () => ({ record, names }));
    $("tree-path").replaceChildren(make("h3", {}, `Path to this node (${tree.nodes[i].status})`, shadeKey("entropy")), text);
  }

  function open(n, by) {
    const { trees, sets } = treeData();
    const tree = trees[n];
    state.shown = n;
    const votes = make("dl", { class: "facts small" },
      ...tree.answers.map(([answer, weight], k) =>
        make("div", { class: k ? "" : "lead" }, make("dt", {}, `${k ? "" : "voted "}${answer}`), make("dd", {}, fixed(weight)))),
      make("div", {}, make("dt", {}, "vote"), make("dd", {}, sets[tree.set].vote)),
      make("div", {}, make("dt", {}, "threshold"), make("dd", {}, fixed(tree.threshold))),
      make("div", {}, make("dt", {}, "nodes"), make("dd", {}, String(tree.nodes.length))),
      make("div", {}, make("dt", {}, "tokens"), make("dd", {}, thousands(tree.nodes.reduce((a, node) => a + node.ids.length, 0)))));
    const asked = make("div", { class: "asked" }, make("small", {}, `question ${tree.question}`),
      make("p", {}, tree.text || "(token ids only)"),
      tree.gold === null ? null : make("p", { class: "gold" }, make("small", {}, "gold answer "), make("b", {}, tree.gold)));
    $("tree").replaceChildren(
      make("div", { class: "view-head" }, make("h2", {}, sign(isRight(tree)), tree.question), votes), asked,
      make("div", { class: "keyline" }, make("span", { class: "keys" },
        make("i", { class: "k finished" }), "finished", make("i", { class: "k pruned" }), "pruned",
        make("i", { class: "k expired" }), "stopped"), shadeKey("step")));
    drawn = draw(tree);
    $("tree").append(drawn.box, make("div", { id: "tree-path" }));
    const best = tree.nodes.findIndex((node) => node.status === "finished" && node.answer === winner(tree));
    pick(best >= 0 ? best : 0);
    bringUp($("tree"), by);
    remember("trees", state.set, tree.question);
  }

  function step(event) {
    const tree = treeData().trees[state.shown];
    const { children, roots } = drawn.plan;
    const parent = tree.nodes[state.node].parent;
    const family = parent < 0 ? roots : children[parent];
    const at = family.indexOf(state.node);
    const next = { ArrowRight: children[state.node][0], ArrowLeft: parent, ArrowDown: family[at + 1], ArrowUp: family[at - 1] }[event.key];
    if (!/^Arrow/.test(event.key)) return false;
    if (next !== undefined && next >= 0) pick(next, true);
    return true;
  }

  function refresh(keep) {
    const { trees } = treeData();
    const inSet = trees.map((_, n) => n).filter((n) => trees[n].set === Number(state.set));
    const count = (name) => inSet.filter((n) => filters[name](trees[n])).length;
    segments($("tree-filter"), [["all", `all ${count("all")}`], ["right", `✓ ${count("right")}`, "voted answer right"],
      ["wrong", `✗ ${count("wrong")}`, "voted answer wrong"], ["pruned", `✂ ${count("pruned")}`, "some branch was pruned"]],
    state.filter, (value) => ((state.filter = value), refresh()));
    const found = inSet.filter((n) => filters[state.filter](trees[n]));
    list.set(found, keep);
    if (found.length) list.go(Math.max(0, list.at), "filter");
    else $("tree").replaceChildren(make("p", { class: "none" }, "No tree matches."));
  }

  return {
    open(rest = []) {
      const { sets, trees } = treeData();
      if (list) {
        if (state.shown >= 0) remember("trees", state.set, trees[state.shown].question);
        return;
      }
      list = new List($("tree-list"), 46, row, open);
      const several = new Set(sets.map((set) => set.run)).size > 1;
      fill($("tree-set"), sets.map((set, k) => [k,
        setChoice(set, several)]));
      $("tree-set").addEventListener("change", (e) => ((state.set = e.target.value), refresh()));
      const n = rest.length > 1 ? trees.findIndex((t) => String(t.set) === rest[0] && t.question === rest[1]) : -1;
      if (n >= 0) state.set = $("tree-set").value = rest[0];
      refresh(n >= 0 ? n : undefined);
    },
    key: (event) => (document.activeElement !== $("tree-list") && /^Arrow/.test(event.key) ? step(event) : list.key(event)),
  };
})();
views.trees = treeView;
