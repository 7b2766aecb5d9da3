"""The scoreboard: what the package's fast paths cost beside what one would otherwise run, and beside the machine.

`setting` says on what is measured, `contest` what and against whom, `contests/` holds one file a line of the board,
`record` what was found, `table` shows it.
"""
