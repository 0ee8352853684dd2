"""What each command does; `nitro_eif.cli` parses arguments and calls ``run`` of one of these."""
