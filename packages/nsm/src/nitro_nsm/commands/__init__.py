"""The commands of ``nsm``, one module each with a function `run(options) -> exit code`."""
