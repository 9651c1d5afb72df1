"""Rules: act when they should, rest afterwards, and are refused where they never could."""

from pathlib import Path
from typing import Any

import pytest

from opdscope.errors import TrainingError
from opdscope.training.rules import RuleBook, Situation, check_rules, load_rules
from opdscope.training.steering import Steering, apply, change_of

STOP = {"action": "stop"}


def book(**changes: Any) -> RuleBook:
    rule = {"name": "r", "series": "natural_gain", "below": 0.0, "evaluations": 2, "cooldown": 1, "then": STOP, **changes}
    return RuleBook(load_rules({"rules": [rule]}))


def situation(**changes: Any) -> Situation:
    usual: dict[str, Any] = {
        "max_steps": 100, "rollouts_per_step": 32, "has_monitor": True, "has_outcomes": True, "probe_every": None,
        "probes": ("gains", "gains"), "can_weigh": True,
        "distillation_weight": 1.0, "num_contexts": 1, "num_objectives": 1,
    }  # fmt: skip
    return Situation(**{**usual, **changes})


def fired(rules: RuleBook, values: list[float], error: float = 0.0, series: str = "natural_gain") -> list[int]:
    return [index for index, value in enumerate(values) if rules.decide({series: (value, error)}) is not None]


def test_a_rule_acts_after_so_many_evaluations_in_a_row_and_then_rests():
    assert fired(book(), [-1, 1, -1, -1, -1, -1, -1, -1]) == [3, 6]  # one evaluation of rest, then two in a row again


def test_a_bound_that_reaches_the_level_is_not_beyond_it():
    assert fired(book(), [-0.1] * 5, error=0.1) == []  # 90 %: the upper end is -0.1 + 1.645 * 0.1
    assert fired(book(), [-0.2] * 3, error=0.1) == [1]


def test_the_lower_end_above_a_level():
    assert fired(book(below=None, above=0.5, bound="lower"), [0.6, 0.9, 0.9], error=0.1) == [2]


def test_a_fall_is_measured_from_the_highest_lower_end():
    rules = book(series="success", below=None, falls_by=0.05)
    values = [0.5, 0.6, 0.7, 0.68, 0.64, 0.6, 0.59, 0.58]
    assert fired(rules, values, 0.01, "success") == [6]  # 0.7 - 1.645 % - 5 % is 63.4 %, and 0.6 + 1.6 % lies below it
    assert fired(book(series="success", below=None, falls_by=0.0), [0.5, 0.51, 0.49, 0.5, 0.49] * 5, 0.02, "success") == []


def test_an_undefined_series_leaves_a_rule_where_it_was():
    nan = float("nan")
    assert fired(book(), [-1, nan, -1]) == [2]
    assert book().decide({}) is None


def test_a_rule_acts_at_most_so_often():
    assert len(fired(book(most=2, cooldown=0, evaluations=1), [-1] * 9)) == 2


def test_the_first_rule_that_holds_acts_and_says_why():
    rules = RuleBook(
        load_rules({"rules": [
            {"name": name, "series": "natural_gain", "below": level, "evaluations": 1, "then": STOP} for name, level in (("a", -2.0), ("b", 0.0))
        ]})
    )  # fmt: skip
    decision = rules.decide({"natural_gain": (-1.0, 0.1)})
    assert decision is not None
    assert decision.rule.name == "b"
    assert decision.reason == "natural_gain [-1.164, -0.8355]: upper end below 0 at this evaluation"


def test_forgetting_a_series_starts_its_rules_anew():
    rules = book()
    assert fired(rules, [-1]) == []
    rules.forget(["natural_gain"])
    assert fired(rules, [-1, -1]) == [1]


class Weighed:
    """A trainer as far as steering looks at it."""

    def __init__(self, weight: float) -> None:
        self.distillation_weight, self.observers, self.contexts = weight, [], ("plain", "told", "solution")
        self.context, self.objective = "plain", "reverse_kl"


@pytest.mark.parametrize(
    ("action", "weight", "after"),
    [
        ({"action": "lower_weight", "factor": 0.5}, 1.0, "0.5"),
        ({"action": "lower_weight", "factor": 0.5, "floor": 0.8}, 1.0, "0.8"),
        ({"action": "lower_weight", "factor": 0.5, "floor": 0.8}, 0.5, None),  # below the floor already: nothing is raised
        ({"action": "raise_weight", "factor": 2.0}, 0.25, "0.5"),
        ({"action": "raise_weight", "factor": 2.0, "ceiling": 0.3}, 0.25, "0.3"),
        ({"action": "raise_weight", "factor": 2.0}, 1.0, None),
        ({"action": "stop"}, 1.0, "stopped"),
        ({"action": "switch_context"}, 1.0, "told"),
        ({"action": "switch_objective"}, 1.0, "forward_kl"),
    ],
)
def test_what_an_action_changes(action: dict[str, Any], weight: float, after: str | None):
    trainer = Weighed(weight)
    steering = Steering(trainer, ("told", "solution"), ("forward_kl",))
    change = change_of(book(then=action).config.rules[0].then, steering)
    assert (None if change is None else change.after) == after
    if change is not None and change.action != "stop":
        assert apply(change, steering) == change.action.startswith("switch")
        assert str(after) in {f"{trainer.distillation_weight:g}", trainer.context, trainer.objective}


