"""Make a version of a registered model its champion, if its evaluation passes the gate: `scripts/promote`.

    scripts/promote taxifare@2 --evaluation=out/evaluation.json --threshold=3.5 --endpoint=taxifare
    scripts/rollback taxifare --endpoint=taxifare

The version gets the alias `champion`; the one that had it keeps `previous-champion`. With --endpoint it is deployed and gets
the traffic, too. Without @VERSION the `challenger` is promoted. The gate: the objective reaches --threshold; the model is not
significantly worse than the champion on the same rows; the rows are not further from the training rows than --most_skew; it
takes and answers what the champion does. What was done already is not done again, so that a command that broke off can be
repeated. A roll-back (scripts/rollback, or --rollback) asks no gate: it makes the previous champion the champion again.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vertex_local import cli
from vertex_local.errors import UserError, quoted
from vertex_local.job import settings
from vertex_runtime import errors as runtime_errors
from vertex_runtime.evaluation import gate

from . import checkout, cloud, registry, sdk, transfer
from .cloud import CloudError
from .registry import CHALLENGER, CHAMPION, PREVIOUS, ROLLED_BACK, Registry, Version
from .traffic import Traffic

REFUSED = 3  # the exit code where the gate refuses


@dataclass(frozen=True)
class Step:
    """One change: what it does, in words, and what does it."""

    what: str
    do: Callable[[], Any]


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="scripts/promote", description=__doc__)
    parser.add_argument("model", metavar="MODEL[@VERSION]", help="id, full name or display name, and a version's number or alias")
    parser.add_argument("--evaluation", metavar="FILE", help="evaluation.json of that version, made with --against the champion")
    parser.add_argument("--threshold", metavar="X", type=float, help="what the objective must reach: at most X if it is minimized")
    parser.add_argument("--most_skew", metavar="X", type=float, help="the largest distance of a column from the training rows, 0 to 1")
    parser.add_argument(
        "--significance", metavar="P", type=float, default=gate.SIGNIFICANCE, help="p-value below which worse is no chance (default: 0.05)"
    )  # fmt: skip
    parser.add_argument("--endpoint", metavar="NAME", help="move the model's traffic of this endpoint, too: id, full name or display name")
    parser.add_argument("--machine_type", metavar="TYPE", help="for what has to be deployed (default: as the version that serves)")
    parser.add_argument("--rollback", action="store_true", help="make the previous champion, or VERSION, the champion again")
    sdk.add_flags(parser)
    cloud.add_flags(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Promote a version or roll back; return the exit code: REFUSED if the gate refuses."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _main(args))


def _main(args: argparse.Namespace) -> int:
    _check_flags(args)
    evaluation = None if args.rollback else _of_runtime(lambda: gate.load(args.evaluation))
    name, _, wanted = args.model.partition("@")
    service = _service(args, name)
    model = Registry(service, name)
    versions = model.versions()
    traffic = Traffic(service, args.endpoint, model.name, args.machine_type) if args.endpoint else None
    if evaluation is None:
        version = _former(model, versions, wanted)
        steps = _make_champion(model, versions, version, ROLLED_BACK, (PREVIOUS, ROLLED_BACK))
    else:
        version = _find(versions, wanted or CHALLENGER, model)
        reasons = _reasons(args, evaluation, model, versions, version)
        if reasons:
            print(f"error: {model.name}@{version.number} is not promoted: {'; '.join(reasons)}.", file=sys.stderr)
            return REFUSED
        steps = _import(model, version, evaluation)
        steps += _make_champion(model, versions, version, PREVIOUS, (CHALLENGER, PREVIOUS, ROLLED_BACK))
    steps = [*(_moves(traffic, version) if traffic else []), *steps]
    return _carry_out(steps, model, version, traffic, args.dry_run)


def _check_flags(args: argparse.Namespace) -> None:
    gates = [f"--{name}" for name in ("evaluation", "threshold", "most_skew") if getattr(args, name) is not None]
    if args.rollback and gates:
        raise UserError(f"{gates[0]}: is for a promotion; leave it out, a roll-back asks no gate.")
    if not args.rollback and not args.evaluation:
        raise UserError("--evaluation: is required: nothing is promoted without one; see scripts/promote --help.")
    if args.machine_type and not args.endpoint:
        raise UserError("--machine_type: is for --endpoint; give that, too.")


def _of_runtime(work: Callable[[], Any]) -> Any:
    """Return what `work` does; mistakes that the runtime finds are the user's here, too."""
    try:
        return work()
    except runtime_errors.UserError as error:
        raise UserError(str(error)) from None


def _service(args: argparse.Namespace, name: str) -> sdk.Service:
    """Return the service; a full name says in which project and region. A dry run asks, and changes nothing."""
    given = settings.from_flags(args)
    if "/" in name:
        place = re.fullmatch(r"projects/([^/]+)/locations/([^/]+)/models/[\w-]+", name)
        if not place:
            raise UserError(f"MODEL: takes an id or projects/P/locations/L/models/ID; got {quoted(name)}.")
        given |= {"project": place[1], "region": place[2]}
    values = cloud.load_settings(checkout.SETTINGS, given, ("project", "region"), cloud.is_local(args.api_endpoint))
    return sdk.connect(values, argparse.Namespace(**{**vars(args), "dry_run": False}))


# ------------------------------------------------------------------ which version


