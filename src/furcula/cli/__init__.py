"""The command line: `furcula run`, `check`, `explain`, `graph`, `list`, `show`, `schema`, `test`, `new`."""
