"""http.listen against what it could be instead: `make bench-http`."""
