"""From directions on the logits to directions on the student's parameters, kept as sketches of a fixed size."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float

from opdscope.models.base import ScoreRequest
from opdscope.models.transformers.language_model import LanguageModel


class Sketch:
    """A random projection that keeps inner products: coordinates get random signs and are folded into fewer.

    Inner products of sketches have the mean of those of the vectors, and a standard deviation of at most √(2 / size) of the product of their
    lengths. Vectors no longer than `size` keep theirs exactly.

    References:
        Charikar, Chen and Farach-Colton (2002), Finding frequent items in data streams; Weinberger et al. (2009), Feature hashing.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], size: int, seed: int) -> None:
        self.size, self._starts, self._signs = size, [], []
        total = 0
        for index, parameter in enumerate(parameters):
            source = torch.Generator().manual_seed((seed + 1_000_003 * index) % 2**63)
            signs = torch.randint(0, 2, (parameter.numel(),), generator=source, dtype=torch.int8).mul_(2).sub_(1)
            self._signs.append(signs.to(parameter.device))
            self._starts.append(total)
            total += parameter.numel()
        self.num_parameters = total
        """How many coordinates are folded."""

    def __call__(self, gradients: Iterable[torch.Tensor | None]) -> Float[torch.Tensor, "coordinate"]:
        """The sketch of a vector given in the parameters' pieces; None is zero."""
        result: torch.Tensor | None = None
        for gradient, signs, start in zip(gradients, self._signs, self._starts, strict=True):
            if gradient is None:
                continue
            flat = gradient.reshape(-1).float() * signs
            front = start % self.size
            folded = torch.nn.functional.pad(flat, (front, -(front + len(flat)) % self.size)).view(-1, self.size).sum(dim=0)
            result = folded if result is None else result.add_(folded)
        return torch.zeros(self.size) if result is None else result


class LogitGraph:
    """Logits of one model along responses, with what is needed to carry directions on them back to the parameters."""

    def __init__(self, language_model: LanguageModel, requests: Sequence[ScoreRequest], temperature: float) -> None:
        """Read the responses.

        Args:
            language_model: Loaded with `trainable=True`.
            requests: Responses and wanted positions; together no more than fit one pass with its activations.
            temperature: Of the softmax.
        """
        model: Any = language_model.model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        longest = max(len(r.prompt_ids) + len(r.response_ids) for r in requests)
        token_ids = torch.zeros(len(requests), longest, dtype=torch.long)
        present = torch.zeros(len(requests), longest, dtype=torch.long)
        for row, request in enumerate(requests):
            tokens = (*request.prompt_ids, *request.response_ids)
            token_ids[row, : len(tokens)], present[row, : len(tokens)] = torch.tensor(tokens), 1
        with torch.enable_grad():
            logits = model(input_ids=token_ids.to(model.device), attention_mask=present.to(model.device)).logits
            rows = [logits[k, len(r.prompt_ids) - 1 + torch.tensor(r.positions)] for k, r in enumerate(requests)]
            self._scaled = torch.cat(rows)[:, : language_model.vocab_size].float() / temperature

    @property
    def logprobs(self) -> Float[torch.Tensor, "row vocab"]:
        """Log-probabilities, rows in the order of requests and positions; without a graph."""
        return torch.log_softmax(self._scaled.detach(), dim=-1)

    def pull_back(self, directions: Float[torch.Tensor, "row vocab"]) -> tuple[torch.Tensor | None, ...]:
        r"""Direction on the parameters, :math:`\sum_u J_u^\top d_u`, of a direction on each row's logits over temperature."""
        return torch.autograd.grad(self._scaled, self.parameters, directions, retain_graph=True, allow_unused=True)
