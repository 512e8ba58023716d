"""BLTO's generator: reading its weights, the bound, and a generator trained here."""

import pickle

import numpy as np
import pytest
import torch

from attacks import BLTO
from attacks.triggers.blto import generator


def saved(path, state) -> str:
    torch.save(state, path)
    return str(path)


@pytest.fixture
def net() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return generator(width=4, blocks=1)


@pytest.fixture
def canvases() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)


def test_a_generator_trained_here_moves_images_towards_its_aim_within_the_bound(tmp_path, net, canvases):
    """A few steps towards redder images; the trigger then shows it, never beyond eps."""
    x = torch.from_numpy(canvases).permute(0, 3, 1, 2).float() / 255
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(20):
        made = torch.minimum(torch.maximum(net(x), x - 8 / 255), x + 8 / 255)
        loss = (made[:, 1] + made[:, 2] - made[:, 0]).mean() + (
            net(x) - torch.tensor([1.0, 0, 0])[:, None, None]
        ).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    trigger = BLTO(weights=saved(tmp_path / "g.pt", {"state_dict": net.state_dict()}))
    moved = trigger.apply(canvases, [{}] * 70).astype(int) - canvases
    assert np.abs(moved).max() == 8
    red, green, blue = moved.mean(axis=(0, 1, 2))
    assert red > 2 > -2 > max(green, blue)


def test_result_is_the_clipped_output_of_the_network(tmp_path, net, canvases):
    trigger = BLTO(weights=saved(tmp_path / "g.pt", net.state_dict()), eps=5)
    x = torch.from_numpy(canvases).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        made = net.eval()(x).permute(0, 2, 3, 1).numpy() * 255.0
    expected = np.clip(np.clip(made, canvases - 5.0, canvases + 5.0), 0, 255)
    out = trigger.apply(canvases, [{}] * 70)
    assert np.abs(out - expected).max() <= 0.5 + 1e-2
    assert trigger.files == (str(tmp_path / "g.pt"),)


def test_width_and_depth_are_read_off_the_file_and_the_random_state_is_left_alone(tmp_path):
    trigger = BLTO(weights=saved(tmp_path / "g.pt", generator(width=3, blocks=2).state_dict()))
    before = torch.get_rng_state()
    assert trigger.net(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert [name for name, _ in trigger.net.named_children()][3:5] == ["resblock1", "resblock2"]


def test_a_trigger_that_has_read_its_network_can_be_sent_to_a_worker(tmp_path, net, canvases):
    trigger = BLTO(weights=saved(tmp_path / "g.pt", net.state_dict()))
    out = trigger.apply_one(canvases[0], {})
    assert np.array_equal(pickle.loads(pickle.dumps(trigger)).apply_one(canvases[0], {}), out)


def test_without_weights_the_error_names_the_option():
    with pytest.raises(ValueError, match=r"attack.triggers.0.weights=<path>"):
        BLTO()
    with pytest.raises(ValueError, match=r"BLTO weights must be the path of a file, got 'gone.pt'"):
        BLTO(weights="gone.pt")


class Unsafe:
    def __reduce__(self):
        return (print, ("run",))


def test_files_that_do_not_fit_are_refused(tmp_path, net):
    state = net.state_dict()
    short = {key: value for key, value in state.items() if key != "blockf.1.bias"}
    wide = state | {"block2.0.weight": torch.zeros(9, 4, 3, 3)}
    broken = state | {"blockf.1.bias": torch.full((3,), float("nan"))}
    cases = [
        (short, "do not fit.*blockf.1.bias"),
        (wide, "do not fit.*block2.0.weight"),
        (broken, "must be finite, but blockf.1.bias"),
        ({"weight": torch.zeros(2)}, r"state dict of a residual generator.*\['weight'\]"),
        (torch.zeros(2), "state dict of a residual generator.*Tensor"),
        (Unsafe(), "plain tensors"),
    ]
    for i, (content, words) in enumerate(cases):
        trigger = BLTO(weights=saved(tmp_path / f"{i}.pt", content))
        with pytest.raises(ValueError, match=f"(?s){words}"):
            trigger.apply_one(np.zeros((16, 16, 3), np.uint8), {})


def test_bound_and_canvas_are_checked(tmp_path, net):
    path = saved(tmp_path / "g.pt", net.state_dict())
    with pytest.raises(ValueError, match=r"BLTO eps.*0"):
        BLTO(weights=path, eps=0)
    with pytest.raises(ValueError, match="multiple of 4 for BLTO's generator, got 30"):
        BLTO(weights=path).check(30)
