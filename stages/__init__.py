"""One command a stage, run by DVC as ``python -m stages.NAME``."""
