"""Prompts: where they come from, which are held out, and which an update trains on."""
