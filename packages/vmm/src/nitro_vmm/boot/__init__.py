"""The boot loader: everything between an image's bytes and the kernel's first instruction, without I/O."""
