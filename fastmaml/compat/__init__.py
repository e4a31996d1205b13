"""Drop-in doors for scripts written for learn2learn and higher.

`install` opens them under the libraries' own names, for packages that import them by themselves.
"""

from fastmaml.compat.import_hook import install, uninstall

__all__ = ["install", "uninstall"]
