"""Runs that this process holds, until their outcome is stored."""
