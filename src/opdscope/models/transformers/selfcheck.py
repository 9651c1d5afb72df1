"""A check at load time that the shared-prefix path computes what the model's own forward computes."""

import numpy as np
import torch

from opdscope.errors import ModelError
from opdscope.models.transformers.engine import SharedPrefixEngine
from opdscope.models.transformers.language_model import LanguageModel
from opdscope.models.transformers.passes import RowLayout

_TRUNK_TOKENS, _SUFFIX_TOKENS = 8, 4
# Rounding stays below 1e-5 (float32) and 0.03 (bfloat16) of the largest logit; a wrong mask, position or logit scale is far above both.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}


def require_exact_attention(language_model: LanguageModel) -> None:
    """Compare both paths on a dozen tokens.

    It replaces a list of supported architectures: what agrees is supported, whatever its name.

    Args:
        language_model: The model as loaded.

    Raises:
        ModelError: If the two disagree, or the model's attention cannot be replaced.
    """
    token_ids = np.random.default_rng(0).integers(language_model.vocab_size, size=_TRUNK_TOKENS + _SUFFIX_TOKENS)
    with torch.inference_mode():
        try:
            shared = _shared_prefix_logits(language_model, token_ids)
            plain = language_model.model(torch.from_numpy(token_ids[None]).to(language_model.device), use_cache=False).logits[0]
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ModelError(_refusal(language_model, f"its forward refused the shared-prefix attention ({error})")) from error
        plain = plain[_TRUNK_TOKENS:, : language_model.vocab_size].float()
        difference = float((shared - plain).abs().max() / plain.abs().max())
    if not difference <= _TOLERANCE[language_model.dtype]:
        raise ModelError(_refusal(language_model, f"its logits differ by {difference:.2g} of their scale between the two ways"))


def _shared_prefix_logits(language_model: LanguageModel, token_ids: np.ndarray) -> torch.Tensor:
    engine = SharedPrefixEngine(language_model)
    engine.prefill([token_ids[:_TRUNK_TOKENS].tolist()], first_slot=0)
    layout = RowLayout(np.zeros(1, dtype=np.int64), np.array([_TRUNK_TOKENS]), language_model.device)
    hidden = engine.advance(layout, np.zeros(1, dtype=np.int64), token_ids[None, _TRUNK_TOKENS:])
    return language_model.output_head().logits(hidden[0]).float()


def _refusal(language_model: LanguageModel, reason: str) -> str:
    return (
        f"The model {language_model.name!r} (type {language_model.model.config.model_type!r}) is not supported: {reason}. Use a model with "
        "plain causal attention (Llama, Qwen2, Qwen3, SmolLM and others)."
    )
