"""Everything that opdscope raises on purpose.

A bad argument is an exception whose text says what was expected, what was found and what to do. A bad *sample* (a truncated response, a
verifier that timed out) is data and never an exception. The command line prints the text of any :class:`OpdscopeError` as one plain
sentence and exits with code 2.
"""


class OpdscopeError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(OpdscopeError):
    """The configuration is wrong: an unknown key, a value out of range, settings that contradict each other."""


class ModelError(OpdscopeError):
    """A model or tokenizer cannot be found, cannot be loaded, or does not fit the others (different vocabularies)."""


class TaskError(OpdscopeError):
    """A question set is missing, empty, or has no answer that can be verified."""


class RunDirectoryError(OpdscopeError):
    """A run directory cannot be used: another configuration's, another schema version's, or in use by another process."""


class RecipeError(OpdscopeError):
    """A recipe cannot be written or read: missing, damaged, of another version, or made for another tokenizer."""


class ShapeError(OpdscopeError, ValueError):
    """Arrays that must agree in shape do not."""


class NormalizationError(OpdscopeError, ValueError):
    """Probabilities do not sum to one."""


class TrainingError(OpdscopeError):
    """A trainer, a recipe, a rule or a dump of rollouts cannot be used for watching or steering training."""
