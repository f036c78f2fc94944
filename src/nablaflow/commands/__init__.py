"""Groups of subcommands, one file each, and what all commands share."""
