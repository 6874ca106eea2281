"""Reports of all kinds of runs, and a browser that looks at them."""

import pytest

from caspo_jax.evaluation.report import write_report
from tests.evaluation.report import browser
from tests.evaluation.report.runs import evaluate_run, faithfulness_run, large_run, long_run, small_run


@pytest.fixture(scope="session")
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
        browser.click(driver, f"#tab-{tab}")
        return driver

    yield open_page
    assert browser.console_errors(driver) == []
    assert driver.execute_script("return window.pwned") is None
