"""Certificates: those that this package issues, and whether a chain of others is worth believing.

`authority` and `issuer` make certificates, `certificates` and `chain` check them. `trust` holds the roots
that a verifier may believe, `store` the file of the test root, and `stored` what is in it. Imports go one
way: `certificates` and `trust` first, then `chain` and `authority`, `stored`, and `issuer` and `store`.
"""
