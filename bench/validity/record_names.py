"""Names and keys of stored records; apart from the trainings, so that the page is made without torch."""

from configurations import Configuration

GRID, WEIGHTS, CURRICULUM, RULES = "grid", "dynamic weight", "curriculum", "rules"
SCHEDULE, NULLS = "scheduled weight", "entropy null"
COLLAPSE, STOPPED, TOKENS, REAL = "collapse", "collapse, stopped", "token weights", "real model"
BUDGET, HEALTHY = "probe budget", "healthy"
UNWEIGHTED, WEIGHTED = "no weights", "weights of a recipe"
SHUFFLED, LEAST_FIRST, MOST_FIRST = "shuffled", "least gain first", "most gain first"


def grid_key(configuration: Configuration, step_size: str, seed: int) -> str:
    """Key of a record of the main grid."""
    return f"{GRID} | {configuration.name} | {step_size} | {seed}"
