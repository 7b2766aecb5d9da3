"""The `hf-vlr` command line."""
