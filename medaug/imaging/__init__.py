"""The only room that knows file formats: readers, writers, layouts, phantoms and preflight."""
