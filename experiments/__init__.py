"""Experiments in wings; imports run one way: runtime, data, clip, training, pipeline and bench, tasks."""
