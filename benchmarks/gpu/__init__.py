"""GPUs that are not here: what a pass must move, and what a model makes of that. docs/gpu.md has the tables.

``mnv3-fast bench --device cuda`` (``make bench-gpu``) measures, for whoever has one.
"""
