"""What opdscope says before anything is trained: one stored diagnosis per student, and from its tables the numbers of every configuration."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from configurations import FLATTENED, OBJECTIVES, SHARPENED, STUDENTS, TEACHERS, Configuration, Student
from held_out import held_out_questions, mask_threshold, success_of_files
from parameter_prediction import parameter_predictions
from special_teachers import teacher_folder

import opdscope
from opdscope.core.aggregation import clustered_mean
from opdscope.core.alignment import gain, ideal_norm_noise, ideal_squared_norm, natural_gain, teacher_advantage
from opdscope.core.backup import back_up
from opdscope.core.screening import screening_gain
from opdscope.store import Run
from opdscope.summary.nodes import NodeArrays, padded, read_nodes
from opdscope.summary.paths import read_links
from opdscope.summary.rivals import DIVERGENCES, accuracy_gaps, log_odds_values
from opdscope.summary.teachers import measured_rollouts, outcome_values
from opdscope.summary.weights import question_weights

QUESTIONS, ROLLOUTS, ACCURACY_QUESTIONS = 256, 16, 1024
_ACCURACY_SEED = 800
Key = tuple[str, int]
"""Question and rollout."""


def diagnosis(student: Student, models: Path) -> dict[str, Any]:
    """The configuration of a student's diagnosis; its two null temperatures are teachers of the grid."""
    strong = f"embedded:{student.task}-teacher"
    paths = {"strong": strong, "peer": student.peer}
    teachers: list[dict[str, str]] = []
    for name, teacher in TEACHERS.items():
        if teacher.kind == "model":
            path = paths.get(name) or str(teacher_folder(models, student, name))
            teachers.append({"name": name, "teacher_model_name_or_path": path})
        elif teacher.kind == "context":
            teachers.append({"name": name, "privileged_context": teacher.value})
    return {
        "name": "validity", "student": {"model_name_or_path": student.model}, "teachers": teachers,
        "task": {"kind": student.task, "num_questions": QUESTIONS, "seed": 77},
        "objectives": list(OBJECTIVES), "nulls": {"sharpened": SHARPENED, "flattened": FLATTENED},
        "rollouts": {
            "num_rollouts": ROLLOUTS, "num_demonstrations": 4, "teacher_rollouts": 4, "max_completion_length": student.max_completion_length,
        },
        "targeted": {"paths_per_outcome": 2, "nodes_per_path": 6, "continuations_per_node": 24},
        "engine": {"device": "cpu", "verifier_workers": 1}, "analysis": {"num_draws": 100},
    }  # fmt: skip


def run_folder(student: Student, runs: Path) -> Path:
    """Where a student's diagnosis lies."""
    return runs / student.name.replace(" ", "-")


def diagnose_student(student: Student, models: Path, runs: Path) -> Run:
    """The stored diagnosis; resumes."""
    return opdscope.diagnose(diagnosis(student, models), run_dir=run_folder(student, runs))


class Tokens:
    """A run's rollouts, and weights of their tokens under a configuration's mask and outcome filter."""

    def __init__(self, tables: Mapping[str, pa.Table], threshold: float) -> None:
        """Read what does not depend on the teacher."""
        self.threshold = threshold
        rollouts = measured_rollouts(tables)
        self.keys: list[list[Key]] = [[(q, row["rollout_index"]) for row in rows] for q, rows in rollouts.items()]
        self.outcomes = [outcome_values(rows) for rows in rollouts.values()]
        self.outcome: dict[Key, float] = {
            key: float(value)
            for keys, values in zip(self.keys, self.outcomes, strict=True)
            for key, value in zip(keys, values, strict=True)
        }
        self.entropy = dict(_lists(tables["student_positions"], "entropy"))

    def weights(self, key: Key, mask: str) -> np.ndarray:
        """1 for tokens that the mask keeps."""
        entropy = self.entropy[key]
        return np.ones(len(entropy)) if mask == "none" else (entropy > self.threshold).astype(float)

    def is_kept(self, key: Key, outcomes: str) -> float:
        """1 for rollouts that the filter keeps."""
        return float(outcomes == "all" or (self.outcome[key] == 1.0) == (outcomes == "correct"))


