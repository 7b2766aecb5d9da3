"""Runs held against each other: what differs beyond chance, and under which conditions."""
