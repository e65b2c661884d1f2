"""What can be looked at in the project, with the user's credentials: billing, APIs, permissions, bucket, repository, quotas."""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Callable, Mapping, Sequence

from .. import jobs
from . import quotas
from .findings import MISSING, OK, SKIPPED, WARNING, Check, Finding
from .google_api import Google, Refused, Silent

APIS = ("aiplatform.googleapis.com", "storage.googleapis.com", "artifactregistry.googleapis.com")
SEND = ("aiplatform.customJobs.create", "aiplatform.customJobs.get")
MORE = (
    "aiplatform.hyperparameterTuningJobs.create", "aiplatform.trainingPipelines.create", "aiplatform.pipelineJobs.create",
    "aiplatform.models.upload", "aiplatform.endpoints.create", "aiplatform.endpoints.deploy",
)  # fmt: skip
FILES = ("storage.objects.create", "storage.objects.get", "storage.objects.list")


class Project:
    """The looks at one project, for one job, if the user named one; `values` are all settings."""

    def __init__(self, google: Google, values: Mapping[str, str], job: jobs.Job | None = None) -> None:
        self.google, self.values, self.job = google, values, job
        self.project, self.region = values["project"], values["region"]

    def checks(self) -> list[Check]:
        """Return the looks that the APIs in reach allow, and for the rest one line that says why there are none."""
        wanted: list[tuple[str, str, Callable[[], Finding | list[Finding]]]] = [
            ("aiplatform", "service", self.service), ("cloudbilling", "billing", self.billing), ("serviceusage", "APIs", self.apis),
            ("cloudresourcemanager", "permissions", self.permissions), ("storage", "bucket", self.bucket),
            ("artifactregistry", "repository", self.repository),
        ]  # fmt: skip
        if self.job and self.job.spec.service_account:
            wanted.append(("iam", "account", self.account))
        if self.job:
            wanted += [("artifactregistry", "images", self.images), ("serviceusage", "quotas", self.quotas)]
        found = [
            Check(what, functools.partial(self._look, what, work, api), vital=api == "aiplatform")
            for api, what, work in wanted
            if self.google.reaches(api)
        ]
        left = [what for api, what, _ in wanted if not self.google.reaches(api)]
        if left:
            text = f"{', '.join(left)}: the service on this machine ({self.google.local}) knows no such thing"
            found.append(Check("project", lambda: Finding(SKIPPED, "project", text, "in a shell without its variables, ask again")))
        return found

    def _look(self, what: str, work: Callable[[], Finding | list[Finding]], api: str) -> Finding | list[Finding]:
        """Do one look; what the API says against it becomes a finding."""
        level = MISSING if api == "aiplatform" else SKIPPED
        try:
            return work()
        except Silent as error:
            return Finding(level, what, str(error), "see to the network, the proxy (HTTPS_PROXY), the region's name")
        except Refused as error:
            return Finding(level, what, f"{api} answered {error}", self._remedy(error, api))

    def _remedy(self, error: Refused, api: str) -> str:
        if "quota project" in str(error):
            return f"gcloud auth application-default set-quota-project {self.project}"
        if error.reason == "SERVICE_DISABLED":
            return f"gcloud services enable {api}.googleapis.com --project={self.project}"
        if error.code == 401:
            return "gcloud auth application-default login"
        return self._grant("roles/aiplatform.user" if api == "aiplatform" else "roles/viewer") if error.code == 403 else ""

    def _grant(self, role: str) -> str:
        return f"gcloud projects add-iam-policy-binding {self.project} --member=user:YOU --role={role}"

    # -------------------------------------------------------------- the looks

    def service(self) -> Finding:
        """Ask for the region's jobs: one answer shows that the project, the region, the API and the credentials are right."""
        where = f"{self.project} in {self.region}"
        self.google.ask("aiplatform", f"v1/projects/{self.project}/locations/{self.region}/customJobs", pageSize=1)
        return Finding(OK, "service", f"{self.google.local or 'Vertex AI'} answers for {where}")

    def billing(self) -> Finding:
        """Tell whether somebody pays."""
        info = self.google.ask("cloudbilling", f"v1/projects/{self.project}/billingInfo")
        if not info.get("billingEnabled"):
            command = f"gcloud billing projects link {self.project} --billing-account=ACCOUNT_ID"
            return Finding(MISSING, "billing", f"{self.project} has no open billing account", command)
        return Finding(OK, "billing", f"{self.project} is paid by {info.get('billingAccountName', 'an account')}")

    def apis(self) -> Finding:
        """Tell which of the APIs that a job needs are off."""
        parent = f"projects/{self.project}"
        answer = self.google.ask("serviceusage", f"v1/{parent}/services:batchGet", names=[f"{parent}/services/{api}" for api in APIS])
        on = {service["name"].rpartition("/")[2] for service in answer.get("services", ()) if service.get("state") == "ENABLED"}
        off = [api for api in APIS if api not in on]
        if off:
            return Finding(MISSING, "APIs", f"off: {', '.join(off)}", f"gcloud services enable {' '.join(off)} --project={self.project}")
        return Finding(OK, "APIs", f"on: {', '.join(APIS)}")

    def permissions(self) -> Finding:
        """Tell what you may not do in the project."""
        lacking = self._lacking("cloudresourcemanager", f"v3/projects/{self.project}", (*SEND, *MORE))
        if not lacking:
            return Finding(OK, "permissions", "you may send jobs, tune, register and deploy models")
        level = MISSING if set(lacking) & set(SEND) else WARNING
        return Finding(level, "permissions", f"you lack {', '.join(lacking)}", self._grant("roles/aiplatform.user"))

    def _lacking(self, api: str, resource: str, permissions: Sequence[str]) -> list[str]:
        answer = self.google.ask(api, f"{resource}:testIamPermissions", {"permissions": list(permissions)})
        return [name for name in permissions if name not in answer.get("permissions", ())]

    def bucket(self) -> list[Finding]:
        """Tell whether the bucket is there, where it lies, and whether you may write into it."""
        name, path = self.values["bucket"], f"b/{urllib.parse.quote(self.values['bucket'], safe='')}"
        found = self.google.find("storage", path)
        if self.google.local and found is None:
            text = f"gs://{name} is not there yet: a job's outputs make it, an upload needs it"
            return [Finding(WARNING, "bucket", text, f"gcloud storage buckets create gs://{name}")]
        if self.google.local:
            return [Finding(OK, "bucket", f"gs://{name} is there, on this machine")]
        if found is None:
            where = f"--project={self.project} --location={self.region} --uniform-bucket-level-access"
            return [Finding(MISSING, "bucket", f"gs://{name} is not there", f"gcloud storage buckets create gs://{name} {where}")]
        return self._found_bucket(name, path, found.get("location", "").lower())

    def _found_bucket(self, name: str, path: str, place: str) -> list[Finding]:
        found = [Finding(OK, "bucket", f"gs://{name} lies in {place}")]
        if place != self.region:
            text = f"gs://{name} lies in {place}, jobs run in {self.region}: slower, reading may cost, and /gcs needs one region"
            found = [Finding(WARNING, "bucket", text, f"a bucket in {self.region}, or another region in settings.yaml")]
        answer = self.google.ask("storage", f"{path}/iam/testPermissions", permissions=list(FILES))
        lacking = [permission for permission in FILES if permission not in answer.get("permissions", ())]
        if lacking:
            grant = f"gcloud storage buckets add-iam-policy-binding gs://{name} --member=user:YOU --role=roles/storage.objectUser"
            found.append(Finding(WARNING, "bucket", f"you lack {', '.join(lacking)} in gs://{name}", grant))
        return found

    def repository(self) -> Finding:
        """Tell whether images have a place, and whether you may push them."""
        name = self.values.get("repository", "")
        resource = f"v1/projects/{self.project}/locations/{self.region}/repositories/{name}"
        own = self.job is None or any(pool.image.startswith(f"{self.values.get('images')}/") for pool in self.job.trainer_pools)
        level = MISSING if own else WARNING  # prebuilt containers need none
        if not name:
            return Finding(level, "repository", "not set", "put `repository: trainers` into settings.yaml")
        found = self.google.find("artifactregistry", resource)
        if found is None:
            where = f"--repository-format=docker --location={self.region} --project={self.project}"
            return Finding(level, "repository", f"{name} is not in {self.region}", f"gcloud artifacts repositories create {name} {where}")
        if found.get("format") != "DOCKER":
            return Finding(level, "repository", f"{name} holds {found.get('format')}, not Docker's images", "name another in settings.yaml")
        if self._lacking("artifactregistry", resource, ("artifactregistry.repositories.uploadArtifacts",)):
            grant = f"gcloud artifacts repositories add-iam-policy-binding {name} --location={self.region} --project={self.project}"
            text = f"you may not push to {name}"
            return Finding(WARNING, "repository", text, f"{grant} --member=user:YOU --role=roles/artifactregistry.writer")
        return Finding(OK, "repository", f"{self.values['images']} is there, and you may push to it")

    def account(self) -> Finding:
        """Tell whether you may let the job run as the service account that its file names."""
        email = self.job.spec.service_account
        if self._lacking("iam", f"v1/projects/-/serviceAccounts/{email}", ("iam.serviceAccounts.actAs",)):
            grant = f"gcloud iam service-accounts add-iam-policy-binding {email} --project={self.project} --member=user:YOU"
            return Finding(MISSING, "account", f"you may not act as {email}", f"{grant} --role=roles/iam.serviceAccountUser")
        return Finding(OK, "account", f"you may act as {email}")

    def images(self) -> list[Finding]:
        """Tell which of the job's images, as far as they are of the project's own repository, are not there."""
        prefix = f"{self.values.get('images')}/"
        own = dict.fromkeys(pool.image for pool in self.job.trainer_pools if pool.image.startswith(prefix))
        return [self._image(uri, uri.removeprefix(prefix)) for uri in own]

    def _image(self, uri: str, short: str) -> Finding:
        name, _, tag = short.partition(":")
        repository = f"v1/projects/{self.project}/locations/{self.region}/repositories/{self.values['repository']}"
        if "@" in name:
            return Finding(SKIPPED, "images", f"{uri}: only tags are looked for")
        path = f"{repository}/packages/{urllib.parse.quote(name, safe='')}/tags/{tag or 'latest'}"
        if self.google.find("artifactregistry", path) is None:
            trainer = name.partition("-")[0]
            command = f"scripts/build_image --trainer {trainer}{f' --name {name}' if name != trainer else ''} --push"
            return Finding(MISSING, "images", f"{uri} is not there", command)
        return Finding(OK, "images", f"{uri} is there")

    def quotas(self) -> list[Finding]:
        """Compare what the job needs at once with the limits of its region; what runs already is not counted."""
        at_once = self.job.message.parallel_trial_count if self.job.kind is jobs.TUNING else 1
        scheduling = self.job.spec.scheduling
        preemptible = scheduling.strategy in (scheduling.Strategy.Value("SPOT"), scheduling.Strategy.Value("FLEX_START"))
        pools = [(pool.machine_fields, pool.replicas * max(1, at_once)) for pool in self.job.pools if pool.replicas]
        needed, unknown = quotas.needed(pools, preemptible)
        found = [self._quota(name, amount) for name, amount in needed.items()]
        page = f"https://console.cloud.google.com/iam-admin/quotas?project={self.project}"
        return found + [Finding(SKIPPED, "quotas", f"of {name}: its name is not known here", page) for name in unknown]

    def _quota(self, name: str, amount: int) -> Finding:
        metric = urllib.parse.quote(f"{quotas.SERVICE}/{name}", safe="")
        page = f"https://console.cloud.google.com/iam-admin/quotas?project={self.project}"
        path = f"v1beta1/projects/{self.project}/services/{quotas.SERVICE}/consumerQuotaMetrics/{metric}"
        found = self.google.find("serviceusage", path, view="FULL")  # with the regions that have no override
        limit = None if found is None else quotas.limit(found, self.region)
        if limit is None:
            return Finding(SKIPPED, "quotas", f"{name}: the service names no limit in {self.region}; the job needs {amount}", page)
        if 0 <= limit < amount:
            return Finding(MISSING, "quotas", f"{name} is {limit} in {self.region}, the job needs {amount}", f"ask for more: {page}")
        return Finding(OK, "quotas", f"{name} is {'unlimited' if limit < 0 else limit} in {self.region}, the job needs {amount}")
