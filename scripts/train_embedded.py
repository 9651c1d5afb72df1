"""Trains the six models that ship with the package, from their seeds: per task a teacher and two early-stopped students.

    python scripts/train_embedded.py [--only chain-teacher …] [--out DIRECTORY] [--jobs 2]

One thread a model, so that the result does not depend on the number of cores. A student first learns to read contexts, then to reason, and
is stopped when its measured success at temperature 1 under the plain prompt meets its target. Weights are rounded to float16, success is
measured again on held-out questions, and a `card.json` says how the model came about and how often it succeeds under each context.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from opdscope.config import CONTEXTS
from opdscope.core.randomness import derive_seed, generator
from opdscope.tasks.base import EMBEDDED_PROMPT_FORMAT, EmbeddedTask
from opdscope.tasks.embedded import EMBEDDED

OUT = Path(__file__).parents[1] / "src" / "opdscope" / "data" / "models"
CHARACTERS = "0123456789+-*=;>:QAS "
SPECIAL = ("<pad>", "</s>")
PAD, EOS = 0, 1
IDS = {character: index for index, character in enumerate(CHARACTERS, start=len(SPECIAL))}
READING = {"plain": 0, "answer": 16, "solution": 40, "unrelated_solution": 8}
"""Sequences of a batch in a student's first phase: it learns to read contexts and as little arithmetic as possible."""
REASONING = {"plain": 20, "answer": 14, "solution": 14, "unrelated_solution": 16}
"""Sequences of a batch in the second phase, and of a teacher's only one."""
READING_RATE, READING_TARGET, NUM_READING_CHECK = 2e-3, 0.7, 200
TOLERANCE = 0.03
NUM_CHECK, NUM_FINAL = 1_000, 4_000  # questions of a check while training, and of the final measurement


@dataclass(frozen=True)
class Recipe:
    """What is trained and when it stops."""

    task: str
    target: float
    """Success at temperature 1 under the plain prompt: met within the tolerance by a student, at least reached by a teacher."""
    seed: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    learning_rate: float = 7e-4
    is_teacher: bool = False


RECIPES = {
    "chain-student-weak": Recipe("chain", 0.45, 11, 64, 160, 2),
    "chain-student-strong": Recipe("chain", 0.65, 12, 64, 160, 2),
    "chain-teacher": Recipe("chain", 0.98, 13, 80, 192, 2, 2e-3, True),
    "addition-student-weak": Recipe("addition", 0.45, 21, 64, 128, 3),
    "addition-student-strong": Recipe("addition", 0.65, 22, 64, 128, 3),
    "addition-teacher": Recipe("addition", 0.98, 23, 80, 160, 3, 2e-3, True),
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; decoding joins without spaces; a character outside the vocabulary is an error."""
    vocab = {token: index for index, token in enumerate(SPECIAL)} | IDS
    tokenizer = Tokenizer(models.WordLevel(vocab))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[PAD], eos_token=SPECIAL[EOS], padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=256,
    )  # fmt: skip


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """A fresh model, initialised from the recipe's seed."""
    torch.manual_seed(derive_seed("embedded-init", recipe.task, recipe.seed) % 2**63)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS), hidden_size=recipe.hidden_size, intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
        tie_word_embeddings=True, pad_token_id=PAD, bos_token_id=None, eos_token_id=EOS, initializer_range=0.05,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def prompt(task: EmbeddedTask, question: str, context: str, rng: np.random.Generator) -> str:
    """The prompt of a question under a context; another question is drawn where its solution is to be shown."""
    shown = question if context != "unrelated_solution" else task.draw_question(rng)
    filled: str = getattr(EMBEDDED_PROMPT_FORMAT, context)
    return (
        filled.replace("{question}", question).replace("{answer}", task.answer(question)).replace("{solution}", task.worked_solution(shown))
    )


@dataclass(frozen=True)
class Example:
    """A prompt and the response that is to be learnt."""

    prompt: str
    response: str
    num_unlearnt: int
    """How many characters at the start of the response are left out of the loss."""


