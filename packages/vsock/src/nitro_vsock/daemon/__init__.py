"""The daemon: a thin shell of trio around vhost-user sessions and the engine that moves the bytes."""
