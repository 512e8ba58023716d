"""Speed and memory beside peers: `python -m experiments.bench`."""
