"""What every Sampler and Scorer over a real model must hold, checked against the plain forward of `transformers`."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import AutoModelForCausalLM

from fixtures.tiny_models import save_tiny_model
from opdscope.core.randomness import derive_seed, uniforms
from opdscope.models.base import Sample, SampleRequest, ScoreRequest
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers import LanguageModel, TransformersSampler, TransformersScorer, load_language_model

# Two summation orders of the same float32 products: about sqrt(terms) · 6e-8 per layer, below 1e-5 of the largest logit over 30 layers.
FP32_RELATIVE = 1e-5


@pytest.fixture(scope="module", params=["llama", "qwen2", "smollm2"])
def language_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    if request.param == "smollm2":
        return load_language_model(resolve_model("packaged:smollm2"), device="cpu")
    return load_language_model(str(save_tiny_model(tmp_path_factory.mktemp("model"), request.param)), device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(str(save_tiny_model(tmp_path_factory.mktemp("tiny"), "llama")), device="cpu")


def tokens(seed: int, count: int, model: LanguageModel) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, model.vocab_size, size=count).tolist())


def seeds(name: str, count: int) -> tuple[int, ...]:
    return tuple(derive_seed(name, index) for index in range(count))


def plain_logprobs(model: LanguageModel, token_ids: tuple[int, ...], temperature: float = 1.0) -> tuple[torch.Tensor, float]:
    """Log-probabilities by the model's own forward through torch's own attention, and the scale of its logits."""
    model.model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            logits = model.model(torch.tensor([token_ids]), use_cache=False).logits[0, :, : model.vocab_size].float()
    finally:
        model.model.set_attn_implementation("opdscope_shared_prefix")
    return torch.log_softmax(logits / temperature, dim=-1), float(logits.abs().max()) / temperature


def score(model: LanguageModel, requests: list[ScoreRequest], temperature: float = 1.0, chunk_tokens: int = 4096) -> torch.Tensor:
    encoding = TransformersScorer(model, chunk_tokens).encode(requests)
    return encoding.logprobs(0, encoding.num_rows, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_equal_the_plain_forward_for_unequal_prompts_and_responses(language_model: LanguageModel, temperature: float) -> None:
    lengths = [(5, 9), (5, 3), (12, 0), (3, 20)]
    requests = [
        ScoreRequest(tokens(prompt, prompt, language_model), tokens(response, response, language_model), tuple(range(response + 1)))
        for prompt, response in lengths
    ]
    rows = iter(score(language_model, requests, temperature))
    for request in requests:
        expected, scale = plain_logprobs(language_model, request.prompt_ids + request.response_ids, temperature)
        for row in expected[len(request.prompt_ids) - 1 :]:
            torch.testing.assert_close(next(rows), row, rtol=0, atol=FP32_RELATIVE * scale)


def test_score_rows_are_distributions_over_the_tokenizer(language_model: LanguageModel) -> None:
    rows = score(language_model, [ScoreRequest(tokens(0, 4, language_model), tokens(1, 6, language_model), (6, 0, 3, 3))])
    assert rows.shape == (4, len(language_model.tokenizer))
    # float32 sum of up to 49,152 terms
    torch.testing.assert_close(rows.exp().sum(-1), torch.ones(4), rtol=0, atol=1e-5)
    assert torch.equal(rows[2], rows[3])


def test_sharing_a_prompt_does_not_change_scores(language_model: LanguageModel) -> None:
    prompt = tokens(0, 10, language_model)
    requests = [ScoreRequest(prompt, tokens(seed, 4 + seed, language_model), (0, 2, 4)) for seed in range(6)]
    alone = torch.cat([score(language_model, [request]) for request in requests])
    _, scale = plain_logprobs(language_model, prompt)
    for chunk_tokens in (1, 25, 4096):  # one at a time, some at a time, all at once
        torch.testing.assert_close(score(language_model, requests, chunk_tokens=chunk_tokens), alone, rtol=0, atol=FP32_RELATIVE * scale)


def test_scoring_twice_gives_the_same_bits(tiny: LanguageModel) -> None:
    requests = [ScoreRequest(tokens(seed, 5, tiny), tokens(seed + 9, 7, tiny), (1, 7)) for seed in range(5)]
    assert torch.equal(score(tiny, requests), score(tiny, requests))


def test_responses_longer_than_one_piece_equal_the_plain_forward(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdscope.models.transformers.scorer._QUERY_TOKENS", 16)
    prompt, response = tokens(0, 30, tiny), tokens(1, 100, tiny)
    rows = score(tiny, [ScoreRequest(prompt, response, tuple(range(101))), ScoreRequest(prompt, response[:20], (20,))])
    expected, scale = plain_logprobs(tiny, prompt + response)
    torch.testing.assert_close(rows[:101], expected[29:], rtol=0, atol=FP32_RELATIVE * scale)
    torch.testing.assert_close(rows[101], expected[49], rtol=0, atol=FP32_RELATIVE * scale)


def test_no_request_and_no_position_give_no_row(tiny: LanguageModel) -> None:
    assert score(tiny, []).shape == (0, tiny.vocab_size)
    assert score(tiny, [ScoreRequest((3, 4), (5,), ())]).shape == (0, tiny.vocab_size)


def test_a_mirrored_continuation_draws_with_one_minus_each_number(tiny: LanguageModel) -> None:
    prompt, own = tokens(0, 6, tiny), seeds("mirror", 30)
    request = SampleRequest(prompt, len(prompt), (), own * 2, 1, (False,) * 30 + (True,) * 30)
    drawn = [sample.token_ids[0] for sample in TransformersSampler(tiny, 16).sample([request], 1.0)[0]]
    logprobs, _ = plain_logprobs(tiny, prompt)
    cumulative = logprobs[-1].double().exp().cumsum(0).numpy()
    numbers = uniforms(np.array(own, dtype=np.uint64), np.zeros(30, dtype=np.int64))
    expected = np.searchsorted(cumulative, np.concatenate([numbers, 1.0 - numbers]) * cumulative[-1], side="right")
    assert np.mean(np.array(drawn) == expected) > 0.95  # a number within rounding of a bound may fall to either side


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_law_is_the_scorers(tiny: LanguageModel, temperature: float) -> None:
    """The first two tokens of 4,000 continuations against the product of scored probabilities, chi-square at level 0.001."""
    prompt, num_samples = tokens(3, 6, tiny), 4000
    sampler = TransformersSampler(tiny, max_rows=512, eos_token_ids=())
    [samples] = sampler.sample([SampleRequest(prompt, 6, (), seeds("law", num_samples), 2)], temperature)
    rows = score(tiny, [ScoreRequest(prompt, (token,), (0, 1)) for token in range(tiny.vocab_size)], temperature).double().exp()
    expected = (rows[0, :, None] * rows[1::2]).flatten().numpy() * num_samples
    counts = Counter(sample.token_ids[0] * tiny.vocab_size + sample.token_ids[1] for sample in samples)
    observed = np.array([counts[cell] for cell in range(len(expected))], dtype=float)
    small = expected < 5  # the usual rule for chi-square: cells that expect fewer than five are pooled
    observed, expected = np.append(observed[~small], observed[small].sum()), np.append(expected[~small], expected[small].sum())
    assert ((observed - expected) ** 2 / expected).sum() < chi2.ppf(0.999, len(expected) - 1)


def mixed_requests(model: LanguageModel) -> list[SampleRequest]:
    """Three trunks, four depths, none to three forced tokens, unequal limits."""
    trunks = [tokens(seed, 8 + 5 * seed, model) for seed in range(3)]
    return [
        SampleRequest(trunk, length, tokens(length, num_forced, model), seeds(f"{index} {length}", 3 + index), limit)
        for index, trunk in enumerate(trunks)
        for length, num_forced, limit in [(1, 0, 12), (4, 1, 7), (7, 3, 20), (len(trunk), 0, 9), (len(trunk), 1, 1)]
    ]


def assert_same_draws(model: LanguageModel, requests: list[SampleRequest], found: list[list[Sample]], expected: list[list[Sample]]) -> None:
    """Equal, or apart from a draw on whose border between two tokens rounding decides: both tokens' intervals come within 1e-5 of it."""
    for request, pair in zip(requests, zip(found, expected, strict=True), strict=True):
        for seed, first, second in zip(request.seeds, *pair, strict=True):
            if first == second:
                continue
            step = next(step for step, tokens in enumerate(zip(first.token_ids, second.token_ids, strict=False)) if tokens[0] != tokens[1])
            logprobs, _ = plain_logprobs(model, request.trunk[: request.length] + request.forced + first.token_ids[:step])
            cumulative = np.cumsum(logprobs[-1].double().exp().numpy())
            uniform = uniforms(np.array([seed], dtype=np.uint64), np.array([step]))[0]
            for token in (first.token_ids[step], second.token_ids[step]):
                # a sum of float32 probabilities, each off by 1e-5 of its size at most
                assert (cumulative[token - 1] if token else 0.0) - 1e-5 <= uniform <= cumulative[token] + 1e-5


