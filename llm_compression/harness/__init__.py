"""Proves the package against its spec: reads ``.kiro``, measures, compares, reports. The package never imports it."""
