"""Defences while training: losses by loops, choices by brute force, what is refused, resuming, fine-tuning."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file
from training_example import TINY_CONV, Noise, TinyViT

from experiments.clip.from_store import Trained
from experiments.pipeline import config as schema
from experiments.tasks.defences import Defence
from experiments.tasks.repair import Repair
from experiments.training.batches import Schedule, Shift, Steps
from experiments.training.config import TrainConfig
from experiments.training.losses import CleanCLIPLoss, CLIPLoss, CyCLIPLoss, Features
from experiments.training.painted import Painted
from experiments.training.par import PAR
from experiments.training.roclip import RoCLIP
from experiments.training.safeclip import SafeCLIP
from experiments.training.stateful_losses import Pool, StatelessLoss, initial_state
from experiments.training.trainer import Trainer, train

SCALE = 7.0


def unit(generator, rows, width=4):
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


@pytest.fixture
def batches():
    """Features of five batches of six pairs."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(SCALE, dtype=torch.float64)

    def batch():
        image, text, second_image, second_text = (unit(generator, 6) for _ in range(4))
        return Features(image, text, scale, None, second_image, second_text)

    return [batch() for _ in range(5)]


def cross_entropy(left, right):
    """Mean over j of -log softmax over k of scale <left_j, right_k>, at k = j, by loops."""
    total = 0.0
    for j, row in enumerate(left):
        terms = [math.exp(SCALE * float(np.dot(row, other))) for other in right]
        total -= math.log(terms[j] / sum(terms))
    return total / len(left)


def clip(image, text):
    return (cross_entropy(image, text) + cross_entropy(text, image)) / 2


def nearest(queries, pool):
    """The row of `pool` with the largest inner product with each query, by loops."""
    return np.array([max(pool, key=lambda row: float(np.dot(row, query))) for query in queries])


def test_pool_keeps_the_latest():
    pool = Pool(5)
    rows = torch.arange(8.0).reshape(8, 1)
    for begin in (0, 3, 6):
        assert pool.full is (begin == 6)
        pool.add(rows[begin : begin + 3])
    assert pool.features.flatten().tolist() == [3, 4, 5, 6, 7]
    pool.add(torch.arange(10.0).reshape(10, 1))
    assert pool.features.flatten().tolist() == [5, 6, 7, 8, 9]


def test_roclip_matches_in_every_second_turn(batches):
    """Two steps an epoch: the third and fourth step match, with the eight captions before them."""
    loss_state = RoCLIP(every=2, pool=8 / 30).initial_state(30, steps_per_epoch=2, seed=0)
    captions = np.empty((0, 4))
    for step, batch in enumerate(batches):
        image, text = batch.image.numpy(), batch.text.numpy()
        expected = clip(image, nearest(image, captions[-8:]) if step in (2, 3) else text)
        found = loss_state(batch, torch.arange(6), step)
        assert float(found) == pytest.approx(expected, rel=1e-12), step
        captions = np.concatenate([captions, text])


def test_roclip_is_clip_until_its_pool_is_full(batches):
    loss_state = RoCLIP(every=1, pool=12 / 30).initial_state(30, steps_per_epoch=2, seed=0)
    for step, batch in enumerate(batches):
        found, plain = loss_state(batch, torch.arange(6), step), CLIPLoss()(batch)
        assert torch.equal(found, plain) is (step < 2)


@pytest.mark.parametrize(
    ("every", "turn", "matching"),
    [(1, 1.0, range(12)), (2, 1.0, [4, 5, 6, 7]), (3, 1.0, range(8, 12)), (2, 0.5, [2, 3, 6, 7, 10, 11])],
)
def test_roclips_turns(every, turn, matching):
    loss_state = RoCLIP(every=every, turn=turn).initial_state(100, steps_per_epoch=4, seed=0)
    assert [step for step in range(12) if loss_state.matches(step)] == list(matching)


def test_pools_pass_no_gradient(batches):
    loss_state = RoCLIP(every=1, pool=6 / 30).initial_state(30, steps_per_epoch=2, seed=0)
    loss_state(batches[0], torch.arange(6), 0)
    second = batches[1].each(lambda part: part.clone().requires_grad_())
    loss_state(second, torch.arange(6), 1).backward()
    assert second.image.grad.abs().sum() > 0
    assert second.text.grad is None


