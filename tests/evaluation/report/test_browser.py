"""The report in a real browser: it opens clean, answers to clicks and keys, fits its window, and runs nothing."""

import time

import pytest

from caspo_jax.evaluation.report import write_report
from tests.evaluation.report import browser
from tests.evaluation.report.runs import (
    HOSTILE,
    evaluate_run,
    faithfulness_run,
    large_run,
    long_run,
    small_run,
)

WHY = browser.missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

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


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """name -> report file."""
    root = tmp_path_factory.mktemp("pages")
    made = {
        "small": small_run,
        "evaluate": evaluate_run,
        "faithfulness": faithfulness_run,
        "long": long_run,
        "large": large_run,
    }
    found = {name: write_report([make(root / name)], root / f"{name}.html") for name, make in made.items()}
    runs = [root / name for name in ("small", "evaluate", "faithfulness")]
    return found | {"together": write_report(runs, root / "together.html", title="Three runs")}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def look(driver, pages):
    """look(page, tab, width, dark) opens a page at a tab; afterwards the console must be clean and nothing have run."""

    def open_page(name, tab="summary", width=1280, dark=False):
        browser.resize(driver, width, 900, dark=dark)
        driver.get("about:blank")
        driver.get(pages[name].as_uri())
        click(driver, f"#tab-{tab}")
        return driver

    yield open_page
    assert browser.console_errors(driver) == []
    assert driver.execute_script("return window.pwned") is None


def one(driver, selector):
    return driver.find_element("css selector", selector)


def every(driver, selector):
    return driver.find_elements("css selector", selector)


def click(driver, selector):
    one(driver, selector).click()


def press(driver, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def text(driver, selector):
    return driver.execute_script("return document.querySelector(arguments[0]).textContent", selector)


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


def test_decisiveness_stands_beside_confidence(look):
    """The chart of both, and the estimators to choose from; the step's number follows the choice."""
    driver = look("faithfulness", "traces")
    assert len(every(driver, ".said-chart .words")) == len(every(driver, ".said-chart .sure")) == 3
    assert "words .55" in text(driver, ".said-box")
    assert "confidence .40" in text(driver, ".said-box")
    assert "sounds .15 surer than the model is" in text(driver, ".said-box")
    driver.execute_script(
        "const s = document.querySelector('#trace .keyline select'); s.value = 'of:prefix'; s.dispatchEvent(new Event('change'))"
    )
    assert "prefix .50" in text(driver, ".said-box")
    assert [e.text for e in every(driver, "#trace .step .value")] == [
        ".50"
    ]  # of the one step that was sampled
    values = driver.execute_script(
        "return [...document.getElementById('trace-sort').options].map((o) => o.value)"
    )
    assert "boast" in values


def test_tabs_and_trees_answer_to_keys_alone(look):
    driver = look("small")
    press(driver, "\ue014")  # arrow right, from the tab that was clicked
    assert driver.execute_script("return document.body.dataset.view") == "traces"
    press(driver, "\ue014")
    assert driver.execute_script("return document.body.dataset.view") == "trees"
    assert driver.execute_script("return document.activeElement.id") == "tab-trees"
    press(driver, "\ue004", "\ue004")  # tab: past the theme, into the view
    assert driver.execute_script("return document.activeElement.closest('#trees') !== null")


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


def test_tables_sort_up_and_down(look):
    driver = look("small")
    head = "#summary table.sortable th:nth-child(2) button"
    cells = "#summary table.sortable:first-of-type tbody tr td:first-child"

    def order():
        table = one(driver, "#summary table.sortable")
        return [c.text for c in table.find_elements("css selector", "tbody tr td:first-child")]

    assert every(driver, cells)
    click(driver, head)
    assert order() == ["base", "round_1"]
    click(driver, head)
    assert order() == ["round_1", "base"]


def test_traces_step_by_key_filter_and_sort(look):
    driver = look("small", "traces")
    assert text(driver, "#trace h2").startswith("✓q1/0")
    press(driver, "j", "j")
    assert "q1/2" in text(driver, "#trace h2")
    assert "flawed" in text(driver, "#trace h2")
    press(driver, "k")
    assert "q1/1" in text(driver, "#trace h2")
    for value, ids in (
        ("right", ["q1/0", "q1/2", "q2/0"]),
        ("wrong", ["q1/1"]),
        ("flawed", ["q1/2", "q2/0"]),
    ):
        click(driver, f"#trace-filter [data-value={value}]")
        assert [e.text for e in every(driver, "#trace-list .main b")] == ids
    click(driver, "#trace-filter [data-value=all]")
    driver.execute_script(
        "const s = document.getElementById('trace-sort'); s.value = 'sure'; s.dispatchEvent(new Event('change'))"
    )
    assert every(driver, "#trace-list .main b")[0].text == "q1/1"  # sure (.80) and wrong
    one(driver, "#trace-search").send_keys("q2")
    assert [e.text for e in every(driver, "#trace-list .main b")] == ["q2/0"]
    assert driver.current_url.endswith("#traces/0/q2%2F0")


def test_the_text_shown_is_the_text_written_and_tips_give_numbers(look):
    driver = look("small", "traces")
    one(driver, "#trace-search").send_keys("q2")
    blocks = driver.execute_script(
        "return [...document.querySelectorAll('#trace .body')].map((b) => b.textContent)"
    )
    assert HOSTILE in "".join(blocks)
    assert "🤖" in blocks[0]
    assert blocks[0].endswith("\n\n")
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).move_to_element(every(driver, "#trace .c")[2]).perform()
    assert one(driver, "#tip").is_displayed()
    assert "token 2" in one(driver, "#tip").text
    assert "exp(−H)" in one(driver, "#tip").text
    press(driver, "\ue00c")  # escape
    assert not one(driver, "#tip").is_displayed()


