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
from experiments.runtime import distributed
from experiments.runtime.console import replace_unprintable

log = logging.getLogger("lookout")
schema.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> CellCounts:
    replace_unprintable()  # here for the jobs of a sweep in processes of their own
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import InstantiationException
    from hydra.types import RunMode
    from hydra.utils import instantiate

    from analysis import report
    from experiments.pipeline.evaluation import run
    from experiments.pipeline.runner import Runner

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        runner = Runner.of(config)
    except (ValueError, InstantiationException) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # one job of a sweep; the others go on
        log.error("%s", error.__cause__ or error)
        raise SystemExit(2) from None
    with instantiate(config.logger).start(folder, OmegaConf.to_container(config, resolve=True)) as tracker:
        runner.resources.on_epoch = tracker.log
        if HydraConfig.get().runtime.choices["task"] != "detect":
            from experiments.tasks.perform import perform

            return perform(config.task, runner, folder)
        result = run(runner)
        if distributed.is_main():
            from rich.console import Console

            Console().print(report.write(result, folder))
            tracker.record(result)
    log.info("results in %s; %s", folder, runner.store)
    return result.tally


if __name__ == "__main__":
    replace_unprintable()
    arguments = sys.argv[1:]
    sys.argv[1:] = map(schema.quote_patterns, arguments)
    sys.argv += distributed.hydra_overrides()
    try:
        main()
    except SystemExit as stop:
        # Hydra has said what it refused; add what it could have been.
        if stop.code and (hint := schema.explain(arguments, Path(__file__).parent / "conf")):
            print(f"\n{hint}", file=sys.stderr)
        raise
