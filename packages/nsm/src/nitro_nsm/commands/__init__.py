"""The commands of ``nsm``, one module each.

A command has a `SUMMARY` and `EXAMPLES` for its help, `add_arguments(parser)`, and `run(options)`, which
returns the exit code. It imports what is slow to load when it runs, so that ``nsm --help`` answers at once.
`options` holds what several commands take, `inputs` reads it, `report` shows documents.
"""
