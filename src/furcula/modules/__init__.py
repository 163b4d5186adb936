"""The built-in modules, one family a file; `registry.BUILT_IN` has their names.

Making one touches nothing: `__init__` only checks its arguments (ValueError), `start` opens. So a flow can be checked
without running.
"""
