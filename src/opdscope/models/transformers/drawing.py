"""Draws tokens by inversion of the cumulative distribution, from uniforms that the caller brings."""

import numpy as np
import torch

_BLOCK_BYTES = 1 << 21


def draw_tokens(logits: torch.Tensor, temperature: float, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One token per row from softmax(logits / temperature).

    Args:
        logits: [rows, vocab_size]; read as float32.
        temperature: Greater than 0.
        uniforms: Numbers in (0, 1), [rows]: the token is the first whose cumulative probability exceeds the row's number.

    Returns:
        Token ids, [rows], never one of probability zero; and the natural logs of the probabilities they were drawn with, float32 [rows].

    Notes:
        `torch.multinomial` costs some 20 times more on large vocabularies, and its draws depend on the batch. torch forms cumulative sums
        in double and stores them in float32, so that a token's probability is exact to 6e-8.
    """
    blocks = logits.split(_rows_per_block(logits))
    numbers = torch.from_numpy(uniforms).to(device=logits.device, dtype=torch.float32).split(blocks[0].shape[0])
    drawn = [_invert(*pair, temperature) for pair in zip(blocks, numbers, strict=True)]
    token_ids, probs = (torch.cat(parts).cpu().numpy() for parts in zip(*drawn, strict=True))
    return token_ids, np.log(probs)


def _rows_per_block(logits: torch.Tensor) -> int:
    """All rows, except that a CPU takes a few at a time: larger buffers would be asked from the system anew at every step."""
    return max(1, _BLOCK_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else logits.shape[0]


def _invert(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    probs = torch.softmax(logits, dim=-1)
    cumulative = torch.cumsum(probs, dim=-1)
    total = cumulative[:, -1:]
    target = uniforms[:, None] * total
    # A number that rounds up to the total would fall off the end; the float below it lands in the last token of positive probability.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    token_ids = torch.searchsorted(cumulative, target, right=True)
    return token_ids[:, 0], probs.gather(-1, token_ids)[:, 0]
