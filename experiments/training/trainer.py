"""Contrastive training of CLIP on (poisoned) pairs, resumable to the step.

The paper's protocol (section 4): AdamW with weight decay on matrices only, linear warm-up and cosine decay to 0
by step, logit scale clamped to ln 100, mixed precision, open_clip's ClipLoss. Under torchrun the processes
share each global batch; the gradients are those of one process.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.pairs import Pairs
from experiments.clip.model import ModelSpec, TrainedModel
from experiments.runtime import distributed
from experiments.runtime.progress import StepProgress
from experiments.runtime.refusals import Diverged
from experiments.training import gradient_cache, losses, stateful_losses
from experiments.training.batch_norm import synchronise
from experiments.training.batches import Batch, Schedule, Steps, load, own_rows, token_table
from experiments.training.checkpoint import Checkpoint, SaveInterval, is_sound
from experiments.training.config import TrainConfig
from experiments.training.loss_log import LossLog
from experiments.training.losses import Features, sample_losses

__all__ = ["Trainer", "train"]

log = logging.getLogger(__name__)

CHECK_EVERY = 20  # steps between two checks of a GPU's losses
MAX_LOGIT_SCALE = math.log(100)

ZeroShot = Callable[[TrainedModel], Mapping[str, Any]]
OnEpoch = Callable[[Mapping[str, Any]], None]


def train(
    spec: ModelSpec,
    config: TrainConfig,
    pairs: Pairs,
    folder: Path,
    *,
    seed: int,
    texts: Sequence[str] = (),
    device: str = "cpu",
    workers: int = 0,
    evaluate_zero_shot: ZeroShot | None = None,
    on_epoch: OnEpoch | None = None,
    checkpoint_seconds: float = 20.0,
    log_every: int = 0,
) -> TrainedModel:
    """Train on all of `pairs` and save the model, its history and per-sample losses into `folder`.

    texts: further texts that the vocabulary must cover (zero-shot prompts).  workers: processes that load batches
    (0: this one).  evaluate_zero_shot: model -> measures of an epoch; on_epoch receives them.  checkpoint_seconds,
    log_every: seconds between checkpoints (0: every step), steps between log lines of the progress (0: none).

    Files: weights.safetensors, model.json, history.jsonl, losses.npy (n, epochs; the contrastive loss of each
    sample within its batch).  A checkpoint in `folder` is continued from, with the result of an uninterrupted run.
    Raises Diverged at the first step whose loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = spec.build([*pairs.captions, *texts])
    trainer = Trainer(model, config, pairs, folder, seed, device)
    trainer.resume()
    saving = SaveInterval(checkpoint_seconds)
    progress = StepProgress(trainer.schedule.steps, log_every, done=trainer.step)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), progress:
        for batch in progress.timed(trainer.batches(workers)):
            if trainer.between_epochs:
                trainer.loss_state.on_epoch_start(trainer.epoch, model, pairs, workers)
            trainer.train_step(batch)
            progress.update()
            logs = progress.due(trainer.step)
            saves = trainer.between_epochs or saving.due()
            trainer.check_losses(now=logs or saves)
            if logs:
                progress.log(trainer.step, config.batch_size, trainer.measures())
            if trainer.between_epochs:
                trainer.end_epoch(evaluate_zero_shot, on_epoch)
            if saves:
                with saving.timed():
                    trainer.save_checkpoint()
    trainer.finish()
    return model


