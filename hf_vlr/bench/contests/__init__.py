"""One file for each line of the scoreboard."""
