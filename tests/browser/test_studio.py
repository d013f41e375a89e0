"""The studio as a person uses it: in JupyterLab, and as a web page without code."""

import json
import time


WAIT = 90_000  # ms; a busy machine is no fault of the studio


def open_studio(page, lab):
    "Open the workbench and run all its cells."
    page.goto(f"{lab}/lab/tree/nbs/workbench.ipynb?reset")
    page.wait_for_function("() => window.jupyterapp", timeout=WAIT)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=WAIT)
    page.wait_for_function("() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=WAIT)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".lm-TabBar-tab:has-text('Training')", timeout=WAIT)


def open_tab(page, name): page.locator(f".lm-TabBar-tab:has-text('{name}')").first.click()


def field(page, label): return page.locator(f".widget-inline-hbox:has(label:text-is('{label}')) input").first


CURVE = """() => {
  const box = [...document.querySelectorAll(".js-plotly-plot")].find((held) => held.offsetWidth && held.data[0]?.name?.startsWith("training"));
  return box ? box.data[0].x.length : 0;
}"""


def points(page):
    "How many points the training curve on the page has."
    return page.evaluate(CURVE)


def until(told, page, seconds=120):
    end = time.monotonic() + seconds
    while not (found := told()):
        assert time.monotonic() < end, page.inner_text("body")[-3000:]
        page.wait_for_timeout(100)
    return found


def lines(folder, name):
    path = folder / "runs" / name / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def test_a_run_is_started_watched_edited_and_stopped_and_the_page_finds_it_again(page, lab, folder):
    open_studio(page, lab)
    field(page, "Run").fill("seen")
    field(page, "Run").press("Tab")
    open_tab(page, "Training")
    field(page, "Epochs").fill("2000")
    field(page, "Epochs").press("Tab")
    page.locator("button:has-text('Start')").click()
    first = until(lambda: points(page), page)
    until(lambda: points(page) > first, page)
    page.get_by_text("While it runs").click()
    slider = page.locator(".widget-inline-hbox:has(label:text-is('Learning rate')) .noUi-handle").last
    until(lambda: slider.is_enabled() and slider.is_visible(), page)
    slider.focus()
    slider.press("ArrowLeft")
    edits = until(lambda: [line for line in lines(folder, "seen") if line["kind"] == "edit"], page)
    assert edits[0]["setting"] == "train.lr" and edits[0]["value"] < 0.003 and not edits[0]["refused"]
    page.reload()
    open_studio(page, lab)
    assert field(page, "Run").input_value() == "seen"
    open_tab(page, "Training")
    until(lambda: points(page) > first, page)
    page.locator("button:has-text('Stop')").click()
    until(lambda: [line for line in lines(folder, "seen") if line["kind"] == "end"], page)
    until(lambda: "stopped" in page.inner_text("body"), page)


def test_a_wrong_setting_is_told_beside_its_control(page, lab, folder):
    open_studio(page, lab)
    field(page, "Data").fill("/no/such/folder")
    field(page, "Data").press("Tab")
    until(lambda: "/no/such/folder" in page.inner_text(".jp-OutputArea-output:has(.lm-TabBar-tab)"), page)
    page.locator("button[title='One step back']").click()
    until(lambda: field(page, "Data").input_value() == "digits", page)


def test_the_web_page_trains_and_shows_no_code(page, app, folder):
    page.goto(app)
    page.wait_for_selector(".lm-TabBar-tab:has-text('Training')", timeout=WAIT)
    assert "import" not in page.inner_text("body")
    field(page, "Run").fill("served")
    field(page, "Run").press("Tab")
    open_tab(page, "Training")
    field(page, "Epochs").fill("1")
    field(page, "Epochs").press("Tab")
    page.locator("button:has-text('Start')").click()
    until(lambda: [line for line in lines(folder, "served") if line["kind"] == "epoch"], page)
    until(lambda: points(page), page)


PIXELS = """async () => {
  const shown = [...document.querySelectorAll(".jp-OutputArea-output img")].filter((image) => image.offsetWidth && image.src.startsWith("blob:"));
  const bytes = await Promise.all(shown.map(async (image) => new Uint8Array(await (await fetch(image.src)).arrayBuffer())));
  return bytes.map((held) => held.reduce((sum, value, place) => (sum * 31 + value + place) % 1000000007, 7)).join();
}"""


def test_a_slider_moved_by_keyboard_changes_the_pixels(page, lab):
    open_studio(page, lab)
    open_tab(page, "Augmentation")
    before = until(lambda: page.evaluate(PIXELS), page)
    slider = page.locator(".widget-inline-hbox:has(label:text-is('Strength')) .noUi-handle").first
    slider.focus()
    slider.press("ArrowRight")
    until(lambda: page.evaluate(PIXELS) not in ("", before), page)


def test_a_run_is_judged_a_cell_clicked_and_an_answer_explained(page, lab, folder):
    open_studio(page, lab)
    open_tab(page, "Evaluation")
    page.locator("button:has-text('Judge')").first.click()
    cells = page.locator(".js-plotly-plot:visible").first
    cells.wait_for(timeout=WAIT)
    box = cells.locator(".heatmaplayer").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.05, box["y"] + box["height"] * 0.05)  # zeros taken for zeros
    until(lambda: page.evaluate(PIXELS), page)
    open_tab(page, "Explanation")
    first = until(lambda: page.evaluate(PIXELS), page)
    page.get_by_text("Grad-CAM").first.click()
    until(lambda: page.evaluate(PIXELS) not in ("", first), page)


def test_settings_are_saved_and_loaded_again(page, lab, folder):
    open_studio(page, lab)
    field(page, "Run").fill("saved")
    field(page, "Run").press("Tab")
    page.locator("button[title='Write the settings to the file']").click()
    until(lambda: (folder / "nbs" / "experiment.json").exists(), page)
    assert json.loads((folder / "nbs" / "experiment.json").read_text())["name"] == "saved"
    field(page, "Run").fill("other")
    field(page, "Run").press("Tab")
    page.locator("button[title='Take the settings from the file']").click()
    until(lambda: field(page, "Run").input_value() == "saved", page)
