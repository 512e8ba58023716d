"""Work spread over processes, results as they come."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from experiments.runtime import stopping

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Yield (job, work(job)) in order of completion; in this process for one worker or one job.

    The processes are started afresh: the caller may hold torch's threads, which a fork would leave in an
    unknown state. They end with this process, however it ends; jobs that are at work are finished first if one
    fails, and given up if this process is to stop. Raises WorkerDied if a process ends without a result.
    """
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, work(job)
        return
    others = set(multiprocessing.active_children())
    try:
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)), multiprocessing.get_context("spawn"), stopping.as_worker, (os.getpid(),)
        )
    except OSError as error:
        if died := stopping.no_workers(error):
            raise died from error
        raise
    try:
        futures = _submit(pool, work, jobs)
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise stopping.WorkerDied("it was killed, or could not start") from error
    except (KeyboardInterrupt, GeneratorExit):
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, work: Callable[[Job], Result], jobs: Sequence[Job]
) -> dict[Future[Result], Job]:
    """Submit all jobs; the processes that this starts do not see Ctrl-C, not even while they start."""
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(work, job): job for job in jobs}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
