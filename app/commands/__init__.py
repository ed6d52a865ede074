"""The subcommands; each has ``configure(parser)`` and ``main(args)``, which returns the exit status."""