def test_safeclips_losses_by_epoch(batches):
    """A step an epoch: self-supervision, CLIP's loss, then the sum of both over safe and risky pairs."""
    loss_state = SafeCLIP(unimodal=2, slow=1, pool=6 / 30).initial_state(30, steps_per_epoch=1, seed=0)
    f = [{name: part.numpy() for name, part in batch.rows().items()} for batch in batches]
    whole = np.arange(6)

    def own(now, before, rows):
        """Positives are the nearest, among the views of the batch before, to each view."""
        image, text = (
            nearest(now[f"second_{part}"][rows], before[f"second_{part}"])
            if before
            else now[f"second_{part}"][rows]
            for part in ("image", "text")
        )
        return (cross_entropy(now["image"][rows], image) + cross_entropy(now["text"][rows], text)) / 2

    rows = torch.tensor([20, 3, 7, 11, 2, 29])
    safe, risky = np.array([1, 3, 4]), np.array([0, 2, 5])
    expected = [
        own(f[0], None, whole),
        own(f[1], f[0], whole),
        clip(f[2]["image"], f[2]["text"]),
        clip(f[3]["image"][safe], f[3]["text"][safe]) + own(f[3], f[2], risky),
        own(f[4], f[3], whole),  # one safe pair, and none
    ]
    for step in range(5):
        loss_state.safe[:] = False
        loss_state.safe[[3, 11, 2] if step == 3 else []] = True
        assert float(loss_state(batches[step], rows, step)) == pytest.approx(expected[step], rel=1e-12), step
    assert [loss_state.lr_scale(epoch) for epoch in range(5)] == [1, 1, 0.01, 1, 1]


def test_safeclips_split_grows_by_risk_then_similarity():
    loss_state = SafeCLIP(threshold=0.8, grow=0.2).initial_state(10, steps_per_epoch=1, seed=0)
    risk = np.array([0.1, 0.5, 0.0, 0.3, 0.0, 1.0, 0.15, 0.2001, 0.9, 1.0])
    similarity = np.linspace(0, 1, 10)
    loss_state.split(risk, similarity, first=True)
    assert np.flatnonzero(loss_state.safe).tolist() == [0, 2, 4, 6]
    loss_state.split(
        np.where(risk < 0.4, 0, 1), similarity, first=False
    )  # of five with no risk, and five of any: 6
    assert np.flatnonzero(loss_state.safe).tolist() == [0, 2, 3, 4, 6, 7]
    loss_state.split(np.zeros(10), similarity, first=False)
    assert np.flatnonzero(loss_state.safe).tolist() == list(range(2, 10))


def test_safeclip_asks_the_detector(tmp_path):
    """What `on_epoch_start` calls safe is what `detect.SafeCLIP` says of the embeddings of the model as it is."""
    import detect
    from experiments.clip.embed import embed

    pairs = Noise(40)
    torch.manual_seed(0)
    model = TINY_CONV.build(pairs.captions)
    loss_state = SafeCLIP(unimodal=1, slow=1, threshold=0.6).initial_state(40, steps_per_epoch=4, seed=3)
    loss_state.on_epoch_start(1, model, pairs, workers=0)
    assert not loss_state.safe.any()
    loss_state.on_epoch_start(2, model, pairs, workers=0)
    model.clip.eval()
    expected = detect.SafeCLIP(seed=3).score(embed(model, pairs)) < 0.4
    assert loss_state.safe.numpy().tolist() == expected.tolist()
    assert 0 < expected.sum() < 40


def test_only_views_take_the_place_of_the_samples():
    pairs, schedule = Noise(8), Schedule(8, 4, 1, seed=2)

    def tokenise(texts):
        return torch.tensor([[len(text), sum(map(ord, text))] for text in texts])

    both = Steps(pairs, schedule, Shift(2), tokenise, augmented_views=True)[1]
    only = Steps(pairs, schedule, Shift(2), tokenise, augmented_views="only")[1]
    assert torch.equal(only.images, both.second_images)
    assert torch.equal(only.tokens, both.second_tokens)
    assert only.second_images is None
    assert not torch.equal(both.images, both.second_images)


def recipe(**options):
    return TrainConfig(
        **{"epochs": 4, "batch_size": 8, "warmup_epochs": 0, "precision": "float32", "augment": Shift(2)} | options
    )


WAYS = [
    RoCLIP(every=2, turn=0.5, pool=0.3),
    SafeCLIP(unimodal=1, slow=1, slow_lr_scale=0.5, threshold=0.5, pool=0.3),
]


class Killed(Exception):
    pass


