"""How ``vmm run`` sees an enclave through: the terminal, signals and standard input."""
