"""What runs on the other side: plain files of the standard library that import nothing of the package around them.

They are loaded by their folder, as a package of their own, so they know each other only by relative imports.
"""