def draw_examples(task: EmbeddedTask, rng: np.random.Generator, held_out: frozenset[str], plan: Mapping[str, int]) -> list[Example]:
    """A batch of fresh questions under the contexts of a plan.

    In the reading phase only the final answer is learnt under the answer context: its steps would teach arithmetic.
    """
    batch: list[Example] = []
    for context in (context for context, count in plan.items() for _ in range(count)):
        question = task.draw_question(rng)
        while question in held_out:
            question = task.draw_question(rng)
        response = task.worked_solution(question)
        num_unlearnt = response.index(">") if plan is READING and context == "answer" else 0
        batch.append(Example(prompt(task, question, context, rng), response, num_unlearnt))
    return batch


def loss_sum(model: LlamaForCausalLM, examples: Sequence[Example]) -> torch.Tensor:
    """Sum of the negative log-probabilities of the response tokens and the end of sequence."""
    rows = [[IDS[c] for c in example.prompt + example.response] + [EOS] for example in examples]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    starts = torch.tensor([len(example.prompt) + example.num_unlearnt for example in examples])[:, None]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    position = torch.arange(1, longest)[None]
    wanted = (position >= starts) & (position < ends)
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[wanted]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[:, 1:][wanted], reduction="sum")


def train_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, learning_rate: float, examples: Sequence[Example]) -> None:
    """One step on the mean loss over a batch; short and long sequences go apart, so that padding stays small."""
    optimizer.param_groups[0]["lr"] = learning_rate
    optimizer.zero_grad()
    num_tokens = sum(len(example.response) - example.num_unlearnt + 1 for example in examples)
    for has_solution in (False, True):
        part = [example for example in examples if example.prompt.startswith("S") == has_solution]
        if part:
            (loss_sum(model, part) / num_tokens).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def measure_success(model: LlamaForCausalLM, task: EmbeddedTask, questions: Sequence[str], context: str, seed: int) -> float:
    """Share of the questions that one sample at temperature 1 answers correctly."""
    rng = generator("embedded-contexts", seed)
    prompts = [prompt(task, question, context, rng) for question in questions]
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(text)) + [IDS[c] for c in text] for text in prompts])
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=task.max_completion_length, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    torch.manual_seed(derive_seed("embedded-sampling", seed) % 2**63)
    rows: list[list[int]] = []
    for part in ids.split(500):
        sampled = model.generate(part, attention_mask=(part != PAD).long(), generation_config=settings)
        rows += sampled[:, longest:].tolist()
    return sum(_is_correct(row, task.answer(question)) for row, question in zip(rows, questions, strict=True)) / len(rows)


def _is_correct(row: list[int], answer: str) -> bool:
    if EOS not in row:
        return False
    text = "".join(CHARACTERS[i - len(SPECIAL)] for i in row[: row.index(EOS)] if i >= len(SPECIAL))
    return ">" in text and text.rpartition(">")[2] == answer


def rounded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy whose weights are those that are stored, in float16."""
    return copy.deepcopy(model).half().float().eval()


def train(recipe: Recipe) -> tuple[LlamaForCausalLM, int]:
    """The model as it is stored, and how many steps made it.

    A student that jumps over its target is put back to the last check below it, and goes on with half the step size.
    """
    task, model = EMBEDDED[recipe.task], build_model(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    rng = generator("embedded-training", recipe.task, recipe.seed)
    check = draw_questions(task, generator("embedded-check", recipe.task, recipe.seed), NUM_CHECK)
    held_out = frozenset(check) | frozenset(final_questions(recipe))
    step = 0 if recipe.is_teacher else learn_to_read(model, optimizer, recipe, rng, held_out)
    learning_rate, success, kept = recipe.learning_rate, 0.0, None
    while True:
        for _ in range(100 if recipe.is_teacher or success < recipe.target - 0.2 else 20):
            step += 1
            train_step(model, optimizer, learning_rate * min(1.0, step / 100), draw_examples(task, rng, held_out, REASONING))
        stored = rounded(model)
        success = measure_success(stored, task, check, "plain", step)
        log(recipe, step, f"lr {learning_rate:.1e} success {success:.3f}")
        reached = success >= recipe.target if recipe.is_teacher else abs(success - recipe.target) <= TOLERANCE / 2
        if reached and _confirmed(stored, recipe):
            return stored, step
        if not recipe.is_teacher and success > recipe.target + TOLERANCE and kept is not None:
            model.load_state_dict(kept[0])
            optimizer.load_state_dict(kept[1])
            learning_rate = max(0.5 * learning_rate, 2e-5)
        elif success < recipe.target:
            kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def learn_to_read(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, recipe: Recipe, rng: np.random.Generator, held_out: frozenset[str]
) -> int:
    """The first phase: how to use a context, before there is any arithmetic. Returns the number of steps."""
    task = EMBEDDED[recipe.task]
    check = draw_questions(task, generator("embedded-reading", recipe.task, recipe.seed), NUM_READING_CHECK)
    step, success = 0, 0.0
    while success < READING_TARGET:
        for _ in range(50):
            step += 1
            train_step(model, optimizer, READING_RATE * min(1.0, step / 100), draw_examples(task, rng, held_out, READING))
        success = measure_success(rounded(model), task, check, "solution", step)
        log(recipe, step, f"reading, success with the solution {success:.3f}")
    return step


def log(recipe: Recipe, step: int, text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {recipe.task} seed {recipe.seed} step {step} {text}", flush=True)


def _confirmed(model: LlamaForCausalLM, recipe: Recipe) -> bool:
    success = measure_success(model, EMBEDDED[recipe.task], final_questions(recipe), "plain", recipe.seed)
    return success >= recipe.target - TOLERANCE and (recipe.is_teacher or success <= recipe.target + TOLERANCE)


def draw_questions(task: EmbeddedTask, rng: np.random.Generator, count: int) -> list[str]:
    """So many different questions."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[task.draw_question(rng)] = None
    return list(drawn)


