"""Pictures and the report, made from files and arrays only."""
