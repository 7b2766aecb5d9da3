"""A vision tower as the backbone of a detector, and a small detector that shows it."""
