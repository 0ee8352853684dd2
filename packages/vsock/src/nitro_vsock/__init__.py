"""nitro-vsock."""
