"""Subcommands of ``hf-kfc`` about linking."""
