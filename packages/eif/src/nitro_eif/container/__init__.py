"""Container images: directories, archives and registries, and the layers in them."""
