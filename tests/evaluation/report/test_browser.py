"""The report at work in a real browser: it opens clean, answers to clicks and keys, stays quick, and runs nothing."""

import time

from tests.evaluation.report import browser
from tests.evaluation.report.browser import click, every, one, press, text
from tests.evaluation.report.records import HOSTILE

pytestmark = browser.needed


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


def test_a_page_inside_another_works_without_an_address(look, pages):
    """A notebook shows it by `srcdoc` of an iframe."""
    driver = look("small")
    driver.get("about:blank")
    page = pages["small"].read_text(encoding="utf-8")
    driver.execute_script(
        "const f = document.body.appendChild(document.createElement('iframe')); f.srcdoc = arguments[0]", page
    )
    time.sleep(1)
    driver.switch_to.frame(0)
    try:
        click(driver, "#tab-traces")
        press(driver, "j")
        assert "q1/1" in text(driver, "#trace h2")
    finally:
        driver.switch_to.default_content()
