"""Breaks one formula at a time and checks that a test notices.

    python bench/mutations.py

Each mutation is one replacement in a copy of the package; the tests named beside it must then fail. Prints a table, writes docs/mutations.md and
exits with 1 if a mutation survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """A formula made wrong."""

    what: str
    path: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "gradients of one group are multiplied with one another",
        "core/parameters.py",
        "between = products.sum() - own.sum()\n    without = between - products.sum(axis=0) - products.sum(axis=1) + 2.0 * own",
        "between = products.sum()\n    without = between - products.sum(axis=0) - products.sum(axis=1) + own",
        "core_parameters",
    ),
    Mutation(
        "what a group adds is what is left without it",
        "core/parameters.py",
        "return between / (count - 1) - without / (count - 2)",
        "return without / (count - 2)",
        "core_parameters",
    ),
    Mutation(
        "the ideal direction forgets the mean under the student",
        "pipeline/gradients.py",
        "ideal = -probs",
        "ideal = 0.0 * probs",
        "pipeline_gradients",
    ),
    Mutation(
        "a sketch has no signs",
        "models/transformers/parameter_gradients.py",
        "gradient.reshape(-1).float() * signs",
        "gradient.reshape(-1).float()",
        "pipeline_gradients",
    ),
    Mutation(
        "the pullback adds the mean instead of subtracting it",
        "core/gradients.py",
        "weighted - student_probs",
        "weighted + student_probs",
        "core_gradients",
    ),
    Mutation(
        "the reverse-KL signal has the wrong sign",
        "core/divergences.py",
        "return teacher_logprobs - student_logprobs",
        "return student_logprobs - teacher_logprobs",
        "core_divergences",
    ),
    Mutation(
        "the forward-KL signal is p/q",
        "core/divergences.py",
        "return xp.exp(teacher_logprobs - student_logprobs)",
        "return xp.exp(student_logprobs - teacher_logprobs)",
        "core_divergences",
    ),
    Mutation(
        "beta weighs the student instead of the teacher",
        "core/divergences.py",
        "one * math.log(1.0 - beta), log_ratio + math.log(beta)",
        "one * math.log(beta), log_ratio + math.log(1.0 - beta)",
        "core_divergences",
    ),
    Mutation(
        "the natural gain forgets the student's weights",
        "core/alignment.py",
        "return np.sum(probs * advantage * signal, axis=-1)",
        "return np.mean(advantage * signal, axis=-1)",
        "core_alignment",
    ),
    Mutation(
        "the teacher advantage has the wrong sign",
        "core/alignment.py",
        '(_normalized(teacher_probs, "teacher", may_be_undefined=True) - probs) * success, axis',
        '(probs - _normalized(teacher_probs, "teacher", may_be_undefined=True)) * success, axis',
        "core_alignment",
    ),
    Mutation(
        "the noise of the ideal norm ignores that V is estimated too",
        "core/alignment.py",
        "success_variance - 2.0 * with_value + value_variance",
        "success_variance + value_variance",
        "core_noise",
    ),
    Mutation(
        "the baseline of screening includes the rollout itself",
        "core/screening.py",
        "known - (known.sum(axis=-1, keepdims=True) - known) / np.maximum(count - 1, 1)",
        "known - known.sum(axis=-1, keepdims=True) / np.maximum(count, 1)",
        "core_screening",
    ),
    Mutation(
        "screening's signal is not centred",
        "core/screening.py",
        "values - xp.sum(student.probs * values, axis=-1, keepdims=True)",
        "values",
        "core_rows core_screening exact_world",
    ),
    Mutation(
        "the error of one question's gain lacks the jackknife's factor",
        "core/screening_errors.py",
        "jackknife = count / ((count - 1) * (count - 2) ** 2)",
        "jackknife = count / ((count - 1) ** 2 * (count - 2) ** 2)",
        "core_screening_errors",
    ),
    Mutation(
        "the variance of one question's gain takes fourth moments for cumulants",
        "core/screening_errors.py",
        "((n + 1) * m22 - (n - 1) * (m20 * m02 + 2.0 * m11**2))",
        "((n + 1) * m22)",
        "core_screening_errors",
    ),
    Mutation(
        "a question's error is not drawn towards the other questions' by their pushes",
        "core/screening_errors.py",
        "expected = push_variance * ",
        "expected = np.mean(push_variance) * ",
        "core_screening_errors",
    ),
    Mutation(
        "the variance of a success is divided by n",
        "core/success.py",
        "np.maximum(count - 1, 1), np.where(count == 1",
        "np.maximum(count, 1), np.where(count == 1",
        "core_success core_noise",
    ),
    Mutation(
        "the posterior ignores its prior",
        "core/success.py",
        "alpha = strength * centre + outcomes.num_correct",
        "alpha = 1e-3 + outcomes.num_correct",
        "core_success core_coverage",
    ),
    Mutation(
        "the prior is three times too strong",
        "core/success.py",
        "centre, strength = mean[..., None], strength[..., None]",
        "centre, strength = mean[..., None], 3.0 * strength[..., None]",
        "core_success core_coverage",
    ),
    Mutation(
        "success is expected to go against a teacher's signal",
        "core/signal_prior.py",
        "centre = _VALUES + _SLOPES[:, None] * signal",
        "centre = _VALUES - _SLOPES[:, None] * signal",
        "core_signal_prior core_coverage",
    ),
    Mutation(
        "a tail of many tokens is expected to vary like one token",
        "core/signal_prior.py",
        "strength = tokens * (_STRENGTHS[:-1] + 1.0) - 1.0",
        "strength = 0.0 * tokens + _STRENGTHS[:-1]",
        "core_signal_prior",
    ),
    Mutation(
        "draws of success forget the teacher's signal",
        "core/signal_prior.py",
        "level[:, None] + slopes[:, i, None] * signal[i]",
        "level[:, None] + 0.0 * signal[i]",
        "core_signal_prior core_coverage",
    ),
    Mutation(
        "a cosine takes all tokens of the tail for equally successful",
        "core/within_tail.py",
        "+ mass * spread",
        "+ 0.0 * spread",
        "core_within_tail",
    ),
    Mutation(
        "what goes together within the tail is left out of a score",
        "core/within_tail.py",
        "+ mass * together * gradient_spread",
        "+ 0.0 * together * gradient_spread",
        "core_within_tail",
    ),
    Mutation(
        "the ends of a shortest interval hold nothing beyond the last draw",
        "core/shortest.py",
        "confidence * (defined + 1)",
        "confidence * (defined - 1)",
        "core_shortest",
    ),
    Mutation(
        "backed-up success counts for as many continuations as were drawn",
        "core/backup/posterior.py",
        "verified[place], correct[place] = count, count * mean",
        "correct[place] = verified[place] * mean",
        "core_backup",
    ),
    Mutation(
        "targeted averages forget the nodes' inclusion probabilities",
        "summary/teachers.py",
        'weight = path_weight / np.array([row["inclusion"] for row in rows])',
        "weight = path_weight",
        "summary_teachers",
    ),
    Mutation(
        "targeted averages forget the paths' inclusion probabilities",
        "summary/teachers.py",
        '1.0 / row["path_inclusion"] for row in rows',
        "1.0 for row in rows",
        "summary_teachers",
    ),
    Mutation(
        "the mean score's interval is that of its posterior means",
        "summary/teachers.py",
        "return bounded_estimate(*(clustered_statistic(_defined_sums(shares, values), ratio, level) for values in columns))",
        "return clustered_statistic(_defined_sums(shares, columns[0]), ratio, level)",
        "summary_teachers",
    ),
    Mutation(
        "a node whose strata may not differ has a cosine for certain",
        "summary/teachers.py",
        "np.minimum(low, differs * low)",
        "low",
        "summary_teachers",
    ),
    Mutation(
        "nodes are drawn by importance but called uniform",
        "core/sampling.py",
        "return np.searchsorted(upper[:-1], ticks",
        "return np.searchsorted(np.linspace(0, upper[-1], len(upper) + 1)[1:-1], ticks",
        "core_sampling",
    ),
    Mutation(
        "the tail stratum is dropped", "pipeline/nodes.py", "has_tail = bool(tail.sum() > 0)", "has_tail = False", "pipeline_diagnosis"
    ),
    Mutation(
        "intervals are normal instead of Student's",
        "core/aggregation.py",
        "float(stdtrit(count - 1, 0.5 + confidence / 2)) if width is None",
        "float(stdtrit(10**6, 0.5 + confidence / 2)) if width is None",
        "core_aggregation core_coverage",
    ),
    Mutation(
        "the jackknife forgets its factor",
        "core/aggregation.py",
        "error = float(np.sqrt((count - 1) / count * np.sum(",
        "error = float(np.sqrt(1 / count * np.sum(",
        "core_aggregation core_coverage",
    ),
    Mutation(
        "several intervals are each as wide as one",
        "core/aggregation.py",
        "np.max(np.abs(student), axis=1)",
        "np.abs(student[:, 0])",
        "core_aggregation",
    ),
    Mutation(
        "the pooled alignment's interval takes the norm as known",
        "core/aggregation.py",
        "of_length = 0.5 * (",
        "of_length = 0.0 * (",
        "core_aggregation",
    ),
    Mutation(
        "a corrected norm is taken at its word however near zero it is",
        "core/aggregation.py",
        "norm = max(float(ideal), float(np.sqrt(np.sum(centred[:, 1] ** 2))))",
        "norm = abs(float(ideal))",
        "core_aggregation",
    ),
    Mutation(
        "skewness widens the wrong end of an interval",
        "core/aggregation.py",
        "return np.maximum(width, high), np.maximum(width, -low)",
        "return np.maximum(width, -low), np.maximum(width, high)",
        "core_aggregation",
    ),
    Mutation(
        "several intervals that hold together are as wide as one by itself",
        "core/aggregation.py",
        "if width is None else width)",
        "if width is not None else 1.7)",
        "core_aggregation",
    ),
    Mutation(
        "what leaves a path counts as arriving at its next node",
        "core/backup/estimates.py",
        "_Values((stay * mean + leave_total - stay * before) / verified,",
        "_Values(mean,",
        "core_backup",
    ),
    Mutation(
        "continuations are imagined to leave where all arrive",
        "core/backup/estimates.py",
        "either = added * (1.0 - stay_prob)",
        "either = added * np.ones_like(stay_prob)",
        "core_backup",
    ),
    Mutation(
        "the early range counts what is explained in every bin as often as there are bins",
        "core/early_range.py",
        'np.einsum("i,itb->b", within, slopes * controls)',
        'np.einsum("i,itb->b", within, slopes * controls).sum() * np.ones(_BINS)',
        "core_early_range",
    ),
    Mutation(
        "the early range forgets what log-ratios do not explain",
        "core/early_range.py",
        "return scale[of_bin] * known + rest * bound**2",
        "return scale[of_bin] * known",
        "core_early_range",
    ),
    Mutation(
        "the early range spreads every teacher's push as if it knew something",
        "core/early_range.py",
        "self.slopes[:, of_bin] ** 2 * 2.0 * reverse_kl",
        "2.0 * reverse_kl",
        "core_early_range",
    ),
    Mutation(
        "importance for the variance forgets the noise of continuations",
        "core/sampling.py",
        "return np.sqrt(push * (settled + 1.0 / continuations))",
        "return np.sqrt(push * settled)",
        "core_sampling",
    ),
    Mutation(
        "nodes are included by cost and not by its root",
        "core/sampling.py",
        "return importance / np.sqrt(cost)",
        "return importance / cost",
        "core_sampling",
    ),
    Mutation(
        "dear nodes are drawn as often as cheap ones",
        "pipeline/importance.py",
        "if self._settings.include_by_cost:",
        "if False:",
        "pipeline_importance",
    ),
    Mutation(
        "nodes of several draws keep the inclusion probability of one",
        "core/expansion.py",
        "draws * inclusion[positions] / times",
        "inclusion[positions] / times",
        "core_expansion",
    ),
    Mutation(
        "further draws begin where the first one does",
        "core/expansion.py",
        "(start + k / draws) % 1.0",
        "(start + k) % 1.0",
        "core_expansion",
    ),
    Mutation(
        "the noise of continuations counts as variance between nodes",
        "core/expansion.py",
        " - float(np.sum(noise[~certain]))",
        "",
        "core_expansion",
    ),
    Mutation(
        "more draws leave the variance between nodes as it is",
        "core/expansion.py",
        "(max(between, 0.0) + own) / (k + 1)",
        "max(between, 0.0) + own / (k + 1)",
        "core_expansion",
    ),
    Mutation(
        "temperature multiplies instead of dividing",
        "core/nulls.py",
        "student_logprobs / temperature",
        "student_logprobs * temperature",
        "core_nulls",
    ),
    Mutation(
        "a null is scaled by KL instead of its root",
        "summary/teachers.py",
        "float(np.sqrt(max(push, 0.0) / size))",
        "float(max(push, 0.0) / size)",
        "summary_teachers",
    ),
    Mutation(
        "the paper's kept children are not renormalised",
        "core/paper.py",
        "np.where(mass > 0, inside / np.where(mass > 0, mass, 1.0), np.nan)",
        "inside",
        "core_paper",
    ),
    Mutation(
        "weights follow the gain of a part instead of its gain per squared push",
        "core/weighting.py",
        "np.array([estimate.value for estimate in estimates]) / size, errors / size",
        "np.array([estimate.value for estimate in estimates]), errors",
        "core_weighting",
    ),
    Mutation(
        "the squared push is weighted once",
        "core/weighting.py",
        "weights**2 * sums.pushes, sums.gains",
        "weights * sums.pushes, sums.gains",
        "core_weighting",
    ),
    Mutation(
        "numbers are drawn away from their mean",
        "core/shrinkage.py",
        "kept = spread / (spread + variance)",
        "kept = variance / (spread + variance)",
        "core_weighting",
    ),
    Mutation(
        "a group's standard deviation has the divisor n",
        "core/mixing.py",
        "* num_generations / (num_generations - 1)) + STANDARD",
        "* 1.0) + STANDARD",
        "core_mixing",
    ),
    Mutation(
        "the best share forgets how far both pushes go together",
        "core/mixing.py",
        "distillation * rl_square - rl * product",
        "distillation * rl_square",
        "core_mixing",
    ),
    Mutation(
        "the size of an update forgets the normaliser of the softmax",
        "core/mixing.py",
        "np.mean(own**2 * score_squares[known])",
        "np.mean(own**2)",
        "core_mixing",
    ),
    Mutation(
        "the distillation weight rises with success",
        "core/schedule.py",
        "_share(schedule.ceiling - success,",
        "_share(success,",
        "core_weighting",
    ),
    Mutation(
        "fitted values leave the leave-one-out baseline in place",
        "core/screening.py",
        "return weighted - baseline * pushes",
        "return weighted",
        "core_values",
    ),
    Mutation(
        "the features of a prefix know the token that is judged",
        "core/values.py",
        "np.cumsum(np.pad(taken[:, :-1], ((0, 0), (1, 0))), axis=-1)",
        "np.cumsum(taken, axis=-1)",
        "core_values",
    ),
    Mutation(
        "a fitted value learns from its own fold",
        "core/values.py",
        "others = names != name",
        "others = names == names",
        "core_values",
    ),
    Mutation(
        "a mirrored continuation draws with the numbers themselves",
        "core/randomness.py",
        "np.where(mirrored, 1.0 - numbers, numbers)",
        "np.where(mirrored, numbers, numbers)",
        "core_coupling",
    ),
    Mutation(
        "candidates that share their luck count as independent",
        "core/coupling.py",
        "np.where(np.eye(counts.shape[-1], dtype=bool), 1.0, across * share)",
        "np.where(np.eye(counts.shape[-1], dtype=bool), 1.0, 0.0 * share)",
        "core_coupling",
    ),
    Mutation(
        "a pair's correlation has the wrong sign",
        "core/coupling.py",
        "_correlation(between - within, between + within)",
        "_correlation(within - between, between + within)",
        "core_coupling",
    ),
    Mutation(
        "what shares its luck with the value is not taken off the noise of the ideal norm",
        "core/alignment.py",
        "with_value = with_value + deviation * ",
        "with_value = with_value + 0.0 * deviation * ",
        "core_coupling",
    ),
    Mutation(
        "weights of an opened trainer count twice",
        "training/self_distillation.py",
        "original(*args, **kwargs) * weights",
        "original(*args, **kwargs) * weights**2",
        "training_self_distillation",
    ),
    Mutation(
        "the divergence of an opened trainer's JSD weighs teacher and student the other way round",
        "training/self_distillation.py",
        "(1.0 - beta) * aux + beta * _kl(teacher, mixture)",
        "beta * aux + (1.0 - beta) * _kl(teacher, mixture)",
        "training_self_distillation",
    ),
    Mutation(
        "the share of distillation is that of GRPO",
        "training/reinforcement.py",
        "(1.0 - weight) * policy + weight * distillation",
        "weight * policy + (1.0 - weight) * distillation",
        "training_reinforcement",
    ),
    Mutation(
        "beside Dr. GRPO the distillation loss has another divisor",
        "training/reinforcement.py",
        "mask.size(0) * self.max_completion_length * accumulation",
        "mask.size(0) * accumulation",
        "training_reinforcement",
    ),
    Mutation(
        "the push of a loss averaged by response keeps the square of a loss averaged by token",
        "training/mixing.py",
        "squares * shares**2",
        "squares * shares",
        "training_reinforcement",
    ),
    Mutation(
        "a policy loss that divides by a fixed length counts as more of a mean over tokens",
        "training/mixing.py",
        "mean_length / self.policy_length",
        "self.policy_length / mean_length",
        "training_reinforcement",
    ),
    Mutation(
        "what two processes saw of a step makes two steps",
        "training/monitor.py",
        "StepRows.together([part for own in held for part in own.get(step, ())])",
        "StepRows.together([part for own in held[:1] for part in own.get(step, ())])",
        "training_processes",
    ),
    Mutation(
        "responses without a context do not count for success",
        "training/monitor.py",
        "_success(rows.outcomes[known])",
        "_success(rows.outcomes[known & kept])",
        "training_self_distillation",
    ),
    Mutation(
        "the rank correlation with the nulls leaves them out",
        "summary/rivals.py",
        "if nulls or not teacher",
        "if not teacher",
        "pipeline_diagnosis",
    ),
    Mutation(
        "a log-ratio along a continuation is not centred",
        "core/controls.py",
        "of_tokens(ratio, taken) - xp.sum(xp.exp(student_logprobs) * ratio, axis=-1)",
        "of_tokens(ratio, taken)",
        "core_controlled pipeline_controls",
    ),
    Mutation(
        "arrivals' outcomes are less the control of all their tokens",
        "core/controlled.py",
        "summed(outcome - after, rows.stays)",
        "summed(outcome - whole, rows.stays)",
        "core_controlled",
    ),
    Mutation(
        "the control of the path's own tokens is forgotten where a continuation arrives",
        "core/backup/estimates.py",
        "_Values((stay * mean + leave_total - stay * before) / verified,",
        "_Values((stay * mean + leave_total) / verified,",
        "core_controlled",
    ),
    Mutation(
        "the noise of arrivals' common control is forgotten",
        "core/backup/estimates.py",
        "leave * mean**2 + stay * before**2",
        "leave * mean**2",
        "core_controlled",
    ),
    Mutation(
        "an interval adds four times the outcomes that it says",
        "core/backup/estimates.py",
        "+ kept * added_squares(count, mean, added)",
        "+ 4.0 * kept * added_squares(count, mean, added)",
        "core_controlled core_backup",
    ),
    Mutation(
        "controls of continuations without a verdict are dropped with them",
        "core/controlled.py",
        "    if verified.all():\n        return control",
        "    if verified.any():\n        return control",
        "core_controlled",
    ),
    Mutation(
        "what controls take out passes for what they leave",
        "core/controlled.py",
        "overall = 1.0 - (1.0 - ratio) * max(",
        "overall = (1.0 - ratio) * max(",
        "core_controlled",
    ),
    Mutation(
        "a control weighs as much where the outcome is foretold for certain",
        "core/controlled.py",
        "4.0 * success * (1.0 - success)",
        "1.0 + 0.0 * success",
        "core_controlled",
    ),
    Mutation(
        "what controls leave is foretold by a question's own outcomes",
        "summary/evidence.py",
        "known.at(fold[known.node] != part)",
        "known.at(fold[known.node] == fold[known.node])",
        "pipeline_controls",
    ),
    Mutation(
        "rounds do not plan with what controls leave",
        "pipeline/rounds.py",
        "np.maximum(success * (1.0 - success), _LEAST_VARIANCE) * self._kept[use[0]]",
        "np.maximum(success * (1.0 - success), _LEAST_VARIANCE)",
        "pipeline_controls",
    ),
    Mutation(
        "a map serves the teachers on average and not each",
        "core/allocation.py",
        "(np.max(reached, axis=0) / wanted)",
        "(np.mean(reached, axis=0) / wanted)",
        "core_allocation",
    ),
    Mutation(
        "a teacher in need has no larger multiplier",
        "core/allocation.py",
        "multipliers = multipliers * reached / np.where",
        "multipliers = multipliers * total / np.where",
        "core_allocation",
    ),
    Mutation(
        "even numbers give more to what costs more",
        "pipeline/rounds.py",
        "np.sqrt(cost) * (weights > 0)",
        "cost * (weights > 0)",
        "pipeline_targets",
    ),
    Mutation(
        "controlled outcomes count for fewer than they are worth",
        "core/controlled.py",
        "StratumOutcomes(correct / kept, outcomes.num_verified / kept,",
        "StratumOutcomes(correct * kept, outcomes.num_verified * kept,",
        "core_controlled",
    ),
    Mutation(
        "positions of a continuation are those of its whole response",
        "pipeline/scores.py",
        "tuple(position - read for position in response.positions)",
        "response.positions",
        "pipeline_controls",
    ),
)


def main() -> None:
    """Try every mutation in turn."""
    rows: list[tuple[str, str, str]] = []
    for mutation in MUTATIONS:
        caught = _caught(mutation)
        rows.append(
            (mutation.what, f"{mutation.path}", ", ".join(f"test_{name}" for name in mutation.tests.split()) if caught else "**none**")
        )
        print(f"{'caught  ' if caught else 'SURVIVED'}  {mutation.what}", flush=True)
    head = "# Mutations\n\nWritten by `make bench-mutations`: each formula is made wrong in turn, and the tests named must fail.\n\n"
    table = "| what is made wrong | where | noticed by |\n| --- | --- | --- |\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    (ROOT / "docs" / "mutations.md").write_text(head + table, encoding="utf-8")
    sys.exit(int(any(row[2] == "**none**" for row in rows)))


def _caught(mutation: Mutation) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        target = source / "opdscope" / mutation.path
        text = target.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            raise SystemExit(
                f"{mutation.path}: expected {mutation.old!r} once, found it {text.count(mutation.old)} times; mend the list of mutations"
            )
        target.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        tests = [str(ROOT / "tests" / f"test_{name}.py") for name in mutation.tests.split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        finished = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, text=True, check=False
        )
        if finished.returncode not in (0, 1):
            raise SystemExit(f"{mutation.what}: the tests did not run:\n{finished.stdout}{finished.stderr}")
        return finished.returncode == 1


if __name__ == "__main__":
    main()
