"""YAML suites: several runs that are compared with each other over folds and seeds."""
