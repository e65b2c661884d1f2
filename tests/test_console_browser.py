"""The console in a real browser: a story from an empty service to a prediction, by clicks and keys, wide and narrow, light and dark."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from test_serve_support import PARENT, Service

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -r requirements-dev.txt")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
INSTANCE = {
    "pickup_datetime": "2010-03-23 06:49:00 UTC", "pickup_longitude": "-73.95", "pickup_latitude": "40.76",
    "dropoff_longitude": "-73.98", "dropoff_latitude": "40.78", "passenger_count": "1",
}  # fmt: skip
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("browser"), f"--project_dir={ROOT}", "--project=p", "--region=us-central1")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def page(service, chromium):
    """A page that is logged in; what its console says, and what it asks another host for, fails the test."""
    context = chromium.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 860})
    context.set_default_timeout(PATIENCE)
    opened, said = context.new_page(), []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: said.append(request.url) if f"127.0.0.1:{service.port}" not in request.url else None)
    opened.goto(service.endpoint.console_address())
    yield opened
    context.close()
    assert not [text for text in said if "status of 400" not in text]  # an answer to a form that the test fills in wrongly


def train(service: Service) -> str:
    """Create a job that trains taxifare for a few steps, and return its id."""
    args = ["--num_evals=3", "--num_examples_to_train_on=6000"]
    data = [f"--{kind}_data_path={ROOT}/taxifare/tests/data/taxi-{name}.csv" for kind, name in (("train", "train"), ("eval", "valid"))]
    pool = {
        "machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1,
        "containerSpec": {"imageUri": "host/any/taxifare:1", "command": ["python", "-m", "taxifare.trainer.task"], "args": [*args, *data]},
    }  # fmt: skip
    spec = {"workerPoolSpecs": [pool], "baseOutputDirectory": {"outputUriPrefix": "gs://a-bucket/taxifare"}}
    return service.call("POST", "/customJobs", {"displayName": "taxifare", "jobSpec": spec})["name"].rpartition("/")[2]


def shot(page, name: str) -> None:
    """Keep a picture where CONSOLE_PICTURES names a folder."""
    if folder := os.environ.get("CONSOLE_PICTURES"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_from_empty_to_a_prediction(service, page):
    expect = sync_api.expect
    expect(page.locator("h1")).to_have_text("The job service on this machine")
    assert "Nothing has run yet" in page.inner_text("main")
    number = train(service)
    page.get_by_role("link", name="Custom jobs", exact=True).first.click()
    expect(page.locator("#list .chip")).to_contain_text("SUCCEEDED", timeout=PATIENCE)  # nobody reloads the page
    shot(page, "list")
    page.locator("td a").first.click()
    expect(page.locator("#replicas")).to_contain_text("exit code 0")
    assert page.locator("#curves svg").count() >= 2
    shot(page, "job")
    page.locator("#replicas td a").first.click()
    page.keyboard.press("/")
    page.keyboard.type("val_rmse")
    page.keyboard.press("Enter")
    expect(page.locator("ol.log li").first).to_contain_text("val_rmse")
    model = {"displayName": "fares", "artifactUri": "gs://a-bucket/taxifare/model", "containerSpec": {"imageUri": IMAGE}}
    service.call("POST", "/models:upload", {"model": model})
    page.get_by_role("link", name="Models", exact=True).click()
    page.get_by_role("link", name="fares").click()
    assert "pickup_datetime" in page.inner_text("main") and "fare_amount" in page.inner_text("main")
    page.get_by_role("button", name="Deploy version 1").click()
    expect(page.locator("#deployed meter")).to_be_attached(timeout=PATIENCE)
    page.reload()
    for name, value in INSTANCE.items():
        page.locator(f'[name="input.{name}"]').fill(value)
    page.get_by_role("button", name="Predict", exact=True).click()
    shown = float(page.locator("#answer").inner_text())
    shot(page, "endpoint")
    endpoint = service.call("GET", "/endpoints")["endpoints"][0]["name"].rpartition("/")[2]
    instance = {name: value if name == "pickup_datetime" else float(value) for name, value in INSTANCE.items()}
    answer = service.call("POST", f"/endpoints/{endpoint}:predict", {"instances": [instance]})
    assert shown == answer["predictions"][0] and 2 < shown < 60
    page.locator('[name="input.passenger_count"]').fill("many")
    page.get_by_role("button", name="Predict", exact=True).click()
    assert "passenger_count: takes a number; got 'many'" in page.inner_text("main")
    page.get_by_role("link", name="Back").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Undeploy").click()
    expect(page.locator("main")).to_contain_text("no longer deployed")
    assert service.call("GET", f"/endpoints/{endpoint}").get("deployedModels", []) == []
    assert service.call("GET", f"/customJobs/{number}", base=PARENT)["state"] == "JOB_STATE_SUCCEEDED"


def test_a_log_follows_and_a_question_is_asked(service, page, tmp_path):
    expect = sync_api.expect
    source = f"""
import pathlib, time
for i in range(500): print("line", i, flush=True)
while not pathlib.Path({str(tmp_path / "more")!r}).exists(): time.sleep(0.05)
print("the last line", flush=True)
time.sleep(300)
"""
    number = service.create(source, name="talks")
    service.reach(number, "RUNNING")
    base = page.url.partition("/console")[0]
    page.goto(f"{base}/console/logs/{number}/workerpool0-0")
    expect(page.locator("ol.log li").last).to_have_text("line 499", timeout=PATIENCE)
    (tmp_path / "more").touch()
    expect(page.locator("ol.log li").last).to_have_text("the last line", timeout=PATIENCE)
    at_end = "box => box.scrollHeight - box.scrollTop - box.clientHeight < 40"
    assert page.locator("ol.log").evaluate(at_end), "it stays at its end"
    page.goto(f"{base}/console/customJobs/{number}")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Cancel").click()
    assert service.call("GET", f"/customJobs/{number}")["state"] == "JOB_STATE_RUNNING", "nobody said yes"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#head .chip")).to_contain_text("CANCELLED", timeout=PATIENCE)


# WCAG's contrast of an element's colour against the first background that is not see-through.
CONTRAST = """element => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let back = element, found = [0, 0, 0, 0];
  while (back && (found.length > 3 && found[3] === 0)) { found = parse(getComputedStyle(back).backgroundColor); back = back.parentElement; }
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(found)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page_fits_and_can_be_read(service, page, scheme, width):
    service.create("print('hello')", name="a-job-with-quite-a-long-name-that-a-narrow-window-cannot-hold-in-one-line")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    base = page.url.partition("/console")[0]
    jobs = service.call("GET", "/customJobs")["customJobs"]
    kinds = ("customJobs", "hyperparameterTuningJobs", "trainingPipelines", "datasets", "models", "endpoints", "files/")
    for path in ("", *kinds, f"customJobs/{jobs[0]['name'].rpartition('/')[2]}"):
        page.goto(f"{base}/console/{path}")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"/{path} is {wide} pixels wider than the window"
        for selector in ("h1", "nav a", "main p", "main a", "main th", "main td", "main .chip", "main button"):
            for element in page.locator(selector).all()[:6]:
                if element.is_visible():
                    assert element.evaluate(CONTRAST) >= 4.5, (path, selector, element.inner_text())
        assert page.locator("img:not([alt]), input:not([aria-label]):not([type=hidden])").evaluate_all(
            "all => all.filter(e => e.tagName !== 'INPUT' || !e.closest('label')).length") == 0
    shot(page, f"job-{scheme}-{width}")
