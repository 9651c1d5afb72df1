"""What a token of continuations buys under each allocation, in worlds where every stratum's success is known.

    python bench/economy.py

Prints the tables, writes docs/economy.md and bench/results/economy.json. Given the counts of an allocation, the variance of every natural gain
follows from the exact successes, so allocations are compared without sampling noise; coverage is counted on whole runs of the pipeline.
"""

import json
import tempfile
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import opdscope
from opdscope.core.alignment import gain_variance
from opdscope.core.allocation import allocate_tokens, target_weights
from opdscope.models.exact import ReasoningWorld, TreeWorld, World
from opdscope.store import Run
from opdscope.summary.nodes import measure_nodes, node_posterior, padded, read_nodes

ROOT = Path(__file__).parents[1]
NAMES = ("good", "fair", "weak", "harmful", "stylistic", "random")
SEEDS = 3
WORLDS: dict[str, tuple[World, dict[str, Any]]] = {
    "chains": (ReasoningWorld(), {"kind": "exact", "num_questions": 12}),
    "tree": (TreeWorld(), {"kind": "exact", "world": "tree", "num_questions": 12}),
}


def config(task: Mapping[str, Any], seed: int, **sections: Any) -> dict[str, Any]:
    """The default protocol with six teachers of known quality."""
    return {
        "seed": seed,
        "student": {"model_name_or_path": "exact:itself"},
        "teachers": [{"name": f"{name} teacher", "teacher_model_name_or_path": f"exact:{name}"} for name in NAMES],
        "task": dict(task),
        "objectives": ["reverse_kl"],
        "rollouts": {"num_demonstrations": 0, "max_completion_length": 64},
        "analysis": {"back_up": False, "num_draws": 100},
        **sections,
    }


class Exact:
    """A run's strata beside the truth."""

    def __init__(self, run: Run, world: World) -> None:
        """Look every stratum's success up."""
        tables = run.tables()
        self.nodes = read_nodes(tables)
        shape = self.nodes.probs.shape
        paths = {(r["question_id"], r["rollout_index"]): r["token_ids"] for r in tables["rollouts"].to_pylist()}
        index = {row["node_id"]: i for i, row in enumerate(self.nodes.rows)}
        following, order = world.next_states(), [row["question_id"] for row in tables["questions"].to_pylist()]
        students = {q: np.exp(world.student(k)) for k, q in enumerate(order)}
        successes = {q: world.success(k) for k, q in enumerate(order)}
        self.success, self.sampled, self.cost = np.zeros(shape), np.zeros(shape, dtype=bool), np.ones(shape)
        rows: dict[int, list[Any]] = {}
        for row in tables["strata"].to_pylist():
            rows.setdefault(index[row["node_id"]], []).append(row)
        for i, node in enumerate(self.nodes.rows):
            q, t, tokens = node["question_id"], node["position"], paths[node["question_id"], node["rollout_index"]]
            state = 0
            for position in range(t):
                state = following[position, state, tokens[position]]
            own, tail = successes[q][t, state], students[q][t, state].copy()
            tail[[row["token_id"] for row in rows[i] if row["token_id"] >= 0]] = 0.0
            for row in rows[i]:
                k = row["stratum"]
                self.success[i, k] = own[row["token_id"]] if row["token_id"] >= 0 else np.sum(tail * own) / max(tail.sum(), 1e-300)
                self.sampled[i, k] = len(row["forced_token_ids"]) > 0
                self.cost[i, k] = max(len(tokens) - t - 1, 1)
        signals = [r for r in tables["node_signals"].to_pylist() if r["teacher"].endswith(" teacher")]
        self.signals = np.zeros((len(NAMES), *shape))
        self.spread = np.zeros((len(NAMES), shape[0]))
        for row, values in zip(signals, padded([r["signal"] for r in signals], shape[1]), strict=True):
            place = NAMES.index(row["teacher"].removesuffix(" teacher")), index[row["node_id"]]
            self.signals[place], self.spread[place] = values, row["signal_variance"]

    @property
    def variance(self) -> np.ndarray:
        """Of one outcome."""
        return self.success * (1.0 - self.success)

    def per_node(self, counts: np.ndarray) -> float:
        """Mean over nodes and teachers of the variance of the natural gain per unit of the signal's deviation."""
        noise = np.where(self.sampled, self.variance / np.maximum(counts, 1), 0.0)
        found = [
            gain_variance(self.nodes.logprobs, f, noise)[s > 1e-9] / s[s > 1e-9] for f, s in zip(self.signals, self.spread, strict=True)
        ]
        return float(np.mean(np.concatenate(found)))

    def allocated(self, variance: np.ndarray, budget: float, pilot: int) -> np.ndarray:
        """Greedy counts for the per-node target, so many tokens in all."""
        weights = np.where(self.sampled, target_weights(self.nodes.probs, self.signals, np.sqrt(self.spread)), 0.0)
        first = np.where(self.sampled, pilot, 0)
        left = budget - float(np.sum(first * self.cost))
        flat = [array.ravel() for array in (weights, variance, first, self.cost)]
        return first + allocate_tokens(*flat, left).reshape(first.shape)