def _lists(table: pa.Table, column: str) -> list[tuple[Key, np.ndarray]]:
    """One array per row, by question and rollout."""
    chunk = table[column].combine_chunks()
    flat, ends = chunk.values.to_numpy().astype(np.float64), chunk.offsets.to_numpy()
    keys = zip(table["question_id"].to_pylist(), table["rollout_index"].to_pylist(), strict=True)
    return [(key, flat[start:stop]) for key, start, stop in zip(keys, ends[:-1], ends[1:], strict=True)]


def _rows(table: pa.Table, teacher: str, objective: str | None = None) -> pa.Table:
    wanted = pc.equal(table["teacher"], teacher)
    return table.filter(wanted if objective is None else pc.and_(wanted, pc.equal(table["objective"], objective)))


def _sums(tokens: Tokens, table: pa.Table, column: str, mask: str) -> dict[Key, float]:
    return {key: float(np.sum(tokens.weights(key, mask) * values)) for key, values in _lists(table, column)}


def _screened(tokens: Tokens, pushes: Mapping[Key, float], outcomes: str) -> np.ndarray:
    """Gain of each question. With an outcome filter: as if every prefix had its question's chance of the outcome, which needs no targeted rollout.

    The leave-one-out mean b of a rollout is independent of it, so b and 1 - b weigh without bias a gain that has mean zero pushes.
    """
    found: list[float] = []
    for keys, values in zip(tokens.keys, tokens.outcomes, strict=True):
        if keys[0] not in pushes:
            found.append(np.nan)
            continue
        own = np.array([pushes[key] for key in keys])
        if outcomes == "all":
            found.append(float(screening_gain(values, own)))
        else:
            others = (np.sum(values) - values) / (len(values) - 1)
            found.append(float(np.mean((values - others) * own * (others if outcomes == "correct" else 1.0 - others))))
    return np.array(found)


def _mean_kept(tokens: Tokens, sums: Mapping[Key, float], outcomes: str) -> float:
    """Mean over questions with a teacher of a rollout's sum, zero for what the filter drops."""
    per_question = [np.mean([sums[k] * tokens.is_kept(k, outcomes) for k in keys]) for keys in tokens.keys if keys[0] in sums]
    return float(np.mean(per_question))


class Nodes:
    """What targeted rollouts say at each node; point estimates alone, since a configuration's interval comes from its questions."""

    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        """Success at every node, backed up along paths."""
        self._nodes: NodeArrays = read_nodes(tables)
        nodes = self._nodes
        self._success = back_up(nodes.probs, nodes.outcomes, read_links(tables, nodes.rows))
        noise = ideal_norm_noise(nodes.logprobs, nodes.squared_probs, self._success.variance)
        ideal = ideal_squared_norm(nodes.logprobs, nodes.squared_probs, self._success.mean) - noise
        self.ideal = float(np.sum(question_weights(nodes.rows) * ideal)) / QUESTIONS
        """Squared length of the ideal gradient of a response, corrected for noise."""
        self._index = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
        self._signals = tables["node_signals"]

    def sums(self, configuration: Configuration, threshold: float) -> dict[str, np.ndarray]:
        """Natural gain, gain and advantage, summed over the kept tokens of a response, one entry per question."""
        rows = _rows(self._signals, configuration.teacher, configuration.objective).to_pylist()
        rows = [row for row in rows if row["node_id"] in self._index]
        index = np.array([self._index[row["node_id"]] for row in rows])
        width = self._nodes.probs.shape[1]
        teacher, signal, gradient = (padded([row[name] for row in rows], width) for name in ("teacher_prob", "signal", "gradient"))
        logprobs, success = self._nodes.logprobs[index], self._success.mean[index]
        values = {
            "natural gain": natural_gain(logprobs, signal, success),
            "gain": gain(logprobs, gradient, success),
            "advantage": teacher_advantage(logprobs, teacher, success),
        }
        own = [self._nodes.rows[i] for i in index]
        kept = np.array([configuration.outcomes in ("all", row["path_outcome"]) for row in own], dtype=float)
        if configuration.mask != "none":
            kept *= np.array([row["entropy"] > threshold for row in own], dtype=float)
        _, question = np.unique([row["question_id"] for row in own], return_inverse=True)
        weights = kept * question_weights(own)
        return {name: np.bincount(question, weights * each) for name, each in values.items()}


