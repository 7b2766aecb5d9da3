"""YAML recipes, one experiment each."""
