"""The file format: read, measure, check and write Enclave Image Files."""