def test_alternatives_that_do_not_exist_are_refused():
    with pytest.raises(TrainingError, match="there is no context 'hint'; the trainer has plain, told, solution"):
        Steering(Weighed(1.0), ("hint",))
    with pytest.raises(TrainingError, match="unknown objective 'jsd'"):
        Steering(Weighed(1.0), objectives=("jsd",))


def test_contexts_are_left_one_after_the_other_and_not_gone_back_to():
    steering, switch = Steering(Weighed(1.0), ("told", "solution")), book(then={"action": "switch_context"}).config.rules[0].then
    seen: list[str] = []
    while (change := change_of(switch, steering)) is not None:
        apply(change, steering)
        seen.append(steering.context)
    assert seen == ["told", "solution"]


@pytest.mark.parametrize(
    ("rule", "run", "message"),
    [
        ({"series": "probe.success", "falls_by": 0.1, "below": None}, {}, "probe.success needs a probe set, and there is none"),
        (
            {"series": "probe.advantage"},
            {"probe_every": 10},
            "probe.advantage needs probes that measure 'targeted', and these measure 'gains'",
        ),
        (
            {"series": "probe.natural_gain", "evaluations": 2},
            {"probe_every": 10, "probes": ("targeted", "success")},
            "it wants 2 evaluations, and 1 probes of this run measure probe.natural_gain",
        ),
        ({"series": "probe.success_change", "below": -1.0}, {"probe_every": 10}, "a success rate changes by less than 1"),
        ({}, {"has_monitor": False}, "needs a trainer that shows its rollouts"),
        ({}, {"has_outcomes": False}, "needs outcomes, and the trainer has no reward function"),
        ({"evaluations": 11}, {}, "it wants 11 evaluations, one every 10 steps, and the 100 steps of this run leave 9"),
        ({}, {"rollouts_per_step": 2}, "a step needs 3 rollouts to say anything, and there are 2 in one"),
        ({}, {"rollouts_per_step": 3, "max_steps": 60}, "it wants 2 evaluations, one every 10 steps, and the 60 steps of this run leave 0"),
        ({"series": "success"}, {}, "a success rate is never below 0"),
        ({"series": "success", "below": None, "above": 1.0, "bound": "lower"}, {}, "a success rate is never above 1"),
        ({"series": "success", "below": None, "falls_by": 1.0}, {}, "cannot fall by 1"),
        ({"then": {"action": "lower_weight"}}, {"can_weigh": False}, "this trainer has no distillation weight"),
        ({"then": {"action": "lower_weight", "floor": 1.0}}, {}, "the distillation weight 1 is not above the floor 1"),
        ({"then": {"action": "raise_weight"}}, {}, "the distillation weight 1 is not below the ceiling 1, and no rule lowers it"),
        ({"then": {"action": "switch_context"}}, {"num_contexts": 0}, "there is no other context"),
        ({"then": {"action": "switch_objective"}}, {"num_objectives": 0}, "there is no other objective"),
    ],
)
def test_a_rule_that_can_never_fire_is_refused(rule: dict[str, Any], run: dict[str, Any], message: str):
    rules = book(**rule)
    with pytest.raises(TrainingError, match=message) as caught:
        check_rules(rules.config, situation(**run))
    assert str(caught.value).startswith("rule 'r' can never fire: ")


def test_rules_that_can_fire_are_not_refused():
    check_rules(book().config, situation())
    check_rules(book(then={"action": "raise_weight"}).config, situation(distillation_weight=0.5))
    check_rules(book(series="probe.natural_gain").config, situation(probe_every=20, has_monitor=False, rollouts_per_step=0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: []", "rules: Tuple should have at least 1 item"),
        ("rules: [{name: a, series: success, below: 0.5, above: 0.1, then: {action: stop}}]", "exactly one of below, above and falls_by"),
        ("rules: [{name: a, series: gain, below: 0.5, then: {action: stop}}]", "rules.0.series: Input should be"),
        ("rules: [{name: a, series: success, below: 0.5, then: {action: halt}}]", "found using 'action' does not match"),
        ("rules: [", "cannot read the rules"),
    ],
)
def test_a_file_that_holds_no_rules_is_refused_with_its_place(tmp_path: Path, text: str, message: str):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message) as caught:
        load_rules(path)
    assert str(path) in str(caught.value)
