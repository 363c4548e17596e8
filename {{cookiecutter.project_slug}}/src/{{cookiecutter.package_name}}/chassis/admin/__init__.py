"""The admin port: health, metrics and introspection, on threads of its own: a stuck event loop can't silence it."""
