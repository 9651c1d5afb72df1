"""What is drawn: inclusion, candidates, allocation, further nodes, random numbers."""

from mutation import Mutation

MUTATIONS = (
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
        "nodes are drawn by importance but called uniform",
        "core/sampling.py",
        "return np.searchsorted(upper[:-1], ticks",
        "return np.searchsorted(np.linspace(0, upper[-1], len(upper) + 1)[1:-1], ticks",
        "core_sampling",
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
        "self.slopes[:, of_bin] ** 2 * 2.0 * np.maximum(reverse_kl, 0.0)",
        "2.0 * np.maximum(reverse_kl, 0.0)",
        "core_early_range",
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
        "dear nodes are drawn as often as cheap ones",
        "pipeline/importance.py",
        "if self._settings.include_by_cost:",
        "if False:",
        "pipeline_importance",
    ),
    Mutation(
        "the tail stratum is dropped", "pipeline/nodes.py", "has_tail = bool(tail.sum() > 0)", "has_tail = False", "pipeline_diagnosis"
    ),
    Mutation(
        "rounds do not plan with what controls leave",
        "pipeline/rounds.py",
        "np.maximum(success * (1.0 - success), _LEAST_VARIANCE) * self._kept[use[0]]",
        "np.maximum(success * (1.0 - success), _LEAST_VARIANCE)",
        "pipeline_controls",
    ),
    Mutation(
        "even numbers give more to what costs more",
        "pipeline/rounds.py",
        "np.sqrt(cost) * (weights > 0)",
        "cost * (weights > 0)",
        "pipeline_targets",
    ),
)
