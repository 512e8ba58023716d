"""Store, processes, progress: what knows nothing of CLIP."""
