"""The page of `hrpo inspect` in a headless Chromium, as a person uses it; skipped where none is installed.

HRPO_SCREENSHOTS=PAGE.html makes the pictures of docs/images/ anew, of that page.
"""

import dataclasses
import itertools
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from inspected import HOSTILE, WRITTEN, both_pages, writing_model

from hrpo import Rollout
from hrpo.inspection.page import Page, make_page
from hrpo.inspection.record import column_of, map_of

PROGRAMS = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
pytestmark = pytest.mark.skipif(None in PROGRAMS, reason="needs chromium and chromium-driver (apt-get install)")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install selenium)")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)
IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS[0]
    for option in [*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(PROGRAMS[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rollouts, page = both_pages(writing_model())
    path = tmp_path_factory.mktemp("page") / "page.html"
    page.save(path)
    return path, rollouts, page


@pytest.fixture
def page(browser, written):
    """The browser with the page freshly open. It must complain of nothing and ask for nothing until the end."""
    yield open_page(browser, written[0])
    quiet(browser)


def open_page(browser, path):
    for log in ("browser", "performance"):
        browser.get_log(log)  # what was before
    browser.get(path.as_uri())
    wait(browser, "return performance.getEntriesByName('ready').length")
    return browser


def quiet(browser):
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert asked  # or nothing was seen


def wait(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, 0.02).until(lambda _: browser.execute_script(script))


def boxes(browser, column=0):
    """Tokens of each completion that is shown, of one column."""
    found = browser.find_elements(By.CSS_SELECTOR, f".columns > div:nth-child({column + 1}) .tokens")
    return [box.find_elements(By.CLASS_NAME, "t") for box in found]


def hover(browser, token):
    webdriver.ActionChains(browser).scroll_to_element(token).move_to_element(token).perform()


def press(browser, *keys):
    for key in keys:
        webdriver.ActionChains(browser).send_keys(key).perform()


def panel(browser):
    return browser.find_element(By.ID, "detail").text


def set_value(browser, name, value):
    script = "const e = document.getElementById(arguments[0]); if (e.type === 'checkbox') e.checked = arguments[1];"
    script += "else e.value = arguments[1]; e.dispatchEvent(new Event('input', {bubbles: true}))"
    browser.execute_script(script, name, value)


def shown(browser):
    """Which problems are listed, in order."""
    titles = browser.execute_script("return [...document.querySelectorAll('.problem h2')].map((e) => e.textContent)")
    return [int(title.split()[1]) - 1 for title in titles]


def is_focused(browser, token):
    return browser.execute_script("return document.activeElement === arguments[0]", token)


# ---- what is there -----------------------------------------------------------------------------------------------


def test_it_opens(page):
    assert page.title == "sums · hrpo inspect"
    assert shown(page) == list(range(5))
    assert page.find_element(By.ID, "count").text == "5 of 5"
    overview = page.find_element(By.ID, "overview").text
    assert "40.0 %" in overview  # two of five are right
    text = page.find_element(By.CLASS_NAME, "problem").text
    for words in ("Problem 1", "gold answer 4", "2+2?", "✓ right", "✗ wrong", "strict ✓ lenient ✓", "reward 1"):
        assert words in text
    assert "strict ✗ lenient ✓" in page.find_elements(By.CLASS_NAME, "problem")[4].text


def test_texts_are_whole_and_do_nothing(page, written):
    """Each completion reads as it was written, bytes of one character together; no text became an element."""
    script = """const copy = arguments[0].cloneNode(true);
        copy.querySelectorAll('.mark, i, .bytes, .special').forEach((e) => e.remove()); return copy.textContent"""
    for column, texts in enumerate(WRITTEN.values()):
        found = page.find_elements(By.CSS_SELECTOR, f".columns > div:nth-child({column + 1}) .tokens")
        assert [page.execute_script(script, box) for box in found] == texts
    assert HOSTILE in page.find_element(By.ID, "list").text
    assert page.execute_script("return [typeof hacked, document.images.length, document.scripts.length > 10]") == [
        "undefined",
        0,
        True,
    ]


def test_a_script_that_got_in_would_not_run(page):
    page.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    wait(page, "return document.images[0].complete")
    assert page.execute_script("return typeof hacked") == "undefined"
    complaints = page.get_log("browser")
    assert complaints
    assert all("Content Security Policy" in entry["message"] for entry in complaints)
    page.get_log("performance")
    page.refresh()


def test_where_thinking_ends(page, written):
    # boxes are filled as they come near the view, on a busy machine not all at once
    wait(page, "return [...document.querySelectorAll('.tokens')].every((box) => box.childNodes.length)")
    place = "(box) => box.querySelector('.mark')?.previousSibling.i ?? -1"
    found = page.execute_script(f"return [...document.querySelectorAll('.tokens')].map({place})")
    texts = [text for pair in zip(*WRITTEN.values(), strict=True) for text in pair]
    assert [place >= 0 for place in found] == ["####" in text for text in texts]
    assert found[0] == written[1]["hybrid"].hybrid_mask[0].sum()  # the first that is fed as it is


# ---- a token -----------------------------------------------------------------------------------------------------


def expected(written, column, n, t):
    """The lines that the panel must have on a token."""
    rollout: Rollout = list(written[1].values())[column]
    a, probs = rollout.gate_mean[n, t].item(), rollout.support_probs[n, t]
    lines = [f"{rollout.sample_logprobs[n, t].exp():.4f}", f"{torch.special.entr(probs).sum():.3f} nats"]
    lines += [f"{100 * round(p, 4):.1f} %" for p in probs[:3].tolist()]
    if rollout.hybrid_mask[n, t]:
        lines += ["gate strength a", f"{(1 - a * a) ** 0.5:.4f}", "Latent candidates, at temperature 2"]
    return lines


def test_hover_shows_the_candidates(page, written):
    assert "Point at a token" in panel(page)
    for column, n, t in ((0, 0, 1), (0, 2, 4), (1, 0, 0)):
        hover(page, boxes(page, column)[n][t])
        text = panel(page)
        for line in expected(written, column, n, t):
            assert line in text
        assert f"Problem {n + 1}, token {t + 1} of" in text
    assert "fed as it is" in text
    assert len(page.find_elements(By.CSS_SELECTOR, "#detail .bars li")) == 13  # 12, and the others
    hover(page, page.find_element(By.ID, "title"))
    assert "Point at a token" in panel(page)


def test_a_token_of_bytes_is_named_by_them(page, written):
    tokens = boxes(page)[2]
    (first,) = [i for i, token in enumerate(tokens) if token.text == "м"]
    hover(page, tokens[first + 1])
    assert "BC" in panel(page)
    assert "is a part of м" in panel(page)


def test_a_click_keeps_a_token(page):
    token, other = boxes(page)[0][:2]
    token.click()
    kept = panel(page)
    hover(page, other)
    assert panel(page) != kept
    press(page, Keys.ESCAPE)
    assert "Point at a token" in panel(page)
    token.click()
    hover(page, page.find_element(By.ID, "title"))
    assert panel(page) == kept


def test_keyboard(page, written):
    tokens, beside, below = boxes(page)[0], boxes(page, 1)[0], boxes(page)[1]
    page.find_element(By.ID, "colour").send_keys(Keys.TAB)
    assert is_focused(page, tokens[0])
    assert all(line in panel(page) for line in expected(written, 0, 0, 0))
    described = page.find_element(By.ID, tokens[0].get_attribute("aria-describedby"))
    assert "Candidates: " in described.get_attribute("textContent")
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert is_focused(page, tokens[2])
    assert all(line in panel(page) for line in expected(written, 0, 0, 2))
    outline = "const s = getComputedStyle(arguments[0]); return [s.outlineStyle, s.outlineWidth]"
    assert page.execute_script(outline, tokens[2]) == ["solid", "2px"]
    press(page, Keys.ARROW_LEFT)
    assert is_focused(page, tokens[1])
    press(page, Keys.END)
    assert is_focused(page, tokens[-1])
    assert "not fed" in panel(page)
    press(page, Keys.HOME, Keys.ARROW_DOWN)
    second_line = WRITTEN["hybrid"][0].index("\n")  # the token "\n####"
    assert is_focused(page, tokens[second_line])
    press(page, Keys.ESCAPE)
    assert "Point at a token" in panel(page)
    press(page, Keys.ARROW_UP)
    assert any(is_focused(page, token) for token in tokens[:second_line])
    press(page, Keys.TAB)
    assert is_focused(page, beside[0])
    press(page, Keys.TAB)
    assert is_focused(page, below[0])
    press(page, Keys.ARROW_UP)  # the last line of the completion above
    assert is_focused(page, tokens[-1])
    press(page, Keys.ARROW_RIGHT)  # there is none
    assert is_focused(page, tokens[-1])


# ---- filters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"verdict": "right"}, [0, 1]),
        ({"verdict": "wrong"}, [2, 3, 4]),
        ({"verdict": "right", "column": "1"}, [1, 4]),
        ({"verdict": "lenient"}, [4]),
        ({"verdict": "differ"}, [0, 4]),
        ({"mixed": True}, [2]),
        ({"mixed": True, "column": "1"}, []),
        ({"search": "MUCH longer"}, []),
        ({"search": "A longer"}, [3]),
        ({"search": "</script>"}, [1]),
        ({"search": "8?"}, [3]),
        ({"order": "longest", "verdict": "wrong"}, [3, 2, 4]),
    ],
)
def test_filters(page, setting, expected):
    for name, value in setting.items():
        set_value(page, name, value)
    assert shown(page) == expected
    assert page.find_element(By.ID, "count").text == f"{len(expected)} of 5"
    assert ("No completion is like that." in page.find_element(By.ID, "list").text) is (not expected)


@pytest.mark.parametrize(("order", "sign"), [("most", -1), ("least", 1)])
def test_most_and_least_latent(page, written, order, sign):
    rollout = written[1]["hybrid"]
    ratio = ((1 - rollout.gate_mean**2).sqrt().sum(1) / rollout.hybrid_mask.sum(1).clamp(min=1)).tolist()
    set_value(page, "order", order)
    assert shown(page) == sorted(range(5), key=lambda n: sign * ratio[n])


def test_filters_by_keyboard(page):
    page.find_element(By.ID, "verdict").send_keys("wrong")
    assert shown(page) == [2, 3, 4]
    page.find_element(By.ID, "mixed").send_keys(Keys.SPACE)
    assert shown(page) == [2]


# ---- colours -----------------------------------------------------------------------------------------------------

RGB = """const c = new OffscreenCanvas(1, 1).getContext('2d'); c.fillStyle = arguments[0]; c.fillRect(0, 0, 1, 1);
    return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3)"""
STYLE = "return getComputedStyle(arguments[0])[arguments[1]]"


def light(browser, colour):
    """Relative luminance (WCAG 2)."""
    parts = [value / 255 for value in browser.execute_script(RGB, colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(browser, one, other):
    values = sorted([light(browser, one), light(browser, other)])
    return (values[1] + 0.05) / (values[0] + 0.05)


def emulate(browser, theme, width=1280, height=900):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.fixture
def emulated(browser):
    yield emulate
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours(page, emulated, theme):
    """They follow the system and the button; text stands out (4.5 : 1); the ratio shows in lightness alone."""
    emulated(page, theme)
    wait(page, f"return document.documentElement.style.colorScheme === '{theme}'")
    body = page.find_element(By.TAG_NAME, "body")
    is_dark = light(page, page.execute_script(STYLE, body, "backgroundColor")) < 0.1
    assert is_dark is (theme == "dark")
    page.find_element(By.ID, "theme").click()
    assert (light(page, page.execute_script(STYLE, body, "backgroundColor")) < 0.1) is not is_dark
    page.find_element(By.ID, "theme").click()
    back = page.execute_script(STYLE, body, "backgroundColor")
    for selector in ("body", ".question", ".meta span", ".right", ".wrong", ".mark", ".special", "dt", "#count"):
        colour = page.execute_script(STYLE, page.find_element(By.CSS_SELECTOR, selector), "color")
        assert contrast(page, colour, back) >= 4.5, selector
    token, lights = boxes(page)[0][0], []
    for value in range(0, 101, 10):
        page.execute_script("arguments[0].style.setProperty('--x', arguments[1])", token, value)
        fill = page.execute_script(STYLE, token, "backgroundColor")
        assert contrast(page, page.execute_script(STYLE, token, "color"), fill) >= 4.5
        lights.append(float(fill.removeprefix("oklab(").split()[0]))
    steps = [(after - before) * (1 if is_dark else -1) for before, after in itertools.pairwise(lights)]
    assert min(steps) > 0.02
    assert max(steps) - min(steps) < 0.001  # even: OKLab's L is how light a colour looks


def test_colour_is_the_hidden_ratio(page, written):
    rollout = written[1]["hybrid"]
    ratio = (1 - rollout.gate_mean**2).sqrt()
    low, high = ratio[rollout.hybrid_mask].min().item(), ratio[rollout.hybrid_mask].max().item()
    read = "return [...arguments[0].querySelectorAll('.t')].map((t) => t.style.getPropertyValue('--x'))"
    box = page.find_element(By.CLASS_NAME, "tokens")
    for t, value in enumerate(page.execute_script(read, box)):
        if rollout.hybrid_mask[0, t]:
            assert int(value) == pytest.approx(100 * (ratio[0, t].item() - low) / (high - low), abs=0.6)
        else:
            assert value == ""
    assert page.find_element(By.ID, "low").text == f"{low:.4f}"
    assert page.find_element(By.ID, "high").text == f"{high:.4f}"
    set_value(page, "colour", "whole")
    values = page.execute_script(read, box)
    assert int(values[0]) == pytest.approx(100 * ratio[0, 0].item(), abs=0.6)
    set_value(page, "colour", "entropy")
    assert all(page.execute_script(read, box))  # each token has one


# ---- the vocabulary ----------------------------------------------------------------------------------------------


def test_vocabulary(page, written):
    page.find_element(By.ID, "tab-completions").click()
    press(page, Keys.ARROW_RIGHT)
    view = page.find_element(By.ID, "vocabulary")
    assert view.is_displayed()
    assert not page.find_element(By.ID, "completions").is_displayed()
    most, least = view.find_elements(By.CSS_SELECTOR, ".pair table")
    columns = [[float(row.split()[-4]) for row in table.text.splitlines()[1:]] for table in (most, least)]
    assert [len(values) for values in columns] == [20, 20]
    assert columns[0] == sorted(columns[0])
    assert columns[1] == sorted(columns[1], reverse=True)
    assert columns[0][-1] < columns[1][-1]
    view.find_element(By.CSS_SELECTOR, "input").send_keys("####")
    hits = view.find_elements(By.CSS_SELECTOR, "[aria-live] tbody tr")
    assert {row.text.split()[0] for row in hits} == {"####", "↵####", "####↵"}
    view.find_element(By.CSS_SELECTOR, "input").send_keys(Keys.BACKSPACE * 4 + "268")
    (row,) = view.find_elements(By.CSS_SELECTOR, "[aria-live] tbody tr")
    assert row.text.startswith("#268 268 0.")  # the tokenizer has no name for it


# ---- anywhere ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_window(page, emulated, width):
    emulated(page, "light", width, 844)
    fits = "return document.documentElement.scrollWidth <= innerWidth"
    assert page.execute_script(fits)
    boxes(page)[0][0].click()
    detail = page.find_element(By.ID, "detail")
    assert detail.is_displayed()
    assert "hidden ratio" in panel(page)
    if width == 390:  # the panel is a sheet, above or below the token
        page.execute_script("document.querySelector('.problem:last-child').scrollIntoView({block: 'end'})")
        wait(page, "return document.querySelector('.problem:last-child .t')")
        covers = "const [p, t] = [...arguments].map((e) => e.getBoundingClientRect());"
        covers += "return p.bottom > t.top && p.top < t.bottom"
        low = boxes(page)[-1][0]
        assert page.execute_script("return arguments[0].getBoundingClientRect().top > innerHeight / 2", low)
        for token in (low, boxes(page)[0][0]):
            press(page, Keys.ESCAPE)  # the sheet of the token before
            token.click()
            assert not page.execute_script(covers, detail, token)
        page.find_element(By.CLASS_NAME, "close").click()
        assert not detail.is_displayed()
    page.find_element(By.ID, "tab-vocabulary").click()
    assert page.execute_script(fits)


def test_everything_has_a_name(page):
    page.find_element(By.ID, "tab-vocabulary").click()
    page.find_element(By.ID, "tab-completions").click()
    wait(page, "return document.querySelector('.t')")
    boxes(page)[0][0].click()
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "checkbox", "combobox", "listbox", "option", "searchbox", "tab", "tablist", "tabpanel", "image"}
    found = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node.get("name") and "role" in node]
    assert {"button", "combobox", "listbox", "option", "searchbox", "tab"} <= {role for role, _ in found}
    assert [role for role, name in found if role in roles and not name.strip()] == []


def test_in_a_notebook(browser, written, tmp_path):
    """Within a frame of another page, from which the page cannot reach it."""
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title>notebook</title>{written[2]._repr_html_()}")
    browser.get(path.as_uri())
    browser.switch_to.frame(0)
    wait(browser, "return performance.getEntriesByName('ready').length")
    hover(browser, boxes(browser)[0][0])
    assert "Latent candidates" in panel(browser)
    browser.switch_to.default_content()


# ---- large pages -------------------------------------------------------------------------------------------------


def large_page() -> Page:
    """200 completions of 500 tokens with 12 candidates each, of a vocabulary of 150,000."""
    N, T, K, V = 200, 500, 12, 150_000
    torch.manual_seed(0)
    probs = torch.rand(N, T, K).sort(dim=-1, descending=True).values
    ids = torch.randint(V, (N, T, K), dtype=torch.int32)
    rollout = Rollout(
        prompt_ids=torch.zeros(N, 1, dtype=torch.long),
        prompt_mask=torch.ones(N, 1, dtype=torch.long),
        completion_ids=ids[:, :, 0].long(),
        completion_mask=torch.ones(N, T, dtype=torch.long),
        hybrid_mask=torch.arange(T).expand(N, T) < 450,
        sample_logprobs=probs[:, :, 0].log(),
        support_ids=ids,
        support_probs=probs / probs.sum(-1, keepdim=True),
        gate_mean=torch.rand(N, T),
        group_size=1,
        temperature=0.5,
        top_k=K,
    )
    rng = random.Random(0)
    pieces = [" " + "".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 7))) for _ in range(V)]
    column = column_of("large", rollout, None, None, map_of(torch.rand(V).tolist(), torch.rand(V).tolist()), "")
    text = "".join(pieces[:500])
    summaries = [{**row, "text": text} for row in column.summaries]
    tokens = {"pieces": pieces, "special": []}
    column = dataclasses.replace(column, summaries=summaries, tokens=tokens)
    return make_page("large", [{"question": "?" * 200, "gold": "1"}] * N, 1, [column])


