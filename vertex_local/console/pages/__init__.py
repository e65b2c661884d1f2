"""The console's pages: a module each, found by being here."""
