"""Honest numbers: metrics by shot group, intervals, tables."""