def test_of_a_large_page_what_is_in_view_is_made(browser, tmp_path):
    path = tmp_path / "large.html"
    large_page().save(path)
    open_page(browser, path)
    loaded, ready, painted = browser.execute_script(
        """return [performance.getEntriesByType('navigation')[0].loadEventEnd,
            performance.getEntriesByName('ready')[0].startTime,
            performance.getEntriesByName('first-contentful-paint')[0].startTime]"""
    )
    print(f"{path.stat().st_size / 1e6:.1f} MB: loaded {loaded:.0f} ms, ready {ready:.0f} ms, painted {painted:.0f} ms")
    assert len(shown(browser)) == 200
    assert browser.execute_script("return document.querySelectorAll('.t').length") < 20_000  # of 100,000
    hover(browser, boxes(browser)[0][3])
    assert len(browser.find_elements(By.CSS_SELECTOR, "#detail .bars li")) == 12
    browser.execute_script("document.querySelector('.problem:last-child').scrollIntoView()")
    wait(browser, "return document.querySelector('.problem:last-child .t')")
    wait(browser, "return !document.querySelector('.problem:nth-child(20) .t')")  # those far away are gone again
    browser.find_element(By.ID, "tab-vocabulary").click()
    wait(browser, "return document.querySelectorAll('#vocabulary .pair tr').length === 42")
    quiet(browser)


