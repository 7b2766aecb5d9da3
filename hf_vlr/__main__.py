"""`python -m hf_vlr`, which is what `accelerate launch -m hf_vlr` starts."""

from hf_vlr.cli.main import main

if __name__ == "__main__":
    main()
