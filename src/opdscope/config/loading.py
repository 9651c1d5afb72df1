"""From a file, a mapping or a config, with overrides, to a checked config; every failure is a sentence that says where and what to do."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from opdscope.config.paper import PaperConfig
from opdscope.config.sections import (
    AnalysisConfig,
    Config,
    EmbeddedTaskConfig,
    EngineConfig,
    ExactTaskConfig,
    JsonlTaskConfig,
    ModelConfig,
    NullsConfig,
    ReasoningGymTaskConfig,
    RolloutsConfig,
    TargetedConfig,
)
from opdscope.config.target import TargetConfig
from opdscope.config.teachers import PromptFormat, TeacherConfig
from opdscope.errors import ConfigError

_SECTIONS: dict[str, type[BaseModel]] = {
    "student": ModelConfig, "teachers": TeacherConfig, "nulls": NullsConfig, "prompt": PromptFormat, "rollouts": RolloutsConfig,
    "targeted": TargetedConfig, "target": TargetConfig, "paper": PaperConfig, "engine": EngineConfig, "analysis": AnalysisConfig,
}  # fmt: skip
_TASKS: dict[str, type[BaseModel]] = {
    "chain": EmbeddedTaskConfig, "addition": EmbeddedTaskConfig, "exact": ExactTaskConfig, "reasoning_gym": ReasoningGymTaskConfig,
    "jsonl": JsonlTaskConfig,
}  # fmt: skip


def load_config(source: str | Path | Mapping[str, Any] | Config, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        source: Path of a YAML file, a mapping of the same layout, or a config.
        overrides: `key=value` pairs with dotted keys (`task.num_questions=8`, `teachers.0.dtype=bfloat16`); values are read as YAML.

    Raises:
        ConfigError: If the file is missing or not YAML, a key is unknown, or a value is wrong; the text says which and what to do.
    """
    if isinstance(source, Config):
        data: Any = source.model_dump(mode="json")
    elif isinstance(source, Mapping):
        data = json.loads(json.dumps(source, default=str))
    else:
        data = _read_yaml(Path(source))
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected a mapping with keys such as student, teachers and task, found {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_sentence(error, data)) from error


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}; `opdscope demo` shows one that works") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key=value, for example task.num_questions=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} cannot be read as a YAML value") from error
    target: Any = data
    parts = key.split(".")
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        last = following == ""
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                raise ConfigError(f"--set {override!r}: {part!r} is not an index of a list of {len(target)} entries (they start at 0)")
            index: Any = int(part)
        elif isinstance(target, dict):
            index = part
        else:
            raise ConfigError(f"--set {override!r}: {part!r} is below a value that has no keys")
        if last:
            target[index] = value
        elif isinstance(target, list):
            target = target[index]
        else:
            if target.get(index) is None:
                target[index] = {}
            target = target[index]


def _sentence(error: ValidationError, data: Mapping[str, Any]) -> str:
    problems: list[str] = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if part not in _TASKS]
        where = ".".join(str(part) for part in location)
        if problem["type"] == "extra_forbidden":
            problems.append(_unknown_key(where, str(location[-1]), [str(part) for part in location[:-1]], data))
        elif problem["type"] == "missing":
            problems.append(f"{where} is missing; it must be given")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            # a check of a section as a whole names the values that it found
            whole = problem["type"] == "value_error" and (not where or isinstance(problem["input"], Mapping))
            found = "" if whole else f", found {problem['input']!r}"
            problems.append(f"{where}: {message}{found}" if where else message)
    return "; ".join(problems)


def _unknown_key(where: str, key: str, parents: list[str], data: Mapping[str, Any]) -> str:
    valid = sorted(_valid_keys(parents, data))
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys here are {', '.join(valid)}"
    return f"unknown key {where!r}; {hint}"


def _valid_keys(parents: list[str], data: Mapping[str, Any]) -> Iterator[str]:
    if not parents:
        yield from Config.model_fields
    elif parents[0] == "task":
        yield from _TASKS[data["task"]["kind"]].model_fields
    elif parents[0] in _SECTIONS:
        yield from _SECTIONS[parents[0]].model_fields