def test_samples_do_not_depend_on_the_batch(language_model: LanguageModel) -> None:
    requests = mixed_requests(language_model)
    expected = TransformersSampler(language_model, max_rows=256).sample(requests, 1.0)
    for max_rows in (1, 7) if language_model.num_parameters < 1e6 else (7,):
        assert_same_draws(language_model, requests, TransformersSampler(language_model, max_rows).sample(requests, 1.0), expected)
    order = np.random.default_rng(0).permutation(len(requests))
    shuffled = TransformersSampler(language_model, max_rows=16).sample([requests[index] for index in order], 1.0)
    assert_same_draws(language_model, [requests[index] for index in order], shuffled, [expected[index] for index in order])


def test_the_same_call_gives_the_same_bits(language_model: LanguageModel) -> None:
    requests, sampler = mixed_requests(language_model), TransformersSampler(language_model, max_rows=7)
    assert sampler.sample(requests, 1.0) == sampler.sample(requests, 1.0)


def test_nodes_of_different_depth_sample_as_if_each_were_alone(language_model: LanguageModel) -> None:
    path = tokens(5, 24, language_model)
    together = [SampleRequest(path, length, (path[0],), seeds(f"node {length}", 4), 8) for length in (2, 9, 16, 24)]
    apart = [SampleRequest(path[: request.length], request.length, request.forced, request.seeds, 8) for request in together]
    sampler = TransformersSampler(language_model)
    alone = [sampler.sample([request], 1.0)[0] for request in apart]
    assert_same_draws(language_model, together, sampler.sample(together, 1.0), alone)


