"""Measures the sampler against `model.generate` with repeated prefixes: same process, same model, same number of tokens, interleaved.

    python bench/sampler.py

Writes bench/results/sampler.json. Targets (docs of the sampler): at least 3 times as fast in float32 and 5 times in bfloat16.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from opdscope.core.randomness import derive_seed
from opdscope.models.base import SampleRequest
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers import LanguageModel, TransformersSampler, load_language_model

RESULTS = Path(__file__).parent / "results" / "sampler.json"
PREFIX_TOKENS, NUM_ROWS, NEW_TOKENS, NUM_DEPTHS = 200, 64, 64, 4


@dataclass(frozen=True)
class Case:
    """One row of the table: continuations as requests for us, and as padded rows for `generate`."""

    name: str
    requests: list[SampleRequest]
    num_tokens: int
    """Tokens that are wanted; what `generate` samples beyond a row's end is not counted for it."""


@dataclass(frozen=True)
class Result:
    """Median seconds of both ways over the repeats, and the ratio of medians."""

    case: str
    dtype: str
    num_tokens: int
    ours_seconds: list[float]
    generate_seconds: list[float]
    speedup: float


def cases(vocab_size: int) -> list[Case]:
    random = np.random.default_rng(0)
    path = tuple(random.integers(3, vocab_size, PREFIX_TOKENS).tolist())
    seeds = [derive_seed("bench", index) for index in range(NUM_ROWS)]
    equal = [SampleRequest(path, PREFIX_TOKENS, (), tuple(seeds), NEW_TOKENS)]
    # Lengths of responses are skewed: a geometric law with its mean at a third of the limit, cut at the limit. Limits end the rows, which
    # costs the sampler what end-of-sequence tokens would, and makes the number of tokens known.
    limits = np.minimum(random.geometric(3 / NEW_TOKENS, NUM_ROWS), NEW_TOKENS)
    limits[0] = NEW_TOKENS
    unequal = [SampleRequest(path, PREFIX_TOKENS, (), (seed,), int(limit)) for seed, limit in zip(seeds, limits, strict=True)]
    depths = [PREFIX_TOKENS * (index + 1) // NUM_DEPTHS for index in range(NUM_DEPTHS)]
    share = NUM_ROWS // NUM_DEPTHS
    nodes = [
        SampleRequest(path, depth, (), tuple(seeds[index * share : (index + 1) * share]), NEW_TOKENS) for index, depth in enumerate(depths)
    ]
    return [
        Case(f"{NUM_ROWS} continuations × {NEW_TOKENS} tokens", equal, NUM_ROWS * NEW_TOKENS),
        Case(f"{NUM_ROWS} continuations of unequal length, mean {limits.mean():.0f}", unequal, int(limits.sum())),
        Case(f"{NUM_DEPTHS} depths of one path × {share} × {NEW_TOKENS} tokens", nodes, NUM_ROWS * NEW_TOKENS),
    ]


def generate(model: Any, case: Case) -> None:
    """The ordinary way: every row with its own copy of the prefix, padded on the left, until the longest row has ended."""
    prefixes = [request.trunk[: request.length] for request in case.requests for _ in request.seeds]
    longest = max(map(len, prefixes))
    token_ids = torch.tensor([[0] * (longest - len(prefix)) + list(prefix) for prefix in prefixes])
    mask = torch.tensor([[0] * (longest - len(prefix)) + [1] * len(prefix) for prefix in prefixes])
    limit = max(request.max_new_tokens for request in case.requests)
    with torch.inference_mode():
        output = model.generate(
            token_ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=limit,
            min_new_tokens=limit,
            pad_token_id=0,
        )
    assert output.shape == (len(prefixes), longest + limit)


def measure(case: Case, language_model: LanguageModel, baseline: Any, num_repeats: int, dtype: str) -> Result:
    sampler = TransformersSampler(language_model, max_rows=NUM_ROWS, eos_token_ids=())
    ours, theirs = [], []
    for _ in range(num_repeats):
        ours.append(seconds(lambda: sampler.sample(case.requests, 1.0)))
        theirs.append(seconds(lambda: generate(baseline, case)))
    return Result(case.name, dtype, case.num_tokens, ours, theirs, statistics.median(theirs) / statistics.median(ours))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def plain_model(path: Path, dtype: torch.dtype) -> Any:
    """The model as `transformers` loads it, behind torch's own attention, which `generate` uses by default."""
    if path.suffix == ".gguf":
        options = {"gguf_file": path.name, "quantization_config": transformers.GgufConfig(dequantize=True)}
        return AutoModelForCausalLM.from_pretrained(path.parent, dtype=dtype, **options).eval()
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def show(results: list[Result]) -> None:
    table = Table(
        "case", "dtype", "tokens", "ours s", "ours tok/s", "generate s", "generate tok/s", "ratio", title="sampler against generate"
    )
    for result in results:
        ours, theirs = statistics.median(result.ours_seconds), statistics.median(result.generate_seconds)
        rates = f"{result.num_tokens / ours:.0f}", f"{result.num_tokens / theirs:.0f}"
        table.add_row(
            result.case, result.dtype, str(result.num_tokens), f"{ours:.2f}", rates[0], f"{theirs:.2f}", rates[1], f"{result.speedup:.2f}"
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the sampler against model.generate.")
    parser.add_argument("--model", default="packaged:smollm2", help="model directory, .gguf file or packaged model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    path = resolve_model(arguments.model)
    results: list[Result] = []
    for dtype in arguments.dtypes:
        language_model = load_language_model(path, dtype=dtype)
        baseline = plain_model(Path(path), language_model.model.dtype)
        for index, case in enumerate(cases(language_model.vocab_size)):
            if index == 0:  # first calls allocate and choose kernels
                measure(case, language_model, baseline, 1, dtype)
            results.append(measure(case, language_model, baseline, arguments.repeats, dtype))
    show(results)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    machine |= {"load_average": os.getloadavg()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"measured": datetime.now(UTC).isoformat(timespec="seconds"), "model": Path(path).name, "machine": machine}
    arguments.out.write_text(json.dumps(record | {"results": [asdict(result) for result in results]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
