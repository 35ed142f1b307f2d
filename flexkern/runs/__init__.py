"""What the command line runs: each trains networks on a stream and writes a JSON and a picture."""
