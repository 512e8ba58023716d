"""Lookout's entry: compose a configuration, run its stages, report; `python run.py --help` lists the choices."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

# Before torch is imported: waiting threads that spin slow every other process down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.pipeline import config as schema
from experiments.pipeline.sweep import CellCounts
from experiments.runtime import distributed, refusals, stopping
from experiments.runtime.console import replace_unprintable

log = logging.getLogger("lookout")
schema.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@stopping.in_one_line
def main(config: DictConfig) -> CellCounts:
    replace_unprintable()  # here for the jobs of a sweep in processes of their own
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    folder = Path(HydraConfig.get().runtime.output_dir)
    alone = HydraConfig.get().mode == RunMode.RUN
    try:
        tally = perform(config, folder)
    except Exception as error:
        status = refusals.status(error)
        if status is None or not alone or "HYDRA_FULL_ERROR" in os.environ:
            raise  # Hydra shows where it happened; of a sweep's jobs, the others go on
        log.error("%s", refusals.line(error))
        if status == 2:
            refusals.forget(folder)
        raise SystemExit(status) from None
    if alone and tally.failed:
        raise SystemExit(1)
    return tally


def perform(config: DictConfig, folder: Path) -> CellCounts:
    """Check the whole configuration, then run its task; results go to `folder`, a summary to the screen."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from analysis import report
    from experiments.pipeline.evaluation import run
    from experiments.pipeline.runner import Runner

    runner = Runner.of(config)
    task = None
    if HydraConfig.get().runtime.choices["task"] != "detect":
        from experiments.tasks.perform import carry_out, prepare

        task = prepare(config.task, runner)
    with instantiate(config.logger).start(folder, OmegaConf.to_container(config, resolve=True)) as tracker:
        runner.resources.on_epoch = tracker.log
        if task is not None:
            return carry_out(task, runner, folder)
        result = run(runner)
        if distributed.is_main():
            from rich.console import Console

            Console().print(report.write(result, folder))
            tracker.record(result)
    log.info("results in %s; %s", folder, runner.store)
    return result.tally


def show_stages(arguments: list[str]) -> int:
    """Print the stages of the configuration that `arguments` compose, and what the store holds of them."""
    from experiments.pipeline.overview import overview
    from experiments.pipeline.runner import Runner

    try:
        text = overview(Runner.of(schema.composed(arguments)))
    except Exception as error:
        if refusals.status(error) is None or "HYDRA_FULL_ERROR" in os.environ:
            raise
        print(refusals.line(error), file=sys.stderr)
        return 2
    if distributed.is_main():
        print(text, end="")
    return 0


if __name__ == "__main__":
    replace_unprintable()
    arguments = [argument for argument in sys.argv[1:] if argument != "--stages"]
    stages = len(arguments) < len(sys.argv) - 1
    try:
        hint = schema.refused(arguments)
        tracking = schema.tracking_mode(arguments, os.environ.get("WANDB_MODE"))
    except ValueError as error:
        hint, tracking = str(error), []
    if hint:  # before Hydra says it in ten lines
        if distributed.is_main():
            print(hint, file=sys.stderr)
        sys.exit(2)
    if stages:
        sys.exit(show_stages(arguments))
    sys.argv[1:] = [*map(schema.quote_patterns, arguments), *tracking]
    sys.argv += distributed.hydra_overrides()
    try:
        stopping.interruptible(main)
    except SystemExit as stop:
        plain = stop.code not in (1, 2) or schema.is_plain(arguments)
        if not plain and (hint := schema.explain(arguments, schema.CONF)):
            print(f"\n{hint}", file=sys.stderr)
        raise
