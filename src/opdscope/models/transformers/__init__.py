"""Local `torch` models through Hugging Face `transformers`: loading, sampling with shared prefixes, scoring."""

from opdscope.models.transformers.language_model import LanguageModel
from opdscope.models.transformers.loading import load_language_model
from opdscope.models.transformers.sampler import TransformersSampler
from opdscope.models.transformers.scorer import HiddenStates, TransformersScorer

__all__ = ["HiddenStates", "LanguageModel", "TransformersSampler", "TransformersScorer", "load_language_model"]