def compare() -> list[list[str]]:
    """Tokens to the error of the uniform allocation of 32 continuations a candidate: each technique on top of the last."""
    found: list[list[str]] = []
    for name, (world, task) in WORLDS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = opdscope.diagnose(config(task, 0, target={"kind": "map", "width": 0.2}), run_dir=Path(folder) / "run")
            exact = Exact(run, world)
            planned = np.zeros(exact.success.shape)
            index = {row["node_id"]: i for i, row in enumerate(exact.nodes.rows)}
            for row in run.table("rounds").to_pylist():
                planned[index[row["node_id"]], row["stratum"]] += row["count"]
        uniform = np.where(exact.sampled, 32, 0)
        budget = float(np.sum(uniform * exact.cost))
        half = np.full(exact.success.shape, 0.25)
        rows = {
            "(a) the same number at every candidate": uniform,
            "+ weights from probabilities and signals, no outcome used": exact.allocated(half, budget, 3),
            "`target: map` as the pipeline draws it (pilot, foretold variances)": planned,
            "bound: exact variances known": exact.allocated(np.maximum(exact.variance, 1e-6), budget, 1),
        }
        base = exact.per_node(uniform) * budget
        for label, counts in rows.items():
            tokens = float(np.sum(counts * exact.cost))
            found.append(
                [name, label, f"{tokens:,.0f}", f"{exact.per_node(counts):.2e}", f"{base / (exact.per_node(counts) * tokens):.2f}×"]
            )
    return found


def coverage() -> list[list[str]]:
    """Of per-node natural gains, 90 % by name, on runs that spend a budget of tokens and on maps."""
    found: list[list[str]] = []
    for name, (world, task) in WORLDS.items():
        for target in ({"kind": "tokens", "tokens": 250_000 if name == "chains" else 25_000}, {"kind": "map", "width": 0.2}):
            held: list[np.ndarray] = []
            for seed in range(1, 1 + SEEDS):
                with tempfile.TemporaryDirectory() as folder:
                    run = opdscope.diagnose(config(task, seed, target=target), run_dir=Path(folder) / "run")
                    exact, tables = Exact(run, world), run.tables()
                for m in measure_nodes(tables, exact.nodes, node_posterior(tables, exact.nodes, run.config), run.config):
                    if m.teacher.endswith(" teacher"):
                        p, f = exact.nodes.probs[m.index], exact.signals[NAMES.index(m.teacher.removesuffix(" teacher"))][m.index]
                        s = exact.success[m.index]
                        truth = np.sum(p * (s - np.sum(p * s, axis=1, keepdims=True)) * f, axis=1)
                        low, high = m.natural_gain[:, 1], m.natural_gain[:, 2]
                        use = high - low > 1e-9
                        held.append(((low <= truth) & (truth <= high))[use])
            flat = np.concatenate(held)
            found.append([name, target["kind"], f"{len(flat):,}", f"{flat.mean():.1%}"])
    return found


def allocator() -> list[list[str]]:
    """Its own time and memory for 10⁵ nodes of ten candidates."""
    rng = np.random.default_rng(0)
    found: list[list[str]] = []
    for nodes in (10_000, 100_000):
        size = nodes * 10
        arrays = rng.normal(size=size), rng.uniform(0.01, 0.25, size=size), np.full(size, 2), rng.uniform(1, 100, size=size)
        started = time.perf_counter()
        allocate_tokens(*arrays, 100.0 * size)
        seconds = time.perf_counter() - started
        tracemalloc.start()
        allocate_tokens(*arrays, 100.0 * size)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found.append([f"{nodes:,}", f"{seconds:.1f}", f"{peak / 1e6:.0f}"])
    return found


def main() -> None:
    """Run everything."""
    sections = {
        "Tokens to equal error: per-node natural gains": (
            "Six teachers, 12 questions, nodes as the pipeline draws them. Variance of the natural gain per unit of the signal's deviation, "
            "mean over nodes and teachers. The last column is how many times fewer tokens than (a) reach the same variance.",
            ["world", "allocation", "tokens", "variance", "economy"],
            compare(),
        ),
        "Coverage of per-node natural gains": (
            f"{SEEDS} runs each; intervals of one node's teachers share its continuations, so the counts overstate what is independent.",
            ["world", "target", "intervals", "coverage of 90 %"],
            coverage(),
        ),
        "The allocator itself": ("Ten candidates a node.", ["nodes", "seconds", "peak memory, MB"], allocator()),
    }
    lines = ["# Economy", "", "Written by `make bench-economy`; nothing on this page is written by hand.", ""]
    for title, (text, columns, rows) in sections.items():
        table = [columns, ["---"] * len(columns), *rows]
        lines += [f"## {title}", "", text, "", *("| " + " | ".join(row) + " |" for row in table), ""]
    page = "\n".join(lines)
    print(page)
    (ROOT / "docs" / "economy.md").write_text(page, encoding="utf-8")
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    (results / "economy.json").write_text(json.dumps(sections, indent=2, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