def test_decisiveness_is_shown_where_it_is_known(look):
    driver = look("small", "traces")
    assert "says .25" in text(driver, "#trace .step")
    click(driver, "#trace [data-value=decisiveness]")
    # Doubt 1 - .25 lies between .65 and .85: the fifth shade.
    assert every(driver, "#trace .step .c")[0].get_attribute("class") == "c h5"
    press(driver, "j")
    assert not every(driver, "#trace [data-value=decisiveness]")


def test_the_same_question_leads_to_its_other_traces(look):
    driver = look("small", "traces")
    marks = every(driver, ".elsewhere .marks button")
    assert len(marks) == 4  # three samples, and the path of the tree
    marks[3].click()
    assert one(driver, "#trace-set").get_attribute("value") == "1"


def test_the_tree_shows_each_branch_and_the_text_behind_a_click(look):
    driver = look("small", "trees")
    assert len(every(driver, "#tree .node")) == 4
    ends = {e.get_attribute("class").split()[-1]: e.text for e in every(driver, "#tree .end")}
    assert ".41" in ends["pruned"]
    assert ".80" in ends["pruned"]
    assert "42" in ends["finished"]
    assert "weight 1.00" in ends["finished"]
    click(driver, "#tree .node.pruned")
    assert "Six times" in text(driver, "#tree-path .text")
    press(driver, "\ue015")  # arrow down: the next root
    assert "First, 6 × 7." in text(driver, "#tree-path .text")
    press(driver, "\ue014")  # arrow right: its first child
    assert "So 42." in text(driver, "#tree-path .text")
    assert text(driver, "#tree-path .text").count("First, 6 × 7.") == 1


def test_a_pair_shows_both_sides_before_and_after(look):
    driver = look("small", "pairs")
    assert "42" in text(driver, ".side-block.chosen .body")
    assert "48" in text(driver, ".side-block.rejected .body")
    assert "base → round_1" in text(driver, ".change")
    assert len(every(driver, ".track i")) == 4
    press(driver, "j")
    assert HOSTILE.strip() in text(driver, ".side-block.chosen .body")
    assert not every(driver, ".change")  # not scored


def test_the_theme_can_be_turned(look):
    driver = look("small")
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(ground)
    click(driver, "#theme")
    assert driver.execute_script(ground) != before


def test_a_hostile_trace_of_twenty_thousand_tokens_is_harmless_and_quick(look):
    driver = look("long", "traces")
    tokens = driver.execute_script(
        "return [...document.querySelectorAll('#trace .c')].reduce((sum, c) => sum + Number(c.dataset.n), 0)"
    )
    assert tokens >= 20_000
    assert driver.execute_script("return document.querySelectorAll('#trace script, #trace img').length") == 0
    assert HOSTILE in text(driver, "#trace .body")
    assert browser.busy_seconds(driver) < 10
    wide, room = driver.execute_script(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert wide <= room


def test_ten_thousand_traces_stay_usable(look):
    driver = look("large", "traces")
    assert "10,000" in text(driver, "#trace-filter")
    loaded = browser.busy_seconds(driver)
    assert loaded < 6
    assert driver.execute_script("return document.querySelectorAll('#trace-list .row').length") < 60
    driver.execute_script(
        """
        for (let k = 0; k < 50; k += 1) document.dispatchEvent(new KeyboardEvent('keydown', { key: 'j' }));
        const select = document.getElementById('trace-sort');
        select.value = 'gap';
        select.dispatchEvent(new Event('change'));
        document.querySelector('#trace-filter [data-value=flawed]').click();
        """
    )
    assert browser.busy_seconds(driver) - loaded < 6
    assert "3,333" in text(driver, "#trace-filter [data-value=flawed]")
    list_ = one(driver, "#trace-list")
    driver.execute_script("arguments[0].scrollTop = arguments[0].scrollHeight", list_)
    time.sleep(0.2)
    assert "q1249" in every(driver, "#trace-list .main b")[-1].text
