"""The old systems' ways in: the interfaces of Wishbone, Compysition and pipelines, thin, over furcula's own parts.

Submodule paths are kept, so that moving is a change of the first part of an import. The guides are in `docs/moving/`.
"""
