from .commands import _COMMANDS, main, parser
