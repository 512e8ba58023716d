"""Attention among few tokens: torch's results by another way, and torch's own way elsewhere."""

import pytest
import torch
from torch import nn

from experiments.clip import SmallCLIP, short_attention
from experiments.clip.short_attention import ShortAttention, use_short_attention


def _pair(width=64, heads=2):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(width, heads, batch_first=True)
    nn.init.normal_(plain.in_proj_bias)
    short = ShortAttention(width, heads, batch_first=True)
    short.load_state_dict(plain.state_dict())
    return plain, short


def _results(module, x, mask, dtype=torch.bfloat16):
    """Output, gradient of the input, gradients of the weights."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out, weights = module(x, x, x, need_weights=False, attn_mask=mask)
    assert weights is None
    (out.float() * torch.arange(out.shape[-1])).sum().backward()
    return [out, x.grad, *(p.grad for p in module.parameters())]


def _causal(tokens):
    return torch.full((tokens, tokens), -torch.inf).triu_(1)


@pytest.fixture
def calls(monkeypatch):
    """How often the short way is taken."""
    taken = []
    real = short_attention._Attention.apply
    monkeypatch.setattr(short_attention._Attention, "apply", lambda *args: taken.append(1) or real(*args))
    return taken


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("tokens", "heads"), [(16, 2), (1, 2), (9, 1), (32, 2)])
def test_results_and_gradients_are_torchs(tokens, heads, masked, calls):
    plain, short = _pair(heads=heads)
    x, mask = torch.randn(12, tokens, 64), _causal(tokens) if masked else None
    for expected, found in zip(_results(plain, x, mask), _results(short, x, mask), strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 2**-7 * expected.abs().max()  # bfloat16 has 8 bits
    assert calls


def test_gradients_are_those_of_the_formula_in_float64(calls):
    plain, short = _pair()
    x, mask = torch.randn(12, 16, 64), _causal(16)
    found = _results(short, x, mask)
    expected = _results(plain.double(), x.double(), mask.double(), torch.float64)
    for exact, rounded in zip(expected, found, strict=True):
        assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max()
    assert calls


@pytest.mark.parametrize("case", ["float32", "many tokens", "narrow heads", "no gradients", "cross attention"])
def test_other_cases_are_left_to_torch(case, calls):
    plain, short = _pair(heads=8 if case == "narrow heads" else 2)
    tokens = 33 if case == "many tokens" else 16
    x = torch.randn(4, tokens, 64)
    if case in ("no gradients", "cross attention"):
        y = x if case == "no gradients" else x.flip(0)
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(case != "no gradients"):
            expected, found = (module(x, y, y, need_weights=False)[0] for module in (plain, short))
        assert torch.equal(expected, found)
    else:
        dtype = torch.float32 if case == "float32" else torch.bfloat16
        both = (_results(module, x, _causal(tokens), dtype) for module in (plain, short))
        assert all(map(torch.equal, *both))
    assert not calls


def test_weights_are_given_to_those_who_ask(calls):
    plain, short = _pair()
    x = torch.randn(4, 16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (module(x, x, x) for module in (plain, short))
    assert torch.equal(expected[1], found[1])
    assert not calls


def test_the_small_models_texts_take_it(calls):
    model = SmallCLIP().build(["a red star", "two kites"])
    names = set(model.clip.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        model.text(["a red star", "two kites"]).float().sum().backward()
    assert calls
    use_short_attention(model.clip)
    assert set(model.clip.state_dict()) == names
