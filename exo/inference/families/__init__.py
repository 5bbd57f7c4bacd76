"""Families of models, a file each: what their own files do not say."""
