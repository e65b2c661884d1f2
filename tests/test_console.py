"""The console over HTTP: who is let in, what a page of another site could do, what stands on the pages, and how quick they are."""

from __future__ import annotations

import html
import json
import os
import re
import urllib.parse

import pytest
from conftest import ROOT
from test_serve_support import PARENT, Service, gone, job_spec, write_object

from vertex_local.console import charts, command, forms, log_view, login, saved_models, trainer_flags
from vertex_local.console.curves import MOST_POINTS, Curve, Curves
from vertex_local.console.pages import endpoints
from vertex_local.serve.rest import ApiError

FORM = "application/x-www-form-urlencoded"
EVIL = "<script>alert('x')</script>"


class Browser:
    """A client that keeps its cookie and sends what a browser sends."""

    def __init__(self, service: Service):
        self.service, self.cookie, self.secret = service, "", ""
        self.origin = f"https://127.0.0.1:{service.port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """Return (code, headers, text); a header that is "" is not sent."""
        sent = {"Sec-Fetch-Site": "same-origin", "Cookie": self.cookie, **{k.replace("_", "-"): v for k, v in headers.items()}}
        code, answered, content = self.service.raw(method, path, body, {name: value for name, value in sent.items() if value})
        if answered["Set-Cookie"]:
            self.cookie = answered["Set-Cookie"].partition(";")[0]
        return code, answered, content.decode(errors="replace")

    def page(self, path: str, code: int = 200) -> str:
        got, _, text = self.ask("GET", f"/console{path}")
        assert got == code, text
        if found := re.search('name="secret" value="([^"]+)"', text):
            self.secret = found[1]
        return text

    def post(self, path: str, code: int = 303, **fields: str) -> str:
        """Send a form and return where it leads, or the page that answers."""
        body = urllib.parse.urlencode({"secret": self.secret, **fields}).encode()
        got, answered, text = self.ask("POST", f"/console{path}", body, Content_Type=FORM, Origin=self.origin)
        assert got == code, text
        return answered["Location"] or text


def logged_in(service: Service) -> Browser:
    found = Browser(service)
    address = service.endpoint.console_address()
    code, answered, _ = found.ask("GET", address.removeprefix(found.origin), Sec_Fetch_Site="none")
    assert (code, answered["Location"]) == (303, "/console/")
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("console"), f"--project_dir={ROOT}", "--project=p", "--region=us-central1")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser(service):
    found = logged_in(service)
    found.page("/")
    return found


@pytest.fixture(scope="module")
def job(service):
    """A job that is over, whose name, label and log hold what a page must not run."""
    line = json.dumps({"message": f"shown {EVIL}", "severity": "WARNING"})
    number = service.create(f"print({line!r}); print('step 2')", name=f"job {EVIL}", labels={"team": "a"})
    service.ended(number)
    return number


# ------------------------------------------------------------------ who is let in


def test_an_address_logs_one_browser_in_once(service):
    printed = next(line for line in service.out if "/console/login?token=" in line)
    path = printed.partition(f":{service.port}")[2]
    first, second = Browser(service), Browser(service)
    code, answered, _ = first.ask("GET", path, Sec_Fetch_Site="none")
    assert code == 303
    for word in ("__Host-", "Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
        assert word in answered["Set-Cookie"]
    assert first.page("/")
    code, answered, text = second.ask("GET", path, Sec_Fetch_Site="none")
    assert code == 401 and not answered["Set-Cookie"] and "has been used already" in text and "vertex_local console" in text


def test_without_a_login_there_is_no_page(service, job):
    stranger = Browser(service)
    for path in ("/", "/customJobs", f"/customJobs/{job}", f"/logs/{job}/workerpool0-0", "/files/", "/models"):
        text = stranger.page(path, 401)
        assert "alert" not in text and "Not logged in" in text
    stranger.cookie = f"__Host-vertex_local_{service.port}=guessed"
    stranger.page("/", 401)
    assert stranger.ask("GET", "/console/static/console.css")[0] == 200
    assert Browser(service).ask("GET", "/")[1]["Location"] == "/console/"


def test_the_cookie_opens_the_console_only(service, browser):
    for path in (f"{PARENT}/customJobs", "/storage/v1/b"):
        assert browser.ask("GET", path, Sec_Fetch_Site="")[0] == 401
        assert browser.ask("GET", path)[0] == 403, "no web page asks the API, not even ours"
    assert browser.ask("POST", "/console:address", b"{}", Content_Type="application/json", Sec_Fetch_Site="")[0] == 401


def test_another_sites_page_changes_and_sees_nothing(service, browser):
    body = urllib.parse.urlencode({"secret": browser.secret, "displayName": "x", "args": ""}).encode()
    number = service.create("import time; time.sleep(300)")
    path = f"/console/customJobs/{number}/cancel"
    for headers in (
        {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"},
        {"Origin": ""}, {"Origin": browser.origin, "Sec_Fetch_Site": "cross-site"},
        {"Origin": browser.origin, "Sec_Fetch_Site": "same-site"},
        {"Origin": browser.origin.replace("https", "http")}, {"Origin": f"https://127.0.0.1:{service.port + 1}"},
    ):  # fmt: skip
        assert browser.ask("POST", path, body, Content_Type=FORM, **headers)[0] == 403, headers
    for kind in ("text/plain", "application/json", ""):
        assert browser.ask("POST", path, body, Content_Type=kind, Origin=browser.origin)[0] == 415
    assert browser.ask("GET", "/console/", Sec_Fetch_Site="cross-site")[0] == 403
    assert browser.ask("GET", path)[0] == 501, "a link changes nothing"
    wrong = urllib.parse.urlencode({"secret": "x" * 43}).encode()
    for form in (wrong, b"", body.replace(browser.secret.encode(), logged_in(service).secret.encode())):
        code, _, text = browser.ask("POST", path, form, Content_Type=FORM, Origin=browser.origin)
        assert code == 403 and "earlier login" in text
    assert service.call("GET", f"/customJobs/{number}")["state"] in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING")
    assert browser.post(f"/customJobs/{number}/cancel").startswith(f"/console/customJobs/{number}?said=")
    assert service.ended(number)["state"] == "JOB_STATE_CANCELLED"


def test_pages_run_no_foreign_script_and_are_not_framed(browser, job):
    for path in ("/", f"/customJobs/{job}", "/customJobs", f"/logs/{job}/workerpool0-0", "/nothing-here"):
        _, headers, text = browser.ask("GET", f"/console{path}")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["X-Frame-Options"] == "DENY" and headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert EVIL not in text and not re.search(r"<script>|\son\w+=|javascript:", text)
    assert html.escape(EVIL, quote=False) in browser.page("/customJobs").replace("&#39;", "'")


def test_files_are_sent_so_that_they_can_do_nothing_here(service, browser):
    write_object(service, "a-bucket/run/report.html", EVIL)
    write_object(service, "a-bucket/run/model.bin", b"\x00\x01")
    _, headers, text = browser.ask("GET", "/console/files/a-bucket/run/report.html")
    assert text == EVIL and headers["Content-Type"].startswith("text/html")
    assert "sandbox allow-scripts;" in headers["Content-Security-Policy"] and "same-origin" not in headers["Content-Security-Policy"]
    assert browser.ask("GET", "/console/files/a-bucket/run/model.bin")[1]["Content-Disposition"].startswith("attachment")
    listed = browser.page("/files/a-bucket/run/")
    assert "report.html" in listed and 'href="/console/files/a-bucket/"' in listed
    for path in (
        "../records.sqlite", "%2e%2e/records.sqlite", "a-bucket/../../serve/token", "/etc/passwd", "a-bucket/run/%00", "a-bucket/none",
    ):  # fmt: skip
        assert browser.ask("GET", f"/console/files/{path}")[0] in (400, 404), path
    (service.state / "buckets" / "a-bucket" / "link").symlink_to("/etc")
    assert browser.ask("GET", "/console/files/a-bucket/link/passwd")[0] == 404
    for path in ("../../serve/token", "..%2f..%2fserve", "x/y"):
        assert browser.ask("GET", f"/console/logs/{path}/workerpool0-0")[0] == 404


def test_logins_end():
    now = [0.0]
    logins = login.Logins(1, clock=lambda: now[0])
    old = logins.new_token()
    now[0] += login.TOKEN_SECONDS + 1
    assert logins.log_in(old) is None
    session = logins.log_in(logins.new_token())
    cookie = f"{logins.cookie_name}={session.cookie}"
    assert logins.find(f"other=1; {cookie}") is session and logins.find("garbage;;=") is None
    assert logins.find(f'of[another]="program"; {{"on": "this host"}}=1; {cookie}') is session
    now[0] += login.SESSION_SECONDS + 1
    assert logins.find(cookie) is None
    again = logins.log_in(logins.new_token())
    logins.log_out(again)
    assert logins.find(f"{logins.cookie_name}={again.cookie}") is None


# ------------------------------------------------------------------ what the pages show and do


def test_lists_are_filtered_and_paged(service, browser, job):
    for i in range(60):
        name = f"{PARENT[4:]}/customJobs/9{i:03}"
        made = {"name": name, "displayName": f"made-{i}", "state": "JOB_STATE_FAILED", "createTime": f"2020-01-01T00:00:{i:02}Z"}
        keep(service, "customJobs", {**made, "jobSpec": job_spec("pass")})
    first = browser.page("/customJobs")
    assert "made-59" in first and "made-5<" not in first
    older = html.unescape(re.search('rel="next" href="/console([^"]+)"', first)[1])
    assert "made-5<" in browser.page(older)
    found = browser.page("/customJobs?filter=made-5")
    assert found.count("made-5") > 10 and "made-4<" not in found
    assert "made-7" in browser.page("/customJobs?state=FAILED&filter=" + urllib.parse.quote('displayName="made-7"'))
    assert "Nothing here fits" in browser.page("/customJobs?filter=nobody")
    assert "filter" in browser.page("/customJobs?filter=" + urllib.parse.quote("a=(("), 400)


def test_pages_stay_in_the_project_that_they_show(service, browser):
    parent = "projects/other/locations/europe-west4"
    job = {"displayName": "elsewhere", "jobSpec": job_spec("import time; time.sleep(300)")}
    made = service.call("POST", "/customJobs", job, base=f"/v1/{parent}")
    number, query = made["name"].rpartition("/")[2], urllib.parse.urlencode({"parent": parent})
    assert "elsewhere" not in browser.page("/customJobs") and "NOT_FOUND" in browser.page(f"/customJobs/{number}", 404)
    text = browser.page(f"/customJobs?{query}")
    assert f'<input type="hidden" name="parent" value="{parent}">' in text
    path = html.unescape(re.search(rf'href="/console(/customJobs/{number}[^"]*)"', text)[1])
    text = browser.page(path)
    assert set(map(html.unescape, re.findall(r'href="/console/models([^"]*)"', text))) == {f"?{query}"}
    action = html.unescape(re.search(r'action="/console([^"]+/cancel[^"]*)"', text)[1])
    assert query in browser.post(action)
    done = service.call("GET", f"/customJobs/{number}", base=f"/v1/{parent}")
    assert done["state"] in ("JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED")


def test_a_study_tells_which_parameters_matter_over_the_ranges_that_they_may_take(service, browser):
    """The tuning report and the console work it out by one function; a metric of 0, which the API's JSON leaves out, counts."""
    from vertex_local.job import job_file
    from vertex_local.serve import messages
    from vertex_local.tuning import importance, study

    def trial(i: int) -> dict:
        lr, width = 0.001 * 1.6 ** i, 16 + i % 3
        final = {"stepCount": "1", "metrics": [{"metricId": "loss", "value": float((i - 3) ** 2)}]}
        drawn = [{"parameterId": "lr", "value": lr}, {"parameterId": "width", "value": width}]
        return {"id": str(i + 1), "state": "SUCCEEDED", "parameters": drawn, "finalMeasurement": final}

    ranges = [
        {"parameterId": "lr", "doubleValueSpec": {"minValue": 1e-5, "maxValue": 1.0}, "scaleType": "UNIT_LOG_SCALE"},
        {"parameterId": "width", "integerValueSpec": {"minValue": 8, "maxValue": 512}},
    ]
    name = f"{PARENT.removeprefix('/v1/')}/hyperparameterTuningJobs/7001"
    job = {
        "name": name, "displayName": "s", "state": "JOB_STATE_SUCCEEDED", "createTime": "2026-01-01T00:00:00Z",
        "trialJobSpec": job_spec("pass"), "maxTrialCount": 12,
        "studySpec": {"metrics": [{"metricId": "loss", "goal": "MINIMIZE"}], "parameters": ranges}, "trials": [trial(i) for i in range(12)],
    }  # fmt: skip
    keep(service, "hyperparameterTuningJobs", job)
    text = browser.page("/hyperparameterTuningJobs/7001")
    shares = importance.of(study.of(job_file.of_message(messages.read(job, "HyperparameterTuningJob"), "job")), job["trials"])
    assert set(shares) == {"lr", "width"} and sum(shares.values()) == pytest.approx(1.0)
    chart = text[text.index("Importance of the parameters for loss") :]
    assert all(f"{share:.6g}" in chart for share in shares.values()), shares
    best = re.search(r'<tr class="best">.*?</tr>', text, re.DOTALL)
    assert best and ">0<" in best[0], "the trial whose loss is 0 is the best one"
    safe = {"metricId": "latency", "goal": "MINIMIZE", "safetyConfig": {"safetyThreshold": 5}}
    for i, each in enumerate(job["trials"]):
        each["finalMeasurement"]["metrics"].append({"metricId": "latency", "value": 9.0 if i == 3 else 1.0})
    spec = {**job["studySpec"], "metrics": [safe, *job["studySpec"]["metrics"]]}
    keep(service, "hyperparameterTuningJobs", {**job, "name": name.replace("7001", "7002"), "studySpec": spec})
    text = browser.page("/hyperparameterTuningJobs/7002")
    best = re.findall(r'<tr class="best"><td>(\d+)', text)
    assert best == ["3"] and "History of loss" in text, "what is optimised counts, and what keeps below the threshold"
    keep(service, "hyperparameterTuningJobs", {**job, "name": name.replace("7001", "7003"), "studySpec": {**spec, "parameters": []}})
    assert "; create the job again" in browser.page("/hyperparameterTuningJobs/7003", 400)
    few = importance.of(study.of(job_file.of_message(messages.read(job, "HyperparameterTuningJob"), "job")), job["trials"][:3])
    assert few == {}


