"""Content by descriptor: walk, delete, sync, clone, compare trees; copy content and metadata."""
