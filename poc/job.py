"""One study in three places, as a data scientist would write it:

    python poc/job.py                                    FLARE's simulator, two sites
    python poc/job.py --env poc                          server and the three sites of poc/project.yml, as processes
    python poc/job.py --env prod --kit ADMIN_KIT         a deployment: ADMIN_KIT is your own start-up kit
    python poc/job.py --export --export-dir jobs         none of them: writes the job's folder

Change the settings below; privfedtalk_flare/settings.py says what each of them does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nvflare.recipe import PocEnv, ProdEnv, SimEnv

from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.evaluation.table import render
from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe
from privfedtalk_flare.settings import (
    DataSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    TrainingSettings,
)

ADMIN = "admin@privfedtalk.local"


def study(rounds: int, steps: int, min_sites: int) -> PrivFedTalkRecipe:
    """The job. Leave `data` out to train on the sites' own clips."""
    return PrivFedTalkRecipe(
        "study",
        data=DataSettings(source="synthetic", people=2, clips=4, accent=1.0),
        training=TrainingSettings(steps=steps),
        reliability=ReliabilitySettings(mode="metadata", gamma=1.0),
        privacy=PrivacySettings(noise_multiplier=2.0, clip_norm=0.004, epsilon_max=10.0),
        rounds=RoundSettings(rounds=rounds, min_sites=min_sites),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=("sim", "poc", "prod"), default="sim", help="where it runs (default sim)")
    parser.add_argument("--kit", default="", help="prod: the start-up kit of whoever submits")
    parser.add_argument("--user", default=ADMIN, help=f"poc and prod: who submits (default {ADMIN})")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the shared adapter (default 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a person in a round (default 20)")
    parser.add_argument("--min-sites", type=int, default=2, help="sites for which it waits (default 2)")
    parsed = parser.parse_args()
    recipe = study(parsed.rounds, parsed.steps, parsed.min_sites)
    if parsed.env == "sim":
        env = SimEnv(num_clients=2, workspace_root=str(Path("runs/sim").resolve()))
    elif parsed.env == "poc":
        env = PocEnv(project_conf_path="poc/project.yml", username=parsed.user)
    else:
        env = ProdEnv(startup_kit_location=str(Path(parsed.kit).resolve()), username=parsed.user)
    run = recipe.execute(env)  # with --export it writes the job and ends here
    result = run.get_result(clean_up=False)
    if result is None:
        print(f"job {run.get_job_id()} left no result: {run.get_status()}", file=sys.stderr)
        return 1
    print(render(load_summary(Path(result))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
