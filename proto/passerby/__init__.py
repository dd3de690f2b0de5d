"""The passerby API: protocol buffers (`passerby.v1`), resource names and errors."""
