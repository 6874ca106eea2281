// What the viewers share: elements, numbers, tabs, the theme, the tip at the pointer.

const $ = (id) => document.getElementById(id);

/** An element; children are elements or strings, and strings are only ever text. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const fixed = (value, digits = 2) =>
  value === null || value === undefined ? "–" : value.toFixed(digits).replace(/^(-?)0\./, "$1.");
const thousands = (value) => value.toLocaleString("en-US");

const readData = (id) => JSON.parse($(id).textContent);

/** The value of `load`, computed when it is first asked for. */
function once(load) {
  let value;
  let ready = false;
  return () => {
    if (!ready) [value, ready] = [load(), true];
    return value;
  };
}

const VERDICT = {
  1: { name: "right", sign: "✓" },
  0: { name: "wrong", sign: "✗" },
  null: { name: "unknown", sign: "?" },
};
const verdictOf = (value) => VERDICT[value === undefined ? null : value];
const sign = (value, title) => {
  const verdict = verdictOf(value);
  return make("span", { class: `sign ${verdict.name}`, title: title || verdict.name }, verdict.sign);
};

// ---- tabs -----------------------------------------------------------------------------------------------------------

const views = {}; // name -> { open(rest), key(event) }
let current = "summary";

function show(name, rest) {
  const tab = $(`tab-${name}`);
  if (!tab || tab.disabled) return;
  current = name;
  for (const other of document.querySelectorAll("[role=tab]")) {
    const chosen = other.dataset.tab === name;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    $(other.dataset.tab).hidden = !chosen;
  }
  document.body.dataset.view = name;
  hideTip();
  if (views[name]) views[name].open(rest);
}

/** Note in the address what is looked at, so that a reload or a copied link comes back to it. */
function remember(...parts) {
  const hash = `#${parts.map(encodeURIComponent).join("/")}`;
  if (location.hash === hash) return;
  try {
    history.replaceState(null, "", hash);
  } catch {
    // A page inside another one (an iframe's srcdoc, as notebooks have it) has no address of its own.
  }
}

function fromAddress() {
  const [name, ...rest] = location.hash.slice(1).split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  if (name && $(name) && $(`tab-${name}`)) show(name, rest);
}

const editable = (node) => node instanceof Element && node.matches("input, select, textarea");

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    hideTip();
    if (editable(event.target)) event.target.blur();
    return;
  }
  if (editable(event.target)) return;
  if (event.target instanceof Element && event.target.matches("[role=tab]") && /^Arrow(Left|Right)$/.test(event.key)) {
    const tabs = [...document.querySelectorAll("[role=tab]:not(:disabled)")];
    const step = event.key === "ArrowRight" ? 1 : tabs.length - 1;
    const next = tabs[(tabs.indexOf(event.target) + step) % tabs.length];
    next.focus();
    next.click();
    event.preventDefault();
    return;
  }
  if (views[current] && views[current].key && views[current].key(event)) event.preventDefault();
}

// ---- theme ----------------------------------------------------------------------------------------------------------

const onTheme = []; // what to draw again when colours change

function nextTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  for (const draw of onTheme) draw();
}

// ---- tip ------------------------------------------------------------------------------------------------------------

/** Show `content` (elements) beside a rectangle, inside the window. */
function showTip(rectangle, content) {
  const tip = $("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const page = document.documentElement;
  const left = Math.max(8, Math.min(rectangle.left, page.clientWidth - width - 8));
  const below = rectangle.bottom + 6;
  const top = below + height > page.clientHeight ? Math.max(8, rectangle.top - height - 6) : below;
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

function hideTip() {
  $("tip").hidden = true;
}

/** Tips over the elements of `root` that `find(target)` knows: it returns [element, content] or null. */
function tipsOver(root, find) {
  const look = (event) => {
    const found = find(event.target);
    if (found) showTip(found[0].getClientRects()[0] || found[0].getBoundingClientRect(), found[1]);
    else hideTip();
  };
  root.addEventListener("pointerover", look);
  root.addEventListener("click", look);
  root.addEventListener("pointerleave", hideTip);
}
