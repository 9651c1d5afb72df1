"""What each teacher is shown for each question, fixed before anything is scored."""

from opdscope.contexts import Demonstration, build_context, correct_demonstrations
from opdscope.pipeline.experiment import Experiment
from opdscope.records import Role, to_table


def store_contexts(experiment: Experiment) -> None:
    """Build every teacher's prompt; a question that lacks what a context needs is stored as unavailable, with the reason."""
    if experiment.run.has("contexts", "000000"):
        return
    demonstrations = correct_demonstrations(
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
            context = build_context(teacher.privileged_context, index, experiment.questions, experiment.prompts, demonstrations)
            prompt, token_ids = ("", ()) if context.text is None else model.render_prompt(context.text, experiment.prompts.system)
            rows.append(
                {
                    "question_id": question.question_id,
                    "teacher": teacher.name,
                    "available": context.text is not None,
                    "reason": context.reason,
                    "prompt": prompt,
                    "prompt_token_ids": token_ids,
                    "source_question_id": "" if context.source is None else context.source.question_id,
                    "source_rollout_index": -1 if context.source is None else context.source.rollout_index,
                }
            )
    experiment.run.write("contexts", "000000", to_table("contexts", rows))