def test_a_job_is_shown_and_run_again(service, browser, job):
    text = browser.page(f"/customJobs/{job}")
    assert "SUCCEEDED" in text and "workerpool0-0" in text and "exit code 0" in text and "team: a" in text
    log = browser.page(f"/logs/{job}/workerpool0-0")
    assert 'class="WARNING"' in log and "step 2" in log
    assert "step 2" in browser.page(f"/logs/{job}/workerpool0-0?search=STEP") and "1 lines with" in browser.page(
        f"/logs/{job}/workerpool0-0?search=step%202"
    )
    path = browser.post(f"/customJobs/{job}/rerun", displayName="again", args="--x=1\n\n--y=a b\n", output="gs://a-bucket/again")
    number = re.search(r"customJobs/(\d+)", path)[1]
    made = service.ended(number)
    assert made["displayName"] == "again" and made["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["args"] == ["--x=1", "--y=a b"]
    assert made["jobSpec"]["baseOutputDirectory"] == {"outputUriPrefix": "gs://a-bucket/again"}
    assert "The job was created" in browser.page(path.removeprefix("/console"))
    assert "required" in browser.post(f"/customJobs/{job}/rerun", 400, displayName="", args="")
    browser.post(f"/customJobs/{number}/delete")
    browser.page(f"/customJobs/{number}", 404)


def test_a_trainers_job_has_fields_for_its_time(service, browser, job):
    assert "flag.max_minutes" not in browser.page(f"/customJobs/{job}"), "it is no trainer of ours"
    spec = job_spec("", "--lr=0.1", "--max-minutes", "5")
    spec["workerPoolSpecs"][0]["containerSpec"]["command"] = ["python", "-c", "pass", "taxifare.trainer.task"]
    made = service.call("POST", "/customJobs", {"displayName": "ours", "jobSpec": spec})
    number = made["name"].rpartition("/")[2]
    text = browser.page(f"/customJobs/{number}")
    assert re.search('name="flag.max_minutes" value="5"', text) and re.search('name="flag.stall_minutes" value=""', text)
    assert ">--lr=0.1</textarea>" in text, "what has a field of its own stands in no line"

    def again(code: int = 303, **fields: str) -> str:
        form = {"displayName": "again", "args": "--lr=0.1", **{name.replace("__", "."): value for name, value in fields.items()}}
        return browser.post(f"/customJobs/{number}/rerun", code, **form)

    def args(path: str) -> list[str]:
        job = service.call("GET", f"/customJobs/{re.search(r'customJobs/([0-9]+)', path)[1]}")
        return job["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["args"]

    assert args(again(flag__max_minutes="7", flag__stall_minutes="0.5")) == ["--lr=0.1", "--max_minutes=7", "--stall_minutes=0.5"]
    assert args(again(flag__max_minutes="", flag__stall_minutes="")) == ["--lr=0.1"]
    assert args(again(args="--max_minutes=9\n--lr=1")) == ["--lr=1", "--max_minutes=9"]
    for value in ("soon", "-1", "inf", "nan"):
        assert "--stall_minutes takes a number of minutes" in again(400, flag__stall_minutes=value)
    assert "give it once" in again(400, args="--max_minutes=9", flag__max_minutes="7")


@pytest.mark.parametrize(
    "task, known",
    [
        ({"pythonModule": "trainer.task"}, True), ({"pythonModule": "own.task"}, False), ({"imageUri": "r/p/taxifare:v1"}, True),
        ({"imageUri": "r/p/other:v1"}, False), ({"imageUri": "r/p/taxifare:v1", "command": ["sh"]}, False),
    ],
)  # fmt: skip
def test_what_a_trainer_is(task, known):
    assert trainer_flags.is_trainer(task, ROOT) is known


def test_it_follows_a_job_that_runs(service, browser, tmp_path):
    go = tmp_path / "go"
    source = f"""
import json, os, pathlib, time
with open(os.environ["TRAINER_EVENTS"], "a") as events:
    events.write("7\\nno event\\n")
    events.write(json.dumps({{"time": 1.0, "phase": "step", "step": 40, "total_steps": 200, "examples_per_second": 1234,
        "limited_by": "input", "waiting_for_rows": 0.61, "share_of_peak": 0.39, "peak_examples_per_second": 3164}}) + "\\n")
print("up", os.getpid(), flush=True)
while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)
"""
    number = service.create(source)
    from test_local_support import wait_for

    wait_for(lambda: "up" in service.log(number))
    text = browser.page(f"/customJobs/{number}")
    assert "Limited by input: 61% of the time waiting for rows, 39% of the 3,164 examples/s that computing takes" in text
    assert "step 40 of 200, 1,234 examples/s" in text and "data-live" in text and "runs" in text and ">Cancel<" in text
    assert "data-tail" in browser.page(f"/logs/{number}/workerpool0-0")
    assert re.search("[1-9][0-9]* running", browser.page("/")), "perhaps with jobs of other tests"
    pid = int(service.log(number).split()[1])
    go.touch()
    service.ended(number)
    gone(pid)
    text = browser.page(f"/customJobs/{number}")
    assert ">Cancel<" not in text and "step 40" not in text


@pytest.mark.parametrize(
    "kind, fields, shows",
    [
        (
            "trainingPipelines",
            {"trainingTaskInputs": {"a": 1}, "modelToUpload": {"displayName": "m"}, "inputDataConfig": {"datasetId": "7"}},
            ["✕ FAILED</span> Upload of the model: m", "a: 1", 'Export of the data set: <a href="/console/datasets/7">7</a>'],
        ),
        ("pipelineJobs", {"runtimeConfig": {"parameterValues": {"lr": 0.5}}}, ["Run again", "<dt>lr</dt>"]),
        (
            "batchPredictionJobs",
            {"model": "p/models/7", "modelVersionId": "2", "inputConfig": {"gcsSource": {"uris": ["gs://a-b/in/x*"]}},
             "outputInfo": {"gcsOutputDirectory": "gs://a-bucket/out"}, "completionStats": {"failedCount": "3"}},
            ['files/a-bucket/out">gs://a-bucket/out</a>', 'files/a-b/in/">gs://a-b/in/x*</a>', 'models/7?version=2">7</a>', "<dd>3</dd>"],
        ),
    ],
)  # fmt: skip
def test_every_kind_of_job_has_a_page_and_its_record_can_be_deleted(service, browser, kind, fields, shows):
    from vertex_local.local.job_record import prefix

    name, error = f"{PARENT.removeprefix('/v1/')}/{kind}/8001", {"code": 3, "message": f"went wrong {EVIL}"}
    keep(service, kind, {"name": name, "displayName": "j", "state": f"{prefix(kind)}FAILED", "error": error, **fields})
    text = browser.page(f"/{kind}/8001")
    assert all(each in text for each in (*shows, "FAILED:", "went wrong &lt;script", "Delete the record")), text
    assert browser.post(f"/{kind}/8001/delete").startswith(f"/console/{kind}?said=The+record+of+")
    browser.page(f"/{kind}/8001", 404)


def keep(service: Service, kind: str, document: dict) -> None:
    """Put a record into the service's store."""
    from vertex_local.local.store import Store

    store = Store(service.state)
    store.add(document["name"], kind, {"createTime": "2026-01-01T00:00:00Z", **document})
    store.close()


def test_what_was_imported_into_a_data_set_is_shown(service, browser):
    item = {"textContent": "a", "classificationAnnotation": {"displayName": "b"}}
    made = write_object(service, "text-bucket/titles.jsonl", json.dumps(item))
    schemas = "gs://google-cloud-aiplatform/schema/dataset"
    text = {"displayName": "titles", "metadataSchemaUri": f"{schemas}/metadata/text_1.0.0.yaml"}
    name = service.operation(service.call("POST", "/datasets", text))["response"]["name"].rpartition("/")[2]
    form = f"{schemas}/ioformat/text_classification_single_label_io_format_1.0.0.yaml"
    body = {"importConfigs": [{"gcsSource": {"uris": [made]}, "importSchemaUri": form}]}
    assert "error" not in service.operation(service.call("POST", f"/datasets/{name}:import", body))
    assert f">{made}</a>" in browser.page(f"/datasets/{name}")


def test_a_model_that_cannot_be_deployed_leaves_no_endpoint(service, browser):
    uri = write_object(service, "own-bucket/model/saved_model.pb", "x").rpartition("/")[0]
    own = {"displayName": "own", "artifactUri": uri, "containerSpec": {"imageUri": "host/own-server:1"}}
    number = service.call("POST", "/models:upload", {"model": own})["response"]["model"].rpartition("/")[2]
    assert "it cannot run" in browser.post(f"/models/{number}/deploy", 501, version="1", endpoint="", share="100")
    assert "host/own-server" in browser.page(f"/models/{number}") and service.call("GET", "/endpoints") == {}


def test_the_page_of_an_error_stays_in_the_project(browser):
    text = browser.page("/customJobs/404404?parent=projects%2Fother%2Flocations%2Feurope-west4", 404)
    assert "other · europe-west4" in text


def test_errors_are_pages(browser):
    assert "NOT_FOUND" in browser.page("/customJobs/404404", 404)
    assert "no page" in browser.page("/nonsense", 404)
    assert "takes 0 to 100 percent" in browser.post("/endpoints/1/traffic", 400, **{"share.1": "9" * 5000})


def test_a_folder_with_a_link_to_nothing_is_shown(service, browser):
    write_object(service, "odd-bucket/file", "x")
    (service.state / "buckets" / "odd-bucket" / "gone").symlink_to("nowhere")
    (service.state / "buckets" / "odd-bucket" / os.fsdecode(b"caf\xe9.bin")).touch()
    text = browser.page("/files/odd-bucket")
    assert ">file<" in text and ">gone<" not in text and 'href="/console/files/odd-bucket/caf%E9.bin"' in text
    browser.page(f"/files/odd-bucket/{'x' * 300}", 404)
    browser.page(f"/logs/{'1' * 300}/workerpool0-0", 404)


def test_attributions_of_any_shape_are_bars():
    found = {"fare": 1.0, "picture": [[0.5, -2.0], [0.25, 0.0]], "words": [3.0]}
    shown = endpoints._attribution({"explanations": [{"attributions": [{"featureAttributions": found}]}]})
    assert all(f">{name}</text>" in shown["shares"] for name in ("fare", "words", "picture 2", "picture 4"))


def test_the_command_prints_an_address(service, capsys, monkeypatch, tmp_path):
    assert command.main([f"--state_dir={service.state}"]) == 0
    found = Browser(service)
    assert found.ask("GET", capsys.readouterr().out.strip().removeprefix(found.origin), Sec_Fetch_Site="none")[0] == 303
    assert command.main([f"--state_dir={tmp_path}"]) == 1
    assert "no service runs" in capsys.readouterr().err


# ------------------------------------------------------------------ parts


def test_a_log_however_long_is_read_in_parts(tmp_path):
    path = tmp_path / "x.log"
    with open(path, "w") as file:
        for i in range(200_000):
            file.write(f"line {i}\n")
    end = log_view.before(path)
    assert [end.lines[0].text, end.lines[-1].text] == [f"line {200_000 - log_view.LINES}", "line 199999"]
    earlier = log_view.before(path, end.begin)
    assert earlier.end == end.begin and earlier.lines[-1].text == f"line {200_000 - log_view.LINES - 1}"
    assert log_view.behind(path, earlier.begin).lines == earlier.lines
    found = log_view.search(path, "LINE 1234")
    assert [line.text for line in found.lines[:2]] == ["line 1234", "line 12340"] and not found.more
    many = log_view.search(path, "line")
    assert many.more and len(many.lines) == log_view.LINES
    assert log_view.search(path, "line", many.end).lines[0].text == f"line {log_view.LINES}"
    path.write_text("no end\nof line")
    assert [line.text for line in log_view.before(path).lines] == ["no end", "of line"]
    with open(path, "wb") as file:  # bars of progress, which are written over one another
        file.write(b"x" * (9 << 20))
    part, places = log_view.before(path), []
    while part.begin:
        assert len(part.lines) == 1 and part.end - part.begin <= 5 << 20
        places.append(part.begin)
        part = log_view.before(path, part.begin)
    assert len(places) == 2 and log_view.before(path).lines[0].text.startswith("xxx")
    path.write_bytes(b"found " + b"x" * (9 << 20) + b"\nfound\n")
    found = log_view.search(path, "Found")
    assert [line.at for line in found.lines] == [0, 7 + (9 << 20)] and found.end == found.size, "what follows a long line is searched"
    path.write_bytes(b"step 1\rstep 2\r" * 1000)
    assert len(log_view.before(path).lines) == log_view.LINES
    assert log_view.before(tmp_path / "none").lines == [] and log_view.search(tmp_path / "none", "x").lines == []


def test_forms_are_read():
    assert forms.read(FORM, b"a=1&b=%C3%A9&a=2").fields == {"a": "2", "b": "é"}
    body = (
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\none\r\ntwo\r\n--x\r\nContent-Disposition: form-data; name="f";'
        b' filename="i.png"\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n\xff\r\n--x--\r\n'
    )
    found = forms.read("multipart/form-data; boundary=x", body)
    assert found.fields == {"a": "one\ntwo"} and found.files == {"f": b"\x89PNG\r\n\xff"}
    mail = body.replace(b"image/png", b"message/rfc822")
    assert forms.read("multipart/form-data; boundary=x", mail).files == found.files, "a file is bytes, whatever is in it"
    for kind, content in (("text/plain", b""), (FORM, b"\xff"), ("multipart/form-data", b"--x"), ("multipart/form-data; boundary=x", b"")):
        with pytest.raises(ApiError):
            forms.read(kind, content)


def test_charts_are_drawn():
    drawn = str(charts.lines([charts.Series("a<b", [(0, 1.0), (1, float("nan")), (2, 3.0)]), charts.Series("c", [(0, 2.0)])]))
    assert drawn.count("<circle") == 3 and "a&lt;b" in drawn and "<b" not in drawn.replace("a&lt;b", "")
    assert charts.lines([]) == "" and charts.lines([charts.Series("a", [(0, float("inf"))])]) == ""
    alike = [charts.Series("a", [(0, 0.9), (1, 0.9000000000000001)])]
    assert str(charts.lines(alike)).count('class="grid"') <= 7, "values that differ by their last digit have few ticks, too"
    axes = [charts.Coordinate("lr", [0.1, 0.001], log=True), charts.Coordinate("kind", ["x", None])]
    assert str(charts.parallel(axes, ["one", "two"], {0})).count("<polyline") == 2
    assert str(charts.bars({"a": 1.0, "b": -2.0})).count("<rect") == 2 and charts.bars({}) == ""


def test_curves_of_a_run_that_goes_on(tmp_path):
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(name: str, steps: range, mode: str = "wb", when: float = 1.0) -> None:
        with open(tmp_path / name, mode) as file:
            for step in steps:
                event = event_pb2.Event(step=step, wall_time=when + step)
                event.summary.value.add(tag="loss", simple_value=float(step))
                RecordWriter(file).write(event.SerializeToString())

    reader = Curves()
    write("events.out.tfevents.1", range(5))
    assert reader.of(tmp_path)["loss"][""].steps == [0, 1, 2, 3, 4]
    write("events.out.tfevents.1", range(5, 8), "ab")
    whole = (tmp_path / "events.out.tfevents.1").read_bytes()
    (tmp_path / "events.out.tfevents.1").write_bytes(whole[:-3])  # the last one is being written
    assert reader.of(tmp_path)["loss"][""].steps == list(range(7))
    (tmp_path / "events.out.tfevents.1").write_bytes(whole)
    write("events.out.tfevents.2", range(4, 10), when=100.0)  # killed, and resumed from step 4
    assert reader.of(tmp_path)["loss"][""].steps == list(range(10))
    assert reader.of(tmp_path / "none") == {}
    long = Curve()
    for step in range(3 * MOST_POINTS):
        long.add(step, float(step))
    assert len(long.steps) <= MOST_POINTS and long.steps == sorted(long.steps) and long.steps[-1] == 3 * MOST_POINTS - 1


def test_a_signature_is_read_without_tensorflow(tmp_path):
    from tensorboard.compat.proto import meta_graph_pb2, types_pb2

    assert saved_models.signature(tmp_path) is None
    path = tmp_path / "saved_model.pb"
    path.write_bytes(b"\x08\x01\x12\xff\xff")
    assert saved_models.signature(tmp_path) is None
    graph = meta_graph_pb2.MetaGraphDef()
    signature = graph.signature_def["serving_default"]
    for name, kind, shape in (("x", types_pb2.DT_FLOAT, (-1, 3)), ("image_bytes", types_pb2.DT_STRING, (-1,))):
        signature.inputs[name].dtype = kind
        for size in shape:
            signature.inputs[name].tensor_shape.dim.add(size=size)
    signature.outputs["y"].dtype = types_pb2.DT_FLOAT8_E5M2
    content = graph.SerializeToString()
    length = bytes([len(content) & 0x7F | 0x80, len(content) >> 7])  # a varint of two bytes
    path.write_bytes(b"\x08\x01\x12" + length + content)
    found = saved_models.signature(tmp_path)
    assert [(each.name, str(each), each.is_file) for each in found.inputs] == [
        ("image_bytes", "string [any]", True), ("x", "float32 [any, 3]", False),
    ]  # fmt: skip
    assert [str(each) for each in found.outputs] == ["float8_e5m2 []"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "saved_model.pb").write_bytes(b"\x08\x01")
    assert saved_models.signature(tmp_path / "other") is None, "there is no graph in it"
