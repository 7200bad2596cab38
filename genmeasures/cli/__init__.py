"""The command line: run, collect, plugins."""
