"""Drawn image-caption pairs."""