class Predictor:
    """Numbers of the configurations of one student, from the tables of its diagnosis."""

    def __init__(self, run: Run, student: Student) -> None:
        """Read the run and measure its nodes once."""
        self._student, self._tables = student, run.tables()
        self._tokens, self._nodes = Tokens(self._tables, mask_threshold(student)), Nodes(self._tables)
        self._log_odds = log_odds_values(self._tables)
        self._gaps = {name: gap.value for name, gap in accuracy_gaps(self._tables, run.config).items()}
        self._gaps.update(self._null_gaps())

    def numbers(self, configuration: Configuration) -> dict[str, float]:
        """Predictions with standard errors, sizes of the push, and rivals over the tokens that are trained on."""
        teacher, tokens, mask, outcomes = configuration.teacher, self._tokens, configuration.mask, configuration.outcomes
        scores = _rows(self._tables["scores"], teacher, configuration.objective)
        positions = _rows(self._tables["teacher_positions"], teacher)
        natural, euclid = (_screened(tokens, _sums(tokens, scores, c, mask), outcomes) for c in ("taken_signal", "taken_gradient"))
        size = {
            name: np.sqrt(max(_mean_kept(tokens, _sums(tokens, table, column, mask), outcomes), 1e-12))
            for name, table, column in (
                ("kl", positions, "reverse_kl"), ("logits", scores, "gradient_squared_norm"), ("signal", scores, "signal_variance"),
            )
        }  # fmt: skip
        targeted = self._nodes.sums(configuration, tokens.threshold)
        advantage = clustered_mean(targeted["advantage"], 0.9)
        found: dict[str, float] = {
            "root_kl": size["kl"],
            "push": size["logits"],
            "targeted advantage": advantage.value,
            "targeted advantage error": advantage.standard_error,
        }
        for name, own, euclidean in (("screening", natural, euclid), ("targeted", targeted["natural gain"], targeted["gain"])):
            estimate = clustered_mean(own, 0.9)
            found |= {
                f"{name} gain": estimate.value,
                f"{name} gain error": estimate.standard_error,
                f"{name} gain / √KL": estimate.value / size["kl"],
                f"{name} pooled alignment": float(np.nanmean(euclidean)) / (size["logits"] * np.sqrt(max(self._nodes.ideal, 1e-12))),
            }
        return found | self._rivals(positions, configuration)

    def _rivals(self, positions: pa.Table, configuration: Configuration) -> dict[str, float]:
        tokens, mask, outcomes = self._tokens, configuration.mask, configuration.outcomes
        count = _mean_kept(tokens, {key: float(np.sum(tokens.weights(key, mask))) for key in tokens.entropy}, outcomes)
        means = {name: _mean_kept(tokens, _sums(tokens, positions, name, mask), outcomes) / count for name in (*DIVERGENCES, "entropy")}
        own = {key: float(np.sum(tokens.weights(key, mask) * values)) for key, values in tokens.entropy.items()}
        entropy_gap = means.pop("entropy") - _mean_kept(tokens, own, outcomes) / count
        return {
            "accuracy gap": self._gaps[configuration.teacher],
            "entropy gap": entropy_gap,
            "log-odds value": self._log_odds[configuration.teacher],
            **{name.replace("_", " "): value for name, value in means.items()},
        }

    def _null_gaps(self) -> dict[str, float]:
        questions = held_out_questions(self._student.task, _ACCURACY_SEED, ACCURACY_QUESTIONS)

        def success(temperature: float) -> float:
            length = self._student.max_completion_length
            return float(np.mean(success_of_files(self._student.model, questions, length, _ACCURACY_SEED, temperature)))

        return {"sharpened": success(SHARPENED) - success(1.0), "flattened": success(FLATTENED) - success(1.0)}


def predict(configurations: Sequence[Configuration], models: Path, runs: Path, path: Path) -> None:
    """Write the numbers of every configuration by its name, student by student; goes on where it was killed."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, student in STUDENTS.items():
        own = [configuration for configuration in configurations if configuration.student == name]
        if any(configuration.name not in found for configuration in own):
            predictor = Predictor(diagnose_student(student, models, runs), student)
            for configuration in own:
                found[configuration.name] = {key: round(float(value), 6) for key, value in predictor.numbers(configuration).items()}
        missing = [configuration for configuration in own if "parameter alignment" not in found[configuration.name]]
        if missing:
            run = opdscope.screen(diagnosis(student, models), run_dir=run_folder(student, runs))
            for key, numbers in parameter_predictions(run, student, missing).items():
                found[key] |= {what: round(float(value), 6) for what, value in numbers.items()}
            path.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
