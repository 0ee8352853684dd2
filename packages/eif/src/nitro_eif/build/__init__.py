"""What an image is built of: a kernel, an init, and an application with the way it is started."""