def test_forced_tokens_act_as_part_of_the_prefix_and_are_not_returned(tiny: LanguageModel) -> None:
    prompt, forced = tokens(0, 6, tiny), tokens(1, 3, tiny)
    sampler = TransformersSampler(tiny)
    [forced_samples] = sampler.sample([SampleRequest(prompt, 6, forced, seeds("f", 20), 10)], 1.0)
    [prefix_samples] = sampler.sample([SampleRequest(prompt + forced, 9, (), seeds("f", 20), 10)], 1.0)
    assert forced_samples == prefix_samples


def test_a_sample_is_finished_exactly_when_its_last_token_ends_a_sequence(language_model: LanguageModel) -> None:
    eos = tuple(range(0, language_model.vocab_size, 4))
    samples = TransformersSampler(language_model, 9, eos).sample(mixed_requests(language_model), 1.0)
    limits = [request.max_new_tokens for request in mixed_requests(language_model)]
    for group, limit in zip(samples, limits, strict=True):
        for sample in group:
            assert sample.finished == (sample.token_ids[-1] in eos)
            assert not set(sample.token_ids[:-1]) & set(eos)
            assert sample.finished or len(sample.token_ids) == limit


def test_ending_early_is_a_prefix_of_going_on(tiny: LanguageModel) -> None:
    request = SampleRequest(tokens(0, 6, tiny), 6, (), seeds("e", 50), 30)
    [ended] = TransformersSampler(tiny, eos_token_ids=(5, 9)).sample([request], 1.0)
    [endless] = TransformersSampler(tiny, eos_token_ids=()).sample([request], 1.0)
    assert len({len(sample.token_ids) for sample in ended}) > 5
    for short, long in zip(ended, endless, strict=True):
        assert long.token_ids[: len(short.token_ids)] == short.token_ids
        assert (len(long.token_ids), long.finished) == (30, False)


