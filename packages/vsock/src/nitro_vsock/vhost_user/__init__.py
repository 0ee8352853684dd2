"""The vhost-user protocol: both ends, without sockets (`frontend` has a small socket shell)."""
