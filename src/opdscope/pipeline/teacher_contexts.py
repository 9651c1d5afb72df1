"""What each teacher is shown for each question, fixed before anything is scored."""

from opdscope.config import Config, PromptFormat
from opdscope.contexts import Demonstration, attempts_by_question, build_context, wording
from opdscope.errors import ConfigError
from opdscope.pipeline.experiment import Experiment
from opdscope.records import Role, to_table
from opdscope.tasks import Task


def require_contexts(config: Config, task: Task, prompts: PromptFormat) -> None:
    """Refuse teachers that could be shown nothing, before anything is paid for.

    Raises:
        ConfigError: If the prompts have no wording for a teacher's context, or it shows the task's own solutions and there are none.
    """
    for teacher in config.teachers:
        wording(teacher.privileged_context, prompts)
        if teacher.privileged_context == "reference_solution" and not any(question.solution for question in task.questions):
            raise ConfigError(
                f"teacher {teacher.name!r} is shown the task's own solutions, but this task has none; with task.kind jsonl name their key by "
                "task.solution_field, or show it the student's own (privileged_context: solution)"
            )


def store_contexts(experiment: Experiment) -> None:
    """Build every teacher's prompt; a question that lacks what a context needs is stored as unavailable, with the reason."""
    if experiment.run.has("contexts", "000000"):
        return
    attempts = attempts_by_question(
        [
            Demonstration(row["question_id"], row["rollout_index"], row["text"], row["outcome"])
            for row in experiment.run.table("rollouts").to_pylist()
            if row["role"] == Role.DEMONSTRATION
        ]
    )
    rows = []
    for teacher in experiment.config.teachers:
        model = experiment.teachers[teacher.name]
        for index, question in enumerate(experiment.questions):
            context = build_context(teacher.privileged_context, index, experiment.questions, experiment.prompts, attempts)
            prompt, token_ids = ("", ()) if context.text is None else model.render_prompt(context.text, experiment.prompts.system)
            rows.append(
                {
                    "question_id": question.question_id,
                    "teacher": teacher.name,
                    "available": context.text is not None,
                    "reason": context.reason,
                    "prompt": prompt,
                    "prompt_token_ids": token_ids,
                    "source_question_id": context.sources[0].question_id if context.sources else "",
                    "source_rollout_indices": [source.rollout_index for source in context.sources],
                }
            )
    experiment.run.write("contexts", "000000", to_table("contexts", rows))