def final_questions(recipe: Recipe) -> list[str]:
    """The questions of the final measurement, which training never sees."""
    return draw_questions(EMBEDDED[recipe.task], generator("embedded-final", recipe.task), NUM_FINAL)


def make(name: str, out: Path) -> dict[str, object]:
    """Train, measure and write one model; returns its card."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    recipe, started = RECIPES[name], time.monotonic()
    task = EMBEDDED[recipe.task]
    model, steps = train(recipe)
    seconds = time.monotonic() - started
    questions = final_questions(recipe)
    success = {context: measure_success(model, task, questions, context, recipe.seed) for context in CONTEXTS}
    card: dict[str, object] = {
        "name": name, "command": f"python scripts/train_embedded.py --only {name}", **asdict(recipe), "steps": steps,
        "sequences_per_step": sum(REASONING.values()), "training_seconds": round(seconds), "parameters": model.num_parameters(),
        "max_completion_length": task.max_completion_length, "temperature": 1.0, "questions_measured": len(questions), "success": success,
        "torch": torch.__version__,
    }  # fmt: skip
    save(model, out / name, card)
    return card


def save(model: LlamaForCausalLM, directory: Path, card: dict[str, object]) -> None:
    """Write weights in float16, and a config that loads them as float32."""
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, eos_token_id=EOS, pad_token_id=PAD)
    copy.deepcopy(model).half().save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = "float32"
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    build_tokenizer().save_pretrained(directory)
    (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def table(cards: Sequence[dict]) -> str:
    """Success of each model under each context, with one standard error of the plain prompt."""
    lines = [f"{'model':<24}{'steps':>7}{'params':>9}{'seconds':>9}" + "".join(f"{context:>20}" for context in CONTEXTS)]
    for card in cards:
        plain = card["success"]["plain"]
        error = math.sqrt(plain * (1 - plain) / card["questions_measured"])
        cells = [f"{plain:.3f} ± {error:.3f}"] + [f"{card['success'][context]:.3f}" for context in CONTEXTS[1:]]
        lines.append(
            f"{card['name']:<24}{card['steps']:>7}{card['parameters']:>9}{card['training_seconds']:>9}" + "".join(f"{c:>20}" for c in cells)
        )
    return "\n".join(lines)


def main() -> None:
    """Train what was asked for, `--jobs` models at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), metavar="NAME", help="train only these models")
    parser.add_argument("--out", type=Path, default=OUT, help="directory that gets one folder a model")
    parser.add_argument("--jobs", type=int, default=2, help="models trained at once, one thread each")
    arguments = parser.parse_args()
    names = [name for name in RECIPES if arguments.only is None or name in arguments.only]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        cards = list(pool.map(make, names, [arguments.out] * len(names)))
    print(table(cards))


if __name__ == "__main__":
    main()