# ---- pictures for the documentation ------------------------------------------------------------------------------


# Of the completions that are listed the place of the one with the widest spread of candidates, and of that token.
UNSURE = """const boxes = [...document.querySelectorAll('.columns > div:first-child .tokens')];
    const spread = boxes.map((box) => read(`record-0-${box.k}`).entropy), most = spread.map((row) => Math.max(...row));
    const at = most.indexOf(Math.max(...most));
    boxes[at].closest('.problem').scrollIntoView({block: innerWidth < 500 ? 'start' : 'end'});
    return [at, spread[at].indexOf(most[at])]"""


@pytest.mark.skipif("HRPO_SCREENSHOTS" not in os.environ, reason="makes the pictures of docs/images/ anew when asked")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshots(browser, emulated, theme):
    IMAGES.mkdir(exist_ok=True)
    path = Path(os.environ["HRPO_SCREENSHOTS"]).resolve()
    for width, height in ((1280, 900), (390, 844)):
        emulated(browser, theme, width, height)
        open_page(browser, path)
        if width == 1280:
            browser.save_screenshot(str(IMAGES / f"inspect-overview-{theme}.png"))
        set_value(browser, "verdict", "wrong")
        place, token = browser.execute_script(UNSURE)
        wait(browser, f"return document.querySelector('.problem:nth-child({place + 1}) .t')")
        boxes(browser)[place][token].click()
        browser.save_screenshot(str(IMAGES / f"inspect-{theme}-{width}.png"))
    emulated(browser, theme, 1280, 900)
    open_page(browser, path)
    browser.find_element(By.ID, "tab-vocabulary").click()
    browser.save_screenshot(str(IMAGES / f"inspect-vocabulary-{theme}.png"))