def _find(versions: Mapping[str, Version], wanted: str, model: Registry) -> Version:
    for version in versions.values():
        if wanted == version.number or wanted in version.aliases:
            return version
    known = ", ".join(f"{each.number} ({', '.join(each.aliases)})" if each.aliases else each.number for each in versions.values())
    raise UserError(f"MODEL@VERSION: {model.name} has no version {quoted(wanted)}; give one of {known}.")


def _holder(versions: Mapping[str, Version], alias: str) -> Version | None:
    return next((version for version in versions.values() if alias in version.aliases), None)


def _former(model: Registry, versions: Mapping[str, Version], wanted: str) -> Version:
    """Return the version to which a roll-back returns."""
    if wanted:
        return _find(versions, wanted, model)
    previous, champion = _holder(versions, PREVIOUS), _holder(versions, CHAMPION)
    if previous:
        return previous
    if champion and _holder(versions, ROLLED_BACK):
        return champion  # its aliases are rolled back already; the endpoint may not be
    raise UserError(f"MODEL: no version of {model.name} has the alias {PREVIOUS}; name the version to return to: MODEL@VERSION.")


# ------------------------------------------------------------------ the gate


def _reasons(
    args: argparse.Namespace, evaluation: Mapping[str, Any], model: Registry, versions: Mapping[str, Version], version: Version
) -> list[str]:
    """Return what speaks against a promotion.

    Raises:
        UserError: the evaluation is of another model, or was not made against the champion.
    """
    client = functools.cache(lambda: transfer.open_client(model.service.project, args.token_file))
    if not registry.is_same(evaluation["model"], version.uri, client):
        text = f"is of {evaluation['model']}, whose files are not those of version {version.number}, {version.uri}"
        raise UserError(f"--evaluation: {args.evaluation} {text}; evaluate that: --evaluate={version.uri}.")
    champion = _holder(versions, CHAMPION)
    if champion and champion != version:
        against = (evaluation.get("against") or {}).get("model")
        if not against or not registry.is_same(against, champion.uri, client):
            text = f"was made against {against or 'no other model'}; the champion is version {champion.number}"
            raise UserError(f"--evaluation: {args.evaluation} {text}: evaluate with --against={champion.uri}.")
    limits = {"threshold": args.threshold, "most_skew": args.most_skew, "significance": args.significance}
    return _of_runtime(lambda: gate.refusals(evaluation, **limits))


# ------------------------------------------------------------------ what is changed


def _import(model: Registry, version: Version, evaluation: Mapping[str, Any]) -> list[Step]:
    if not registry.schema_of(evaluation):
        print(f"note: the registry has no schema for evaluations of the kind {evaluation['kind']}; it is not imported.", file=sys.stderr)
        return []
    if model.has_evaluation(version.number, evaluation):
        return []
    what = f"import the evaluation into version {version.number}"
    return [Step(what, lambda: model.import_evaluation(version.number, evaluation))]


def _make_champion(model: Registry, versions: Mapping[str, Version], version: Version, left: str, lost: Sequence[str]) -> list[Step]:
    """Return the changes of aliases that make a version the champion.

    Args:
        left: the alias of the former champion, given first, so that there is one to return to.
        lost: what the version is no longer.
    """
    former, taken = _holder(versions, CHAMPION), [alias for alias in lost if alias in version.aliases]
    if former == version:
        return []
    steps = []
    if former and left not in former.aliases:
        steps.append(Step(f"alias {left} to version {former.number}", lambda: model.give(former.number, left)))
        taken = [alias for alias in taken if alias != left]  # gone with the step before
    return [*steps, Step(f"alias {CHAMPION} to version {version.number}", lambda: model.give(version.number, CHAMPION, *taken))]


def _moves(traffic: Traffic, version: Version) -> list[Step]:
    """Return the changes of the endpoint: what takes long and may fail, then what clients notice."""
    endpoint = traffic.read()
    number = traffic.deployed(version.number, endpoint)
    split = traffic.wanted_split(endpoint, number or "new")
    share = split[number or "new"]
    if number and dict(endpoint.traffic_split) == split:
        return []
    patience = "" if cloud.is_local(traffic.service.url) else " (ten minutes or more)"
    deploy = Step(f"deploy version {version.number} on {traffic.name}{patience}", lambda: traffic.deploy(version.number))
    move = Step(f"{share} % of the endpoint's traffic to version {version.number}", lambda: traffic.move(version.number))
    return [*([] if number else [deploy]), move]


def _carry_out(steps: Sequence[Step], model: Registry, version: Version, traffic: Traffic | None, dry_run: bool) -> int:
    """Make the changes one by one; where one fails, say which were made and which were not."""
    name = f"{model.name}@{version.number}"
    if not steps:
        print(f"nothing to do: {name} is the {CHAMPION}{f' and serves on {traffic.name}' if traffic else ''}.")
        return 0
    for place, step in enumerate(steps):
        print(f"{'would do' if dry_run else 'do'}: {step.what}", flush=True)
        try:
            if not dry_run:
                step.do()
        except (CloudError, UserError) as error:
            done = "; ".join(each.what for each in steps[:place]) or "nothing"
            left = "; ".join(each.what for each in steps[place:])
            raise CloudError(f"{error} Done: {done}. Not done: {left}. The same command goes on from here.") from None
    if dry_run:
        return 0
    print(f"{name} is the {CHAMPION}")
    for number in traffic.idle(version.number) if traffic else ():
        where = f"--project={model.service.project} --region={model.service.region}"
        undo = f"gcloud ai endpoints undeploy-model {traffic.number} {where} --deployed-model-id={number}"
        print(f"  gets no traffic, costs money, and makes a roll-back fast; to end it   $ {undo}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
