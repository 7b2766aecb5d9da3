"""Files that start a training on one device or on many machines: `hf-vlr launch` lists and prints them."""
