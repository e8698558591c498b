"""The options of the subcommands, one file for each group. Nothing here needs torch."""
