"""nitro-eif."""
