"""Objectives beside image-text-label contrast: classification under long tails, sigmoid pairs, images among images.

Pure functions of features or logits. Each has a twin named `*_reference`, its definition in a few dense lines, and
agrees with it in value and in every gradient.
"""
