"""Commands in processes of their own that start warm: forks of one process that has imported the slow libraries.

Importing them takes most of the time of a tiny command. Everything else is as for `python <words>`: its own working
directory, arguments, standard streams and exit status. The tests of refusals start Python itself.
"""

import multiprocessing
import os
import runpy
import sys
from subprocess import CompletedProcess

SLOW = ["open_clip", "sklearn.metrics", "matplotlib.figure", "pandas", "torchvision.transforms.v2", "scipy.stats"]


def start_warm(folder, *words):
    """`python <words>` in `folder`, as `subprocess.run(..., capture_output=True, text=True)` gives it."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(SLOW)
    streams = [folder / name for name in (".stdout", ".stderr")]
    process = forks.Process(target=_become, args=(folder, list(words), streams))
    process.start()
    process.join(300)
    assert not process.is_alive()
    return CompletedProcess(words, process.exitcode, *(stream.read_text() for stream in streams))


def _become(folder, words, streams):
    multiprocessing.set_start_method("fork", force=True)  # as in a process that Python starts
    os.chdir(folder)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    module = words[0] == "-m"
    sys.argv = words[module:]
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")
