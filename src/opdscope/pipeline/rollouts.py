"""The student's ordinary rollouts, and the teachers' own for the accuracy gap."""

from collections.abc import Sequence

from opdscope.core.randomness import derive_seed
from opdscope.models.base import SampleRequest
from opdscope.pipeline.experiment import Experiment, unit_names
from opdscope.pipeline.looks import Look
from opdscope.records import Role, to_table


def store_questions(experiment: Experiment) -> None:
    """Write the questions with the prompts that the student is shown."""
    if experiment.run.has("questions", "000000"):
        return
    rows = []
    for question in experiment.questions:
        prompt, token_ids = experiment.render_student(question)
        rows.append({**vars(question), "prompt": prompt, "prompt_token_ids": token_ids})
    experiment.run.write("questions", "000000", to_table("questions", rows))


def sample_rollouts(experiment: Experiment, look: Look) -> None:
    """Draw and verify a look's measured rollouts for every question, with the first one the demonstrations."""
    settings = experiment.config.rollouts
    # demonstrations have the same seeds wherever the measured rollouts end
    last = range(settings.num_rollouts, settings.num_rollouts + settings.num_demonstrations if look.start == 0 else settings.num_rollouts)
    indices = (*range(look.start, look.stop), *last)
    per_question = len(indices)
    blocks = experiment.question_blocks(per_question)
    names = [look.prefix + name for name in unit_names(len(blocks))]

    def work(unit: int) -> int:
        questions = [experiment.questions[index] for index in blocks[unit]]
        requests = [_request(experiment, q.question_id, experiment.student_prompts[q.question_id], "rollout", indices) for q in questions]
        samples = [
            (q.question_id, index, sample)
            for q, group in zip(questions, experiment.sample(experiment.student, requests), strict=True)
            for index, sample in zip(indices, group, strict=True)
        ]
        verdicts = experiment.verify([s[0] for s in samples], [s[2].token_ids for s in samples], [s[2].finished for s in samples])
        rows = [
            {
                "question_id": question_id,
                "rollout_index": index,
                "role": Role.MEASURED if index < settings.num_rollouts else Role.DEMONSTRATION,
                "token_ids": sample.token_ids,
                "text": text,
                "outcome": outcome,
            }
            for (question_id, index, sample), (text, outcome) in zip(samples, verdicts, strict=True)
        ]
        experiment.run.write("rollouts", names[unit], to_table("rollouts", rows))
        return sum(len(sample.token_ids) for _, _, sample in samples)

    experiment.run_units(
        look.stage("rollouts"), "rollouts", [(name, len(b) * per_question) for name, b in zip(names, blocks, strict=True)], work
    )


def sample_teachers(experiment: Experiment) -> None:
    """Draw and verify a few responses of each teacher under its own context: their success is a cheap rival of the gain."""
    per_question = experiment.config.rollouts.teacher_rollouts
    if per_question == 0:
        return
    contexts = [row for row in experiment.run.table("contexts").to_pylist() if row["available"]]
    size = max(1, 256 // per_question)
    blocks = [
        (name, own[start : start + size])
        for name in experiment.teachers
        for own in [[row for row in contexts if row["teacher"] == name]]
        for start in range(0, len(own), size)
    ]
    names = unit_names(len(blocks))

    def work(unit: int) -> int:
        teacher, block = blocks[unit]
        requests = [
            _request(experiment, row["question_id"], tuple(row["prompt_token_ids"]), f"teacher:{teacher}", range(per_question))
            for row in block
        ]
        samples = [
            (row["question_id"], index, sample)
            for row, group in zip(block, experiment.sample(experiment.teachers[teacher], requests), strict=True)
            for index, sample in enumerate(group)
        ]
        verdicts = experiment.verify([s[0] for s in samples], [s[2].token_ids for s in samples], [s[2].finished for s in samples])
        rows = [
            {
                "question_id": question_id,
                "teacher": teacher,
                "rollout_index": index,
                "num_tokens": len(sample.token_ids),
                "outcome": outcome,
            }
            for (question_id, index, sample), (_, outcome) in zip(samples, verdicts, strict=True)
        ]
        experiment.run.write("teacher_rollouts", names[unit], to_table("teacher_rollouts", rows))
        return sum(len(sample.token_ids) for _, _, sample in samples)

    sizes = [(name, len(block) * per_question) for name, (_, block) in zip(names, blocks, strict=True)]
    experiment.run_units("teacher rollouts", "teacher_rollouts", sizes, work)


def _request(experiment: Experiment, question_id: str, prompt: tuple[int, ...], purpose: str, indices: Sequence[int]) -> SampleRequest:
    seeds = tuple(derive_seed(experiment.config.seed, purpose, question_id, index) for index in indices)
    return SampleRequest(prompt, len(prompt), (), seeds, experiment.max_length)
