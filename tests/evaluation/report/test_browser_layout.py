"""The look of the report in a real browser: it fits its window, nothing overlaps, and its text can be read."""

import pytest

from tests.evaluation.report import browser
from tests.evaluation.report.browser import click, one

pytestmark = browser.needed

TABS = ("summary", "traces", "trees", "pairs", "provenance")
# Boxes that scroll on purpose; what is inside them may be wider than they are.
OVERFLOWS = """
const fits = (node) => node.closest('.scroll, .tree, .list, nav, #tip, select, svg, [hidden], .strip, .asked') === null;
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')].filter((node) => {
  if (!fits(node)) return false;
  const box = node.getBoundingClientRect();
  if (!box.width || !box.height) return false;
  const style = getComputedStyle(node);
  const cut = node.scrollWidth > node.clientWidth + 1 && style.overflowX !== 'visible' && style.display !== 'inline';
  return box.right > wide + 1 || box.left < -1 || (cut && style.textOverflow !== 'ellipsis');
}).map((node) => node.tagName + '.' + node.className + ' ' + node.textContent.trim().slice(0, 40));
"""
OVERLAPS = """
const groups = ['.controls > *', '.view-head > *', '.facts > div', 'article > *', 'nav > button', '.top > *',
  '.figures > figure', '#summary > *', '.step', '.side-block', '.elsewhere > div', '.track-row > *', '.node',
  '.manifests > *'];
const found = [];
for (const group of groups) {
  const boxes = [...document.querySelectorAll(group)].filter((n) => n.offsetParent !== null)
    .map((n) => [n, n.getBoundingClientRect()]).filter(([, b]) => b.width && b.height);
  for (let i = 0; i < Math.min(boxes.length, 60); i += 1) for (let j = i + 1; j < Math.min(boxes.length, 60); j += 1) {
    const [[a, p], [b, q]] = [boxes[i], boxes[j]];
    if (a.parentNode !== b.parentNode) continue;
    const [w, h] = [Math.min(p.right, q.right) - Math.max(p.left, q.left), Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top)];
    if (w > 1 && h > 1) found.push(group + ': ' + a.textContent.trim().slice(0, 20) + ' / ' + b.textContent.trim().slice(0, 20));
  }
}
return found;
"""
# Any two texts of the page, as far as they are seen: each line's box, cut by what scrolls or hides around it.
TEXTS = """
const lines = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const owner = node.parentElement;
  if (!node.data.trim() || owner.closest('script, style, noscript, select, title, [hidden]')) continue;
  if (owner.closest('details:not([open])') && !owner.closest('summary')) continue;  // folded away, yet it has boxes
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const rect of range.getClientRects()) {
    let [left, top, right, bottom] = [rect.left, rect.top, rect.right, rect.bottom];
    for (let at = owner; at && at !== document.body; at = at.parentElement) {
      if (getComputedStyle(at).overflowX === 'visible') continue;
      const box = at.getBoundingClientRect();
      [left, top, right, bottom] = [Math.max(left, box.left), Math.max(top, box.top), Math.min(right, box.right), Math.min(bottom, box.bottom)];
    }
    if (right - left > 1 && bottom - top > 1) lines.push({ node, left, top, right, bottom });
  }
}
lines.sort((a, b) => a.top - b.top);
const found = [];
lines.forEach((a, i) => {
  for (let j = i + 1; j < lines.length && lines[j].top < a.bottom; j += 1) {
    const b = lines[j];
    const [w, h] = [Math.min(a.right, b.right) - Math.max(a.left, b.left), Math.min(a.bottom, b.bottom) - b.top];
    if (a.node !== b.node && w > 2 && h > 4) found.push(a.node.data.trim().slice(0, 24) + ' / ' + b.node.data.trim().slice(0, 24));
  }
});
return found;
"""


@pytest.mark.parametrize("name", ["small", "evaluate", "faithfulness", "together"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overlaps_and_nothing_is_cut(look, width, dark, name, tmp_path):
    """At full height and with nothing folded away, so that everything is in sight; the screenshots stay where pytest keeps its folders."""
    driver = look(name, width=width, dark=dark)
    for tab in TABS:
        if not one(driver, f"#tab-{tab}").is_enabled():
            continue
        click(driver, f"#tab-{tab}")
        driver.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        wide, room, tall = driver.execute_script(
            "const d = document.documentElement; return [d.scrollWidth, d.clientWidth, d.scrollHeight]"
        )
        assert wide <= room, tab
        browser.resize(driver, width, max(900, tall), dark=dark)
        driver.save_screenshot(str(tmp_path / f"{tab}.png"))
        assert driver.execute_script(OVERFLOWS) == [], tab
        assert driver.execute_script(OVERLAPS) == [], tab
        assert driver.execute_script(TEXTS) == [], tab
        browser.resize(driver, width, 900, dark=dark)


def test_the_search_for_overlaps_finds_one(look):
    driver = look("small")
    driver.execute_script("document.querySelector('#summary h2').style.marginBottom = '-30px'")
    assert driver.execute_script(TEXTS) != []


def test_the_first_screen_says_what_was_found(look):
    for name, words in (
        ("small", "of the reasoning steps are right"),
        ("evaluate", "On graph (24 questions) CaT (4) is right most often: 0.850 [.750, .950] at 190 tokens"),
        ("faithfulness", "The words sound 0.55 sure, the model is 0.48 sure (entropy, 12 steps)"),
    ):
        driver = look(name, width=390)
        lead = one(driver, "#summary .lead")
        assert words in lead.text
        assert lead.location["y"] + lead.size["height"] < 844  # without scrolling, on a phone


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(look, dark):
    """WCAG AA: 4.5 to 1, for text on every shade and on the page."""
    driver = look("small", dark=dark)
    ratios = driver.execute_script(
        """
        const style = getComputedStyle(document.documentElement);
        const box = document.body.appendChild(document.createElement('i'));
        const light = (name) => {
          box.style.color = style.getPropertyValue(name).trim();
          const [r, g, b] = getComputedStyle(box).color.match(/[\\d.]+/g).map((v) => {
            const c = v / 255;
            return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const pairs = [['--ink', '--paper'], ['--ink', '--surface'], ['--soft', '--surface'], ['--soft', '--paper'],
          ['--accent', '--accent-wash'], ['--wrong', '--surface'], ['--right', '--surface'], ['--on6', '--h6'],
          ['--ink', '--h1'], ['--ink', '--h2'], ['--ink', '--h3'], ['--ink', '--h4'], ['--ink', '--h5']];
        const found = pairs.map(([a, b]) => {
          const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
          return [a + ' on ' + b, (x + 0.05) / (y + 0.05)];
        });
        box.remove();
        return found;
        """
    )
    assert {name: round(ratio, 2) for name, ratio in ratios if ratio < 4.5} == {}


def test_the_theme_can_be_turned(look):
    driver = look("small")
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(ground)
    click(driver, "#theme")
    assert driver.execute_script(ground) != before