class Failing(Noise):
    """Ends the training at the first images asked for after the checkpoint of `step`."""

    def __init__(self, n, folder, step):
        super().__init__(n)
        self.checkpoint, self.step = folder / "checkpoint.pt", step

    def images(self, rows):
        if self.checkpoint.exists() and torch.load(self.checkpoint, weights_only=True)["step"] == self.step:
            raise Killed
        return super().images(rows)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_killed_and_started_again_ends_with_the_same_bits(way, tmp_path):
    """Killed at the end of the third epoch, and in the middle of the fourth."""
    n, training = 14, recipe(loss=way, lr=1e-2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    train(TINY_CONV, training, Noise(n), whole, seed=3)
    for step in (6, 7):
        with pytest.raises(Killed):
            train(TINY_CONV, training, Failing(n, broken, step), broken, seed=3, checkpoint_seconds=0)
    train(TINY_CONV, training, Noise(n), broken, seed=3)
    one, other = (load_file(folder / "weights.safetensors") for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert np.array_equal(np.load(whole / "losses.npy"), np.load(broken / "losses.npy"))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_accumulated_gradients_are_those_of_one_batch(way, tmp_path):
    found = []
    for parts in (1, 3):
        pairs = Noise(24)
        torch.manual_seed(0)
        training = recipe(loss=way, accumulate=parts)
        run = Trainer(TinyViT().build(pairs.captions), training, pairs, tmp_path, seed=5, device="cpu")
        run.model.clip.train()
        loss, _ = run.backward(run.steps()[0])
        gradients = [p.grad.flatten() for p in run.model.clip.parameters() if p.grad is not None]
        found.append((float(loss.detach()), torch.cat(gradients)))
    (loss, gradient), (other_loss, other) = found
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert (other - gradient).norm() <= 1e-5 * gradient.norm()


def test_ordinary_losses_remember_nothing(batches):
    loss_state = initial_state(CLIPLoss(), 30, 2, seed=0)
    assert isinstance(loss_state, StatelessLoss)
    assert torch.equal(loss_state(batches[0], torch.arange(6), 0), CLIPLoss()(batches[0]))
    assert (loss_state.state_dict(), loss_state.lr_scale(3)) == ({}, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoCLIP(every=0), r"train\.loss\.every must be at least 1, got 0"),
        (lambda: RoCLIP(turn=0), r"train\.loss\.turn must be above 0, got 0"),
        (lambda: RoCLIP(pool=1.5), r"train\.loss\.pool must lie in \(0, 1\], got 1\.5"),
        (lambda: SafeCLIP(unimodal=0), r"train\.loss\.unimodal must be at least 1, got 0"),
        (lambda: SafeCLIP(threshold=0), r"train\.loss\.threshold must lie in \(0, 1\], got 0"),
        (lambda: recipe(epochs=1, loss=RoCLIP()), r"train\.epochs must be at least .* = 2, .* got 1"),
        (lambda: recipe(epochs=6, loss=SafeCLIP()), r"train\.epochs must be above .* = 6, .* got 6"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"train\.loss=RoCLIP keeps a state in one process .* torchrun started 2"):
        recipe(loss=RoCLIP())


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_ways_of_the_experiment_can_be_trained(scale):
    """Each takes over the settings of `train`, but for what it names; a loss goes with all of its weights."""
    schema.register()
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        config = compose("config", ["experiment=defences", f"scale={scale}", "train/loss=cyclip"])
    ways = instantiate(config.task).ways
    experiment = SimpleNamespace(config=config)
    trainings = {name: instantiate(way.training(experiment)) for name, way in ways.items()}
    assert [type(training.loss) for training in trainings.values()] == [
        CleanCLIPLoss,
        RoCLIP,
        SafeCLIP,
        PAR,
        CyCLIPLoss,
    ]
    assert {training.batch_size for training in trainings.values()} == {config.train.batch_size}
    assert trainings["cleanclip"].lr < config.train.lr == trainings["roclip"].lr
    assert config.train.loss._target_.endswith("CyCLIPLoss")  # the experiment's own settings are as they were


def test_a_way_that_cannot_be_trained_is_refused():
    experiment = SimpleNamespace(config=OmegaConf.create({"train": {"epochs": 3}}))
    with pytest.raises(ValueError, match=r"task\.ways: Mine sets train\.epoch, which does not exist"):
        Defence("Mine", {"epoch": 2}).training(experiment)
    with pytest.raises(ValueError, match=r"task\.ways: finetune of Mine must lie in \(0, 1\], got 1\.5"):
        Defence("Mine", {}, finetune=1.5)


def test_fine_tuning_starts_from_the_weights_of_the_folder(tmp_path):
    model = TINY_CONV.build(["red star", "blue kite"])
    model.save(tmp_path)
    spec = Trained(str(tmp_path), finetune=True)
    again = spec.build(["green apple"])
    assert (spec.trains, Trained(str(tmp_path)).trains) == (True, False)
    assert [Path(file).name for file in spec.files] == ["model.json", "weights.safetensors"]
    state = model.clip.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.clip.state_dict().items())
    assert again.tokenizer(["red kite"]).tolist() == model.tokenizer(["red kite"]).tolist()


def test_par_moves_away_up_to_its_threshold(batches):
    features = batches[0]
    state = PAR(threshold=2.0).initial_state(12, 3, 0)
    generator = torch.Generator().manual_seed(5)
    before = unit(generator, 12), unit(generator, 12)
    state.image, state.text = before
    rows = torch.tensor([7, 1, 11, 0, 3, 5])
    image, text = features.image.clone().requires_grad_(), features.text.clone().requires_grad_()
    loss = state(Features(image, text, features.scale), rows, 0)
    plain = float(CLIPLoss()(Features(features.image, features.text, features.scale)))
    distances = [
        float(
            np.mean([((a - b) ** 2).sum() for a, b in zip(now.detach().numpy(), then[rows].numpy(), strict=True)])
        )
        for now, then in ((image, before[0]), (text, before[1]))
    ]
    expected = plain - 0.5 * sum(d for d in distances if d <= 2.0)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-9)
    near = PAR(threshold=4.0).initial_state(12, 3, 0)
    near.image, near.text = before
    assert float(near(features, rows, 0)) == pytest.approx(plain - 0.5 * sum(distances), abs=1e-9)


