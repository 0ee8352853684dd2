"""A local KMS that checks attestation documents, for secrets on a laptop (extra: `nitro-nsm[kms]`).

Keys, aliases, tags and grants are moto's. In front of them stands what moto lacks: callers and key policies
(`keypolicy`, `conditions`), attestation documents (`recipient`) and the envelopes that only an enclave opens
(`envelope`). `service.Kms` puts them together, without any input or output; `http` speaks AWS's protocol over
bytes, `server` over sockets. `client` is the enclave's side.

It is for tests. It keeps keys in plain files or memory and believes every caller.
"""
