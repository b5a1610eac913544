"""What every run shares, whatever it trains: its folder, log, checkpoints, processes and errors."""
