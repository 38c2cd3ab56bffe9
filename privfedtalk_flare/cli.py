"""The command line, `privfedtalk`. Every command imports what it needs when it runs: help answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

JOBS = ("privfedtalk", "privfedtalk_sealed", "backbone", "fedavg", "fedprox")
"""Names of `flare.recipe.VARIANTS`, here so that help needs no import; a test keeps them equal."""


STUDIES = ("ablation", "few", "heterogeneity", "methods", "privacy", "scale")
"""Names of `study/shipped/*.yaml`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, or 1 with one line on stderr that says what to do."""
    parsed = build_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (ValueError, OSError) as error:  # what a user can mend; anything else is a defect and shows its traceback
        print(f"privfedtalk: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("privfedtalk: stopped", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; an unknown command is answered with the choices."""
    parser = argparse.ArgumentParser(prog="privfedtalk", description="Talking heads, trained across sites: federated, "
                                     "encrypted, differentially private. Sites run on NVIDIA FLARE; this is the rest.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_generate(commands)
    _add_personalize(commands)
    _add_summary(commands)
    _add_report(commands)
    _add_study(commands)
    _add_job(commands)
    _add_data(commands)
    _add_backbone(commands)
    _add_privacy(commands)
    _add_check(commands)
    _add_keys(commands)
    return parser


def _add_site(command: argparse.ArgumentParser) -> None:
    command.add_argument("workspace", type=Path, metavar="WORKSPACE",
                         help="the site's FLARE workspace, the folder that holds startup and local")
    command.add_argument("--site", metavar="NAME", help="the site's name (default: as its start-up kit says)")


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser("generate", help="make a talking video from a face picture and a speech file")
    generate.add_argument("--face", type=Path, required=True, help="the face, framed like the training clips")
    generate.add_argument("--audio", type=Path, required=True, help="speech, any length")
    generate.add_argument("--out", type=Path, required=True, help="the MP4 to write")
    generate.add_argument("--adapters", type=Path, nargs="*", default=[], metavar="FILE",
                          help="safetensors: the shared adapter, or it and the person's own on top of it")
    generate.add_argument("--backbone", default="assets", help="'assets' (shipped, the default), a folder, or a hub id")
    generate.add_argument("--steps", type=int, default=2, help="sampling steps (default 2)")
    generate.add_argument("--guidance", type=float, default=1.3,
                          help="how far the mouth follows the speech; 1 is plain (default 1.3)")
    generate.add_argument("--seed", type=int, default=0, help="seed of the sampling noise (default 0)")
    generate.set_defaults(run=_generate)


def _generate(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.generator.generate import generate

    generate(face=parsed.face, audio=parsed.audio, out=parsed.out, adapters=parsed.adapters, backbone=parsed.backbone,
             steps=parsed.steps, guidance=parsed.guidance, seed=parsed.seed)
    print(parsed.out)


def _add_personalize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    own = commands.add_parser("personalize", help="train people's own adapters on a finished shared one, at one site")
    _add_site(own)
    own.add_argument("--shared", type=Path, metavar="FILE", help="the shared adapter (default: the one that the last "
                     "job wrote into this site's state)")
    own.add_argument("--again", action="store_true", help="also who has an adapter that fits it")
    own.add_argument("--backbone", default="assets", help="'assets' (shipped, the default), a folder, or a hub id")
    own.add_argument("--steps", type=int, help="training steps of a person (default 60)")
    own.set_defaults(run=_personalize)


def _personalize(parsed: argparse.Namespace) -> None:
    from dataclasses import asdict, replace

    from privfedtalk_flare.evaluation.summary import pool_rows, site_rows
    from privfedtalk_flare.evaluation.table import rows_table
    from privfedtalk_flare.flare.books import site_at
    from privfedtalk_flare.settings import PERSONALIZE, TrainingSettings, parse
    from privfedtalk_flare.training.joining import personalize

    place, _ = site_at(parsed.workspace, parsed.site)
    place = replace(place, output=place.state)
    shared = parsed.shared or place.state / "shared" / "adapter.safetensors"
    steps = PERSONALIZE.steps if parsed.steps is None else parsed.steps
    training = parse(TrainingSettings, {**asdict(PERSONALIZE), "steps": steps}, "personalize")
    joined = personalize(place, shared, parsed.backbone, training, parsed.again, print)
    if joined.validation is None:
        print(f"everybody has an adapter of their own that fits {shared}; --again trains them anew")
        return
    print(rows_table(pool_rows([site_rows(joined.validation.rows, 1)]), width=100))
    for name, path in joined.adapters.items():
        print(f"{name}: {path}")


def _add_summary(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = commands.add_parser("summary", help="print a run's results as a table")
    summary.add_argument("path", metavar="RUN", type=Path, help="a FLARE workspace, a downloaded job, or summary.json")
    summary.set_defaults(run=_summary)


def _summary(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.evaluation.summary import load_summary
    from privfedtalk_flare.evaluation.table import render

    print(render(load_summary(parsed.path)))


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="one HTML page of a run or a study: videos, tables, curves")
    report.add_argument("path", metavar="RUN_OR_STUDY", type=Path, help="a study's folder, a FLARE workspace, a "
                        "downloaded job, or summary.json")
    report.add_argument("--out", type=Path, metavar="HTML", help="the page (default: report.html in that folder)")
    report.add_argument("--weights", type=Path, metavar="FOLDER", help="networks for LPIPS, FID, KID, ArcFace and LSE "
                        "(evaluation/films.py says which, in which form)")
    report.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.report.command import report

    print(report(parsed.path, parsed.out, parsed.weights))


def _add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    study = commands.add_parser("study", help="run a matrix of jobs in FLARE's simulator, and compare them")
    study.add_argument("study", metavar="STUDY", help=f"a STUDY.yaml, or a shipped one: {', '.join(STUDIES)}")
    study.add_argument("--out", type=Path, help="folder for all of it (default runs/study-<name>); what is "
                       "there is not run again")
    study.add_argument("--record", type=Path, metavar="MD", help="also write the results into this Markdown file, in "
                       "place of what it says of this study, and every run's values into results/ beside it, "
                       "from where another machine can go on")
    study.set_defaults(run=_study)


def _study(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.files import READABLE, write_whole
    from privfedtalk_flare.report.command import report
    from privfedtalk_flare.report.record import record
    from privfedtalk_flare.study.plan import load_study
    from privfedtalk_flare.study.results import Results
    from privfedtalk_flare.study.runner import run_study
    from privfedtalk_flare.study.told import as_text

    study = load_study(parsed.study)
    out = parsed.out or Path("runs") / f"study-{study.name}"
    values = None if parsed.record is None else parsed.record.parent / "results" / study.name
    results = Results(study, run_study(study, out, lambda line: print(line, flush=True), values))
    text = as_text(results)
    print(f"\n{text}\n{write_whole(out / 'results.md', text.encode(), READABLE)}")
    print(report(out, None, None))
    if parsed.record is not None:
        print(record(results, parsed.record, parsed.study))


def _add_job(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    job = commands.add_parser("job", help="FLARE job folders").add_subparsers(metavar="COMMAND", required=True)
    build = job.add_parser("build", help="export job folders, ready to submit")
    build.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(JOBS)} (default: all)")
    build.add_argument("--out", type=Path, default=Path("jobs"), help="folder to write into (default: jobs)")
    build.add_argument("--no-byoc", action="store_true", help="bring no code: for servers and sites that have "
                       "privfedtalk_flare. in their class_allow_list")
    build.add_argument("--own-clips", action="store_true", help="for the sites' own clips, not for rendered people")
    build.set_defaults(run=_build_jobs)


def _build_jobs(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.flare.recipe import build

    for folder in build(parsed.names, parsed.out, byoc=not parsed.no_byoc, own_clips=parsed.own_clips):
        print(folder)


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="corpora of clips").add_subparsers(metavar="COMMAND", required=True)
    prepare = data.add_parser("prepare", help="render synthetic people into a corpus, <identity>/<clip>.mp4")
    prepare.add_argument("corpus", type=Path, metavar="FOLDER", help="corpus folder to write")
    prepare.add_argument("--people", type=int, default=2, help="identities (default 2)")
    prepare.add_argument("--clips", type=int, default=5, help="clips of each (default 5)")
    prepare.add_argument("--seconds", type=float, default=3.0, help="length of a clip (default 3)")
    prepare.add_argument("--seed", type=int, default=2026, help="which people (default 2026)")
    prepare.add_argument("--first", type=int, default=0, help="number of the first person (default 0)")
    prepare.add_argument("--accent", type=float, default=0.0, help="how differently their lips shape the same sounds, "
                         "0 to 1 (default 0: as the shipped backbone's people)")
    prepare.set_defaults(run=_prepare_data)


def _prepare_data(parsed: argparse.Namespace) -> None:
    if min(parsed.people, parsed.clips) < 1 or parsed.seconds < 1 or min(parsed.seed, parsed.first) < 0:
        raise ValueError("--people and --clips must be at least 1, --seconds at least 1, --seed and --first at least 0")
    if not 0 <= parsed.accent <= 1:
        raise ValueError(f"--accent {parsed.accent:g}: must lie in 0 to 1")
    from privfedtalk_flare.data.synthetic import Person, write_corpus

    people = [Person.draw(parsed.seed, parsed.first + number, parsed.accent) for number in range(parsed.people)]
    paths = write_corpus(parsed.corpus, people, parsed.clips, parsed.seconds)
    print(f"{len(paths)} clips of {len(people)} people in {parsed.corpus}")


def _add_backbone(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    backbone = commands.add_parser("backbone", help="trained backbones").add_subparsers(metavar="COMMAND",
                                                                                        required=True)
    take = backbone.add_parser("import", help="measure a backbone that jobs/backbone trained, and ship it")
    take.add_argument("take_from", type=Path, metavar="RUN", help="the workspace of the run, or a downloaded job")
    take.add_argument("--to", type=Path, help="folder to write (default: the package's own assets)")
    take.add_argument("--people", type=int, default=8, help="unseen people to measure it on (default 8)")
    take.set_defaults(run=_import_backbone)


def _import_backbone(parsed: argparse.Namespace) -> None:
    import json

    from privfedtalk_flare.training.measure import import_backbone

    folder, numbers = import_backbone(parsed.take_from, parsed.to, parsed.people)
    print(json.dumps(numbers, indent=2))
    print(folder)


def _add_privacy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    privacy = commands.add_parser("privacy", help="what a study promises its people").add_subparsers(
        metavar="COMMAND", required=True)
    init = privacy.add_parser("init", help="make a site's ledger, its key and its anchor, once, before its first job")
    show = privacy.add_parser("show", help="a site's ledger: what was released, and epsilon so far")
    for command, run in ((init, _init_privacy), (show, _show_privacy)):
        _add_site(command)
        command.set_defaults(run=run)
    audit = privacy.add_parser("audit", help="attack what a run promised: canaries, a lying site, the scores")
    audit.add_argument("path", metavar="RUN", type=Path, help="a FLARE workspace, a downloaded job, or summary.json")
    audit.add_argument("--canaries", type=int, default=256, help="identities that are canaries (default 256)")
    audit.add_argument("--seed", type=int, default=0, help="which canaries take part (default 0)")
    audit.set_defaults(run=_audit_privacy)
    plan = privacy.add_parser("plan", help="the noise a promise takes, and how many people make it worth while")
    plan.add_argument("--identities", type=int, required=True, help="people at all sites together")
    plan.add_argument("--rounds", type=int, required=True, help="rounds of the shared adapter")
    plan.add_argument("--epsilon", type=float, required=True, help="the promise over all rounds")
    plan.add_argument("--delta", type=float, help="the delta at which epsilon is stated (default 1e-5)")
    plan.add_argument("--sampling", type=float, help="probability that a person takes part in a round (default 1)")
    plan.add_argument("--mode", help="metadata (default), counts, sealed or uniform: what the weights are made of")
    plan.add_argument("--gamma", type=float, help="sealed only: how strongly the score weighs (default 1)")
    plan.add_argument("--values", type=int, help="values of an update (default 90112: the shipped backbone at rank 8)")
    plan.add_argument("--sites", type=int, help="sites that take part (default 4)")
    plan.add_argument("--accountant", help="with sampling: prv (default, tight) or rdp (fast, looser)")
    plan.add_argument("--plot", type=Path, metavar="PNG", help="draw signal to noise by the number of people")
    plan.set_defaults(run=_plan_privacy)


def _audit_privacy(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.audit import audit_command

    audit_command(parsed.path, parsed.canaries, parsed.seed)


def _init_privacy(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.flare.books import site_at
    from privfedtalk_flare.privacy.opening import create

    place, files = site_at(parsed.workspace, parsed.site)
    head = create(files)
    print(f"{place.site}: ledger {head.id}\nledger: {files.ledger}\nkey:    {files.key}\nanchor: {files.anchor}")
    print("Back up all three, the ledger and the anchor after every job: without them this site takes part in nothing.")
    if place.anchor is None:
        print("The anchor lies beside the key; `anchor` in privfedtalk.yaml puts it on another disk.")
    if place.epsilon_max is None:
        print("No epsilon_max in privfedtalk.yaml: nothing but the jobs themselves limits what they spend.")


def _show_privacy(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.flare.books import site_at
    from privfedtalk_flare.privacy.ledger import Ledger
    from privfedtalk_flare.privacy.ledger_table import render

    place, files = site_at(parsed.workspace, parsed.site)
    ledger = Ledger(place.state, files.key.parent, place.anchor)
    print(render(ledger, place.site, place.delta, place.epsilon_max, width=120))


def _plan_privacy(parsed: argparse.Namespace) -> None:
    from dataclasses import fields

    from privfedtalk_flare.privacy.plan_plot import check_path, plot
    from privfedtalk_flare.privacy.plan_table import render
    from privfedtalk_flare.privacy.planner import Study, make_plan
    from privfedtalk_flare.settings import parse

    if parsed.plot is not None:
        check_path(parsed.plot)
    given = {field.name: getattr(parsed, field.name) for field in fields(Study)}
    plan = make_plan(parse(Study, {name: value for name, value in given.items() if value is not None}, "plan"))
    print(render(plan, width=100))
    if parsed.plot is not None:
        print(plot(plan, parsed.plot))


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser("check", help="a site's preflight: what would stop it, what is unsafe, what to do")
    _add_site(check)
    check.add_argument("--published", type=Path, nargs="*", default=[], metavar="FILE",
                       help="shared adapters that were given away: is their key still in use?")
    check.set_defaults(run=_check)


def _check(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.flare.preflight import check_command

    check_command(parsed.workspace, parsed.site, parsed.published, print)


def _add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser("keys", help="the encryption key that all sites share").add_subparsers(
        metavar="COMMAND", required=True)
    rotate = keys.add_parser("rotate", help="encrypt what the server keeps of a job under a new key, at one site")
    rotate.add_argument("state", type=Path, metavar="FILE", help="of the server: <state>/rounds/<job>.safetensors")
    rotate.add_argument("--old", type=Path, required=True, metavar="CONTEXT", help="client_context.tenseal so far")
    rotate.add_argument("--new", type=Path, required=True, metavar="CONTEXT", help="client_context.tenseal from now on")
    rotate.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file for the server")
    rotate.set_defaults(run=_rotate_keys)


def _rotate_keys(parsed: argparse.Namespace) -> None:
    from privfedtalk_flare.flare.rotation import rotate

    print(f"{parsed.out}: under key {rotate(parsed.state, parsed.old, parsed.new, parsed.out)[:12]}")


if __name__ == "__main__":
    sys.exit(main())