class Trainer:
    """One training and its moving parts. `train` is the loop over `train_step`.

    model: what is trained.  network: its module as it is called, compiled or shared by several processes.
    optimiser: AdamW; the learning rate is set at each step.
    schedule: which rows each step consists of.
    loss_state: the loss, with its state (`experiments.training.stateful_losses`).
    losses: of the samples and steps so far.  history: measures of the finished epochs.
    step: the next one, counted from 0.
    """

    def __init__(
        self, model: TrainedModel, config: TrainConfig, pairs: Pairs, folder: Path, seed: int, device: str
    ) -> None:
        config.check_sizes(len(pairs))
        self.model, self.config, self.pairs, self.folder = model, config, pairs, folder
        self.seed, self.device = seed, device
        self.bf16 = config.resolved_precision(device) == "bfloat16"
        self.objective = config.objective
        if self.objective.bias:
            model.add_bias(*losses.SigLIPLoss.start)
        model.clip.output_dict = True  # type: ignore[assignment]
        model.clip.to(device)
        if distributed.world_size() > 1 and config.sync_batch_norm:
            synchronise(model.clip, device)
        self.network = self._network()
        self.optimiser = config.optimiser(model.clip)
        self.schedule = Schedule(len(pairs), config.batch_size, config.epochs, seed)
        per_epoch = self.schedule.steps_per_epoch
        self.loss_state = stateful_losses.initial_state(self.objective, len(pairs), per_epoch, seed)
        self.losses = LossLog(config.epochs, len(pairs))
        self.history: list[dict[str, Any]] = []
        self.step = 0

    def _network(self) -> nn.Module:
        network = self.model.clip
        if self.config.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        if distributed.world_size() > 1:
            return nn.parallel.DistributedDataParallel(network)
        return network

    @property
    def epoch(self) -> int:
        """The epoch of the next step."""
        return self.step // self.schedule.steps_per_epoch

    @property
    def between_epochs(self) -> bool:
        """Whether the next step is the first of an epoch."""
        return self.step % self.schedule.steps_per_epoch == 0

    def steps(self, tokenise: bool = True) -> Steps:
        """All batches of the training, by step."""
        tokenizer = self.model.tokenizer if tokenise else None
        return Steps(self.pairs, self.schedule, self.config.augment, tokenizer, self.objective.augmented_views)

    def batches(self, workers: int) -> Iterator[Batch]:
        """The batches from the next step on."""
        # Texts are cut into tokens once, or by the processes that load the images.
        once = workers == 0 and not self.objective.augmented_views
        table = token_table(self.model.tokenizer, self.pairs.captions) if once else None  # (n, context)
        loading = load(self.steps(tokenise=not once), self.step, workers, pin=self.device.startswith("cuda"))
        for batch in loading:
            yield batch if table is None else batch._replace(tokens=table[batch.rows[own_rows()]])

    def train_step(self, batch: Batch) -> None:
        """Forward, backward and update with one global batch."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        loss, features = self.backward(batch)
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.clip.parameters(), self.config.clip_norm)
        self.optimiser.step()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)  # type: ignore[union-attr, operator]
            of_samples = sample_losses(features)
        self.losses.add(self.epoch, batch.rows[: batch.new], of_samples[: batch.new], loss.detach())
        self.step += 1

    def learning_rate(self, step: int) -> float:
        """Warm-up and cosine, times the factor of the loss."""
        per_epoch = self.schedule.steps_per_epoch
        return self.config.learning_rate(step, per_epoch) * self.loss_state.lr_scale(step // per_epoch)

    def backward(self, batch: Batch) -> tuple[Tensor, Features]:
        """Leave the global batch's gradient in the parameters; its loss and its features, in global order."""
        return gradient_cache.backward(
            self.network,
            gradient_cache.split(batch, self.config.accumulate),
            self.features,
            lambda features: self.loss_state(features, batch.rows, self.step),
        )

    def features(self, network: nn.Module, part: Batch, number: int) -> Features:
        """This process's unit-length features of one part of its share of a batch."""
        assert part.tokens is not None
        images, tokens = [part.images], [part.tokens]
        if part.second_images is not None and part.second_tokens is not None:
            images, tokens = [*images, part.second_images], [*tokens, part.second_tokens]
        x = self.model.standardise(self.model.pixels(torch.cat(images))).contiguous(
            memory_format=torch.channels_last
        )
        # Dropout and the like follow from the step, so that they are the same after a resume and in both passes.
        stream = [self.seed, self.step, number, distributed.rank()]
        torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> 1))
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16):
            out = network(x, torch.cat(tokens).to(self.device, non_blocking=True))
        image, text = out["image_features"].float(), out["text_features"].float()
        scale, bias = out["logit_scale"], out.get("logit_bias")
        if len(images) == 1:
            return Features(image, text, scale, bias)
        (image, second_image), (text, second_text) = image.chunk(2), text.chunk(2)
        return Features(image, text, scale, bias, second_image, second_text)

    def check_losses(self, now: bool) -> None:
        """Raise Diverged at the first step whose loss is not finite.

        A GPU has to finish its work before it can answer, so it is asked every `CHECK_EVERY` steps only, or `now`.
        """
        if not now and self.device.startswith("cuda") and self.losses.unchecked < CHECK_EVERY:
            return
        found = self.losses.first_not_finite()
        if found is None:
            return
        place, loss = found
        step = self.step - len(self.losses.of_steps) + place
        raise Diverged(
            f"training diverged: the loss is {loss} at step {step + 1} of {self.schedule.steps}, at a learning "
            f"rate of {self.learning_rate(step):.3g}; lower train.lr={self.config.lr:g}, or set train.clip_norm"
        )

    def measures(self) -> dict[str, str]:
        """The measures of the last step, for the log."""
        scale = self.model.clip.logit_scale
        return {
            "epoch": f"{self.step / self.schedule.steps_per_epoch:.2f}",
            "loss": f"{float(self.losses.of_steps[-1]):.4f}",
            "lr": f"{self.optimiser.param_groups[0]['lr']:.3g}",
            "logit scale": f"{float(scale.detach().exp()):.1f}",  # type: ignore[operator, arg-type]
        }

    def end_epoch(self, evaluate_zero_shot: ZeroShot | None, on_epoch: OnEpoch | None) -> None:
        """Add the epoch that has just ended to the history."""
        mean = self.losses.end_epoch()
        if not distributed.is_main():
            return
        self.model.clip.eval()
        measures = {"epoch": self.epoch, "loss": round(mean, 4)}  # epochs are counted from 1 in the history
        if evaluate_zero_shot is not None:
            measures |= evaluate_zero_shot(self.model)
        self.history.append(measures)
        (self.folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.history))
        log.info("train: %s", "  ".join(f"{name} {value}" for name, value in measures.items()))
        if on_epoch is not None:
            on_epoch(measures)

    def save_checkpoint(self) -> None:
        """Write everything that `resume` needs into the folder."""
        self.losses.flush()
        if not distributed.is_main():
            return
        epochs_begun = -(-self.step // self.schedule.steps_per_epoch)
        of_steps = self.losses.of_steps
        Checkpoint(
            step=self.step,
            model=self.model.clip.state_dict(),
            optimiser=self.optimiser.state_dict(),
            sample_losses=self.losses.of_samples[:epochs_begun].clone(),
            step_losses=torch.stack(of_steps) if of_steps else torch.empty(0),
            history=json.dumps(self.history),
            loss_state=self.loss_state.state_dict(),
        ).save(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Continue from the checkpoint in the folder, if there is a sound one."""
        file = self.folder / "checkpoint.pt"
        if not distributed.broadcast(distributed.is_main() and is_sound(file)):
            return
        saved = Checkpoint.load(file, self.device)
        self.step = saved.step
        self.model.clip.load_state_dict(saved.model)
        self.optimiser.load_state_dict(dict(saved.optimiser))
        self.losses.of_samples[: len(saved.sample_losses)] = saved.sample_losses.cpu()
        self.losses.of_steps = list(saved.step_losses)
        self.history = json.loads(saved.history)
        self.loss_state.load_state_dict(saved.loss_state)
        log.info("train: resuming at step %d of %d", self.step, self.schedule.steps)

    def finish(self) -> None:
        """Save the trained model and the samples' losses, and remove the checkpoint."""
        self.model.clip.eval()
        if distributed.is_main():
            self.model.save(self.folder)
            np.save(self.folder / "losses.npy", self.losses.table())
            for file in self.folder.glob("checkpoint.*"):
                file.unlink()
