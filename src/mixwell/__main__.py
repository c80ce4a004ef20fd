"""`python -m mixwell`, which torchrun needs: what the `mixwell` command does."""

from mixwell.cli.main import main

main()
