"""The version, where every part may read it: the package itself imports the whole house."""

__version__ = "0.1.0"
