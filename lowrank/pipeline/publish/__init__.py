"""What leaves a run: graphs in other forms, adapters, model cards, and folders for the Hub."""
