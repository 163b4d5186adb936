"""XML: between bytes and data, through stylesheets, against schemas, and apart by what stands in it.

The parser, and what it refuses, is `furcula.codecs.xml`.
"""
