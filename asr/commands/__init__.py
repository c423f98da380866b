"""The subcommands of `asr`: what each takes, and the one function that it calls."""
