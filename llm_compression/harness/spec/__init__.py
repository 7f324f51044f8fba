"""A spec under ``.kiro`` to evidence to a matrix, and the pytest plugin; knows no encoder."""
