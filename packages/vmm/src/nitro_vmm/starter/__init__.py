"""The files of the project that ``vmm init`` begins; see `nitro_vmm.cli.init` for their names."""