def test_a_limit_of_zero_samples_nothing_and_is_unfinished(tiny: LanguageModel) -> None:
    requests = [SampleRequest((3, 4), 2, (5,), (1, 2), 0), SampleRequest((3, 4), 2, (), (), 5)]
    assert TransformersSampler(tiny).sample(requests, 1.0) == [[Sample((), False)] * 2, []]
    assert TransformersSampler(tiny).sample([], 1.0) == []


def test_padded_output_rows_are_never_sampled(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "qwen2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    num_tokens = model.config.vocab_size - 7
    model.lm_head.weight.data[num_tokens:] = 0.0
    model.lm_head.weight.data[:num_tokens] *= 0.05  # nearly uniform: a padded row would take a fifth of the draws
    model.save_pretrained(tmp_path)
    loaded = load_language_model(str(tmp_path), device="cpu")
    [samples] = TransformersSampler(loaded, eos_token_ids=()).sample([SampleRequest((3,), 1, (), seeds("p", 100), 20)], 5.0)
    assert {token for sample in samples for token in sample.token_ids} <= set(range(num_tokens))


def test_progress_counts_every_sampled_token_while_sampling(tiny: LanguageModel) -> None:
    calls: list[int] = []
    samples = TransformersSampler(tiny, max_rows=8).sample(mixed_requests(tiny), 1.0, calls.append)
    assert sum(calls) == sum(len(sample.token_ids) for group in samples for sample in group)
    assert len(calls) > 20


def test_bfloat16_models_sample_and_score_near_float32(tmp_path: Path, tiny: LanguageModel) -> None:
    half = load_language_model(str(save_tiny_model(tmp_path, "llama")), dtype="bfloat16", device="cpu")
    prompt, response = tokens(0, 6, tiny), tokens(1, 20, tiny)
    request = ScoreRequest(prompt, response, tuple(range(21)))
    rows, exact = score(half, [request]), score(tiny, [request])
    assert rows.dtype == torch.float32
    plain_error = (plain_logprobs(half, prompt + response)[0][5:] - exact).abs().max()
    # the plain forward in bfloat16 makes the same roundings and two more (of scores and logits); the factor is for their luck
    assert 0 < (rows - exact).abs().max() < 1.5 * plain_error
    [samples] = TransformersSampler(half).sample([SampleRequest(prompt, 6, (response[0],), seeds("b", 30), 12)], 1.0)
    assert max(len(sample.token_ids) for sample in samples) == 12


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (SampleRequest((3, 4), 0, (), (1,), 1), "length must be between 1 and the trunk's 2 tokens, got 0"),
        (SampleRequest((3, 4), 3, (), (1,), 1), "length must be between 1 and the trunk's 2 tokens, got 3"),
        (SampleRequest((3, 4), 2, (), (1,), -1), "max_new_tokens must not be negative"),
        (SampleRequest((3, 4), 2, (28,), (1,), 1), "token ids must be between 0 and 27, got 28"),
    ],
)
def test_sampler_names_what_is_out_of_range(tiny: LanguageModel, request_: SampleRequest, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TransformersSampler(tiny).sample([request_], 1.0)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        TransformersSampler(tiny).sample([], 0.0)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ScoreRequest((), (3,), (0,)), "prompt_ids must hold at least one token"),
        (ScoreRequest((3,), (4,), (2,)), "positions must be between 0 and the response's length 1, got 2"),
        (ScoreRequest((3,), (99,), (1,)), "token ids must be between 0 and 27, got 99"),
    ],
)
def test_scorer_names_what_is_out_of_range(tiny: LanguageModel, request_: ScoreRequest, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TransformersScorer(tiny).encode([request_])
