"""``nitro-cli``: the commands of AWS's command line, so that scripts written for EC2 run unchanged.

Flags, JSON, messages and error codes are those of aws-nitro-enclaves-cli 1.5; what they do is ours.
"""
