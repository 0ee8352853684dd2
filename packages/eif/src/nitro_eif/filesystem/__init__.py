"""What is in ramdisks: cpio archives, compression, and file systems from directories and tar."""
