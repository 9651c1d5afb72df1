"""Do predictions come true? Short real trainings in many configurations, beside what opdscope and every cheap rival said before.

    python bench/validity                # everything; hours on one core; goes on where it was killed
    python bench/validity --until 21:30  # stops before a run that would start later
    python bench/validity --page         # the page alone, from the stored records

Writes one record per finished run to bench/validity/records.jsonl and what was predicted to bench/validity/predictions.json, both kept in the
repository, and from them docs/validity.md and bench/results/validity.json. Models and diagnoses lie in runs/validity.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from configurations import CONFIGURATIONS, FURTHER
from run_records import Records

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WORK = ROOT / "runs" / "validity"
PREDICTIONS = HERE / "predictions.json"
REAL_PREDICTIONS = HERE / "real_model_predictions.json"
STAGES = ("predictions", "grid", "studies", "collapse", "budget", "weights", "nulls", "real", "gentle", "further")


def before(clock: str | None) -> Callable[[], bool]:
    """Whether it is still earlier than a time of day, HH:MM; always, without one."""
    return lambda: clock is None or time.strftime("%H:%M") < clock


def run_stage(stage: str, records: Records, models: Path, go_on: Callable[[], bool]) -> None:
    """One stage, as far as it is not stored."""
    import torch
    from collapse import run_collapses
    from entropy_null import run_entropy_nulls
    from main_grid import run_gentle, run_grid
    from prediction import predict
    from probe_budget import run_probe_budgets
    from real_model import run_real_model
    from special_teachers import make_special_teachers
    from studies import run_studies
    from token_weights import run_token_weights
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    make_special_teachers(models)
    match stage:
        case "predictions":
            predict(
                [c for c in CONFIGURATIONS + FURTHER if c.student in {each.student for each in CONFIGURATIONS}], models, WORK, PREDICTIONS
            )
        case "grid":
            run_grid(records, models, go_on)
        case "studies":
            run_studies(records, models, go_on)
        case "weights":
            run_token_weights(records, models, WORK, go_on)
        case "nulls":
            run_entropy_nulls(records, models, WORK, go_on)
        case "real":
            run_real_model(records, WORK, REAL_PREDICTIONS, go_on)
        case "gentle":
            run_gentle(records, models, go_on)
        case "collapse":
            run_collapses(records, models, go_on)
        case "budget":
            run_probe_budgets(records, models, go_on)
        case _:
            predict(FURTHER, models, WORK, PREDICTIONS)
            run_grid(records, models, go_on, further=True)


def main() -> None:
    """Run the stages that are asked for, then write the page."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")  # everything is on this machine
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--until", metavar="HH:MM", help="start no training after this time of day")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--records", type=Path, default=HERE / "records.jsonl")
    options = parser.parse_args()
    records = Records(options.records)
    for stage in [] if options.page else options.stages:
        run_stage(stage, records, WORK / "models", before(options.until))
    from validity_page import write_page

    write_page(records, PREDICTIONS, REAL_PREDICTIONS, ROOT)


if __name__ == "__main__":
    main()