def test_par_remembers_the_model_it_began_with_over_a_resume(tmp_path):
    pairs = Noise(24)
    config = TrainConfig(epochs=2, batch_size=8, lr=1e-3, warmup_epochs=0, loss=PAR(), augment=None)
    whole = train(TinyViT(), config, pairs, make(tmp_path / "whole"), seed=0, checkpoint_seconds=0)
    trainer = Trainer(TinyViT().build(pairs.captions), config, pairs, make(tmp_path / "cut"), 0, "cpu")
    state = trainer.loss_state
    state.on_epoch_start(0, trainer.model, pairs, 0)
    assert state.image.shape == state.text.shape == (24, 16)
    first = state.image.clone()
    state.on_epoch_start(1, trainer.model, pairs, 0)
    assert torch.equal(state.image, first)
    other = PAR().initial_state(24, 3, 0)
    other.load_state_dict(state.state_dict())
    assert torch.equal(other.image, first)
    assert whole.clip is not None


def make(folder):
    folder.mkdir()
    return folder


def test_painted_images_carry_the_trigger_at_the_share_asked_for(tmp_path):
    mask, pattern = np.zeros((8, 8), np.float32), np.ones((8, 8, 3), np.float32)
    mask[2, 3] = 1
    np.savez(tmp_path / "trigger.npz", mask=mask, pattern=pattern)
    painted = Painted(str(tmp_path / "trigger.npz"), share=0.5, augment=Shift(1))
    images = np.full((400, 8, 8, 3), 50, np.uint8)
    drawn = painted.draw(np.random.default_rng(0), 400)
    first, again = painted.apply(images, drawn), painted.apply(images, drawn)
    assert np.array_equal(first, again)
    carrying = (first == 255).all(axis=3).sum(axis=(1, 2))
    assert set(carrying) == {0, 1}
    assert carrying.mean() == pytest.approx(0.5, abs=0.1)
    assert len(set(np.argwhere((first == 255).all(axis=3))[:, 1])) == 8  # anywhere
    assert (images == 50).all()
    fixed = Painted(str(tmp_path / "trigger.npz"), share=1.0, moved=False).apply(images, drawn)
    assert (fixed[:, 2, 3] == 255).all()


def test_a_trigger_of_another_size_is_refused(tmp_path):
    np.savez(tmp_path / "trigger.npz", mask=np.zeros((4, 4)), pattern=np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="is of 4 pixels a side, the images of 8"):
        Painted(str(tmp_path / "trigger.npz"), share=1.0).apply(np.zeros((1, 8, 8, 3), np.uint8), np.array([1]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"finetune": None}, "finetune must lie in"),
        ({"finetune": 0.1, "painted": 0}, "painted of r must lie in"),
        ({"finetune": 0.1, "inversion": {"stepz": 3}}, "has no setting 'stepz'"),
        ({"finetune": 0.1, "inversion": {"steps": 0}}, "steps must be at least 1"),
    ],
)
def test_a_repair_that_cannot_be_done_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Repair("r", {}, **options)
